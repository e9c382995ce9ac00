"""The questions about headers that the API has, and their answers as the core would give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.examining.limits import Cost, Limits
from app.examining.pool import Pool
from app.settings import Settings
from cogram_core.errors import CheckpointError, DatasetError, InvalidInput, NetworkError, Problem, RecipeError
from cogram_core.preflight import DatasetFacts, Estimates

_LENGTH_BYTES, _LONGEST_HEADER = 8, 16 * 2**20
Files = Mapping[str, Path]  # by their names in the checkpoint
_ERRORS = {kind.__name__: kind for kind in (InvalidInput, CheckpointError, DatasetError, NetworkError, RecipeError)}


@dataclass(frozen=True)
class CheckpointFacts:
    """What is kept of a checkpoint's headers."""

    tensors: int
    parameters: int
    dtypes: list[str]
    network_kind: str | None


@dataclass(frozen=True)
class TensorFacts:
    """One tensor, and the file of the checkpoint that it lies in."""

    name: str
    dtype: str
    shape: list[int]
    file: str


class Examiners:
    """Asks; raises the core's errors just as they were raised where the headers were read."""

    def __init__(self, settings: Settings) -> None:
        self._pool = Pool(
            Limits(
                memory_bytes=settings.examine_memory_bytes,
                cpu_seconds=settings.examine_cpu_seconds,
                seconds=settings.examine_seconds,
                at_once=settings.examiners,
                queue_seconds=settings.examine_queue_seconds,
            )
        )

    def warm(self) -> None:
        """Starts the first child, once there is an event loop."""
        self._pool.warm()

    @property
    def pids(self) -> list[int]:
        """Process ids of the children, for those who watch them."""
        return self._pool.pids

    async def close(self) -> None:
        """Ends all children."""
        await self._pool.close()

    async def checkpoint(self, files: Files, request: Request) -> CheckpointFacts:
        """Reads all headers of a checkpoint to be; raises CheckpointError or NetworkError with all that is wrong."""
        question = {"about": "checkpoint", "files": _named(files)}
        return CheckpointFacts(**await self._ask(question, request, await _cost([files])))

    async def tensors(self, files: Files, start: int, limit: int, request: Request) -> list[TensorFacts]:
        """Tensors by name, from place ``start``."""
        question = {"about": "tensors", "files": _named(files), "start": start, "limit": limit}
        return [TensorFacts(**found) for found in await self._ask(question, request, await _cost([files]))]

    async def dataset(self, path: Path, size: int, request: Request) -> DatasetFacts:
        """Looks through a dataset's file of so many bytes; raises CheckpointError or DatasetError."""
        found = await self._ask({"about": "dataset", "path": str(path)}, request, Cost(data_bytes=size))
        shapes = {name: tuple(found[name]) for name in ("input_shape", "target_shape")}
        return DatasetFacts(**{**found, **shapes})

    async def recipe(
        self,
        recipe: Mapping[str, Any],
        checkpoints: Mapping[str, Files],
        datasets: Mapping[str, DatasetFacts],
        request: Request,
    ) -> tuple[tuple[Problem, ...], Estimates]:
        """Holds a recipe's document against the headers and facts of its references."""
        question = {
            "about": "recipe",
            "recipe": recipe,
            "checkpoints": {key: _named(files) for key, files in checkpoints.items()},
            "datasets": {key: asdict(facts) for key, facts in datasets.items()},
        }
        found = await self._ask(question, request, await _cost(checkpoints.values()))
        return tuple(Problem(**problem) for problem in found["problems"]), Estimates(**found["estimates"])

    async def _ask(self, question: dict[str, Any], request: Request, cost: Cost) -> Any:
        answer = await self._pool.ask(question, request, cost)
        if "refused" in answer:
            raise _ERRORS[answer["refused"]](Problem(**problem) for problem in answer["problems"])
        return answer["found"]


async def _cost(checkpoints: Iterable[Files]) -> Cost:
    """By the lengths that the files give of their headers; looked up in a thread, as disks may be slow."""
    files = [file for checkpoint in checkpoints for file in checkpoint.items()]
    return Cost(parsed_bytes=await run_in_threadpool(lambda: sum(_parsed_bytes(name, path) for name, path in files)))


def _parsed_bytes(name: str, path: Path) -> int:
    try:
        if name.endswith(".json"):
            return path.stat().st_size
        with path.open("rb", buffering=0) as file:
            return min(int.from_bytes(file.read(_LENGTH_BYTES) or b"", "little"), _LONGEST_HEADER)
    except OSError:
        return 0  # whoever reads it says what is wrong


def _named(files: Files) -> dict[str, str]:
    return {name: str(path) for name, path in files.items()}
