"""Finds the journal of an earlier, killed run of the same recipe on the same inputs, for a run to go on from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cogram_core.errors import OutputError
from cogram_core.journal import journal_batches, journal_identity
from cogram_core.recipe import Recipe
from cogram_core.stopping import stop_point
from cogram_core.trace import Decision, decisions_of

_FORMAT = 1  # of the journal and of what its decisions mean
_CHUNK = 2**22


@dataclass(frozen=True)
class Identity:
    """All that a run's decisions follow from; two runs with the same take the same ones.

    ``recipe`` is resolved; ``sources`` has the sources' digests, ``data`` the data files' by their place in the recipe,
    ``base`` is the base's digest where there is one.
    """

    recipe: Recipe
    sources: tuple[str, ...]
    data: Mapping[str, str]
    base: str | None = None

    def to_document(self) -> dict[str, Any]:
        """Plain data, for the head of a journal."""
        return {
            "format": _FORMAT,
            "recipe": self.recipe.to_document(),
            "sources": list(self.sources),
            "base": self.base,
            "data": dict(self.data),
            "software": {"cogram_fusion": version("cogram-fusion"), "torch": torch.__version__},
            "processor": _processor(torch.device(self.recipe.device)),
        }


def _processor(device: torch.device) -> str:
    """What torch chooses its kernels by: half a run on one and half on another would be neither's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


@dataclass(frozen=True)
class EarlierRun:
    """What there is to go on from: the decisions, ``count`` of them, and why other journals were of no use."""

    decisions: Iterable[Decision] = ()
    count: int = 0
    ignored: tuple[str, ...] = ()


@contextmanager
def earlier_run(journals: Iterable[Path], identity: Identity) -> Iterator[EarlierRun]:
    """The longest of ``journals`` that ``identity`` wrote; it stays open inside the block.

    The runs that write them may still be alive: what is read ends with what was complete when it was looked at.
    """
    expected = identity.to_document()
    ignored: list[str] = []
    best: tuple[int, Path, BinaryIO] | None = None
    with ExitStack() as stack:
        for path in journals:
            try:
                file: BinaryIO = stack.enter_context(path.open("rb"))
            except OSError as error:
                ignored.append(f"{path}: {error.strerror}")
                continue
            reason = _difference(journal_identity(file), expected)
            count = 0 if reason else _complete(file)
            if count == 0:
                ignored.append(f"{path}: {reason or 'holds no decision'}")
            elif best is None or count > best[0]:
                best = count, path, file
        if best is None:
            yield EarlierRun(ignored=tuple(ignored))
        else:
            count, path, file = best
            yield EarlierRun(_first(file, count, path), count, tuple(ignored))


def _difference(found: Any, expected: Mapping[str, Any]) -> str | None:
    if not isinstance(found, dict) or not found:
        return "not a readable journal of a run"
    other = [key for key, value in expected.items() if found.get(key) != value]
    return f"of a run with another {' and '.join(other)}" if other else None


def _complete(file: BinaryIO) -> int:
    """How many decisions there are, from the first on and none missing."""
    count = 0
    for batch in journal_batches(file):
        stop_point()
        if batch.column("seq").to_pylist() != [*range(count, count + batch.num_rows)]:
            break
        count += batch.num_rows
    return count


def _first(file: BinaryIO, count: int, path: Path) -> Iterator[Decision]:
    """The first ``count`` decisions.

    Raises:
        OutputError: if they were there and are no more.
    """
    decisions = (decision for batch in journal_batches(file) for decision in decisions_of(batch))
    for place in range(count):
        decision = next(decisions, None)
        if decision is None:
            message = f"{path}: only {place} of {count} decisions can be read again; check the disk, or remove it"
            raise OutputError(message)
        yield decision


def data_digests(recipe: Recipe, paths: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of every data file of a recipe, by its place in it."""
    return {
        reference.location: sha256_of(paths[reference.value])
        for reference in recipe.references()
        if reference.kind == "dataset"
    }


def sha256_of(path: Path) -> str:
    """A file's digest, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            stop_point()
            digest.update(chunk)
    return digest.hexdigest()
