"""The sources of a run: tensors read one by one, from checkpoints on disk or from modules in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.checkpoints.torch_dtypes import DTYPE_NAMES, TORCH_DTYPES
from cogram_core.errors import CheckpointError, Problem
from cogram_core.evaluation.datasets import Dataset
from cogram_core.permuting import Axis, permuted
from cogram_core.stopping import stop_point

_LISTED = 50


@dataclass(frozen=True)
class TensorFacts:
    """A stored tensor's dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def floating(self) -> bool:
        """Whether its numbers can be averaged."""
        return self.dtype.is_floating_point


class TensorStore(Protocol):
    """Named tensors that are read when asked for."""

    def facts(self) -> Mapping[str, TensorFacts]:
        """All tensors, in the order of their names."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype, in memory of its own."""
        ...

    def read_rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows first to last − 1 of one tensor in its stored dtype, in memory of their own."""
        ...

    def digest(self) -> str:
        """SHA-256 of the contents."""
        ...


class CheckpointStore:
    """Tensors of a checkpoint on disk."""

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader

    def facts(self) -> Mapping[str, TensorFacts]:
        """See ``TensorStore.facts``."""
        specs = self._reader.header.tensors
        return {name: TensorFacts(TORCH_DTYPES[spec.dtype], spec.shape) for name, spec in specs.items()}

    def read(self, name: str) -> Tensor:
        """See ``TensorStore.read``."""
        return self._reader.read(name)

    def read_rows(self, name: str, first: int, last: int) -> Tensor:
        """See ``TensorStore.read_rows``."""
        return self._reader.read(name, (first, last))

    def digest(self) -> str:
        """See ``TensorStore.digest``: the checkpoint's combined digest."""
        return self._reader.digest().combined


class MemoryStore:
    """Tensors of a state dict."""

    def __init__(self, owner: str, state: Mapping[str, Any]) -> None:
        """Takes the tensors of ``owner``, without copying them.

        Raises:
            CheckpointError: listing everything in the state that a checkpoint couldn't hold.
        """
        problems = [
            Problem(f"{owner}: {name}", "sources.not_storable", f"is {what}, which no checkpoint holds; take it out")
            for name, value in state.items()
            if (what := _not_storable(value)) is not None
        ]
        if problems:
            raise CheckpointError(_listed(problems))
        self._state: dict[str, Tensor] = {name: state[name].detach() for name in sorted(state)}

    def facts(self) -> Mapping[str, TensorFacts]:
        """See ``TensorStore.facts``."""
        return {name: TensorFacts(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._state.items()}

    def read(self, name: str) -> Tensor:
        """See ``TensorStore.read``."""
        return self._state[name].clone()

    def read_rows(self, name: str, first: int, last: int) -> Tensor:
        """See ``TensorStore.read_rows``."""
        return self._state[name][first:last].clone()

    def digest(self) -> str:
        """See ``TensorStore.digest``: over names, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for name, tensor in self._state.items():
            digest.update(f"{name} {DTYPE_NAMES[tensor.dtype]} {list(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _not_storable(value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.dtype not in DTYPE_NAMES or value.layout != torch.strided or value.is_meta:
        return f"a tensor of {value.dtype} and {value.layout} on {value.device}"
    return None


@dataclass(frozen=True)
class LoadedSource:
    """One source of a run; ``read`` gives tensors in the compute dtype on the run's device.

    ``orders`` has, for each tensor whose units stand in another order than in the store, where and in which.
    """

    name: str
    weight: float
    store: TensorStore
    dtype: torch.dtype
    device: torch.device
    data: Dataset | None = field(default=None)
    orders: Mapping[str, tuple[tuple[Axis, Tensor], ...]] = field(default_factory=dict)

    def read(self, tensor: str) -> Tensor:
        """One floating tensor for the fusion's arithmetic."""
        return permuted(self.store.read(tensor), self.orders.get(tensor, ())).to(self.device, self.dtype)

    def read_rows(self, tensor: str, first: int, last: int) -> Tensor:
        """Rows first to last − 1 of one floating tensor."""
        if tensor in self.orders:
            return self.read(tensor)[first:last].clone()
        return self.store.read_rows(tensor, first, last).to(self.device, self.dtype)

    def reordered(self, axes: Sequence[Axis], order: Tensor) -> LoadedSource:
        """The same source with its units in another order: new unit u is old unit order[u], int64 (units,)."""
        orders = dict(self.orders)
        for axis in axes:
            orders[axis.tensor] = (*orders.get(axis.tensor, ()), (axis, order))
        return replace(self, orders=orders)


def check_alike(sources: list[LoadedSource]) -> None:
    """Checks that all sources have the same tensors.

    Raises:
        CheckpointError: listing every tensor that differs in being there, dtype or shape.
    """
    expected = sources[0].store.facts()
    problems = []
    for source in sources[1:]:
        found = source.store.facts()
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                message = (
                    f"{_shown(found.get(name))}, in {sources[0].name} {_shown(expected.get(name))}; fuse like with like"
                )
                problems.append(Problem(f"{source.name}: {name}", "sources.mismatch", message))
    if problems:
        raise CheckpointError(_listed(problems))


def _listed(problems: list[Problem]) -> list[Problem]:
    """The first problems, and how many more there are."""
    more = len(problems) - _LISTED
    if more <= 0:
        return problems
    return [*problems[:_LISTED], Problem("", "sources.more_problems", f"{more} more tensors have the same fault")]


def _shown(facts: TensorFacts | None) -> str:
    return "not there" if facts is None else f"{DTYPE_NAMES[facts.dtype]} {list(facts.shape)}"


def source_digests(sources: list[LoadedSource]) -> tuple[str, ...]:
    """SHA-256 of each source's contents."""
    return tuple(source.store.digest() for source in sources)


def check_finite(sources: list[LoadedSource]) -> None:
    """Reads every floating tensor once.

    Raises:
        CheckpointError: listing every tensor of every source that holds NaN or infinity.
    """
    problems = list(_not_finite(sources))
    if problems:
        raise CheckpointError(_listed(problems))


def _not_finite(sources: list[LoadedSource]) -> Iterator[Problem]:
    for source in sources:
        for name, facts in source.store.facts().items():
            stop_point()
            if not facts.floating or finite(source.store.read(name)):
                continue
            message = "holds NaN or infinity; leave this source out or train it again"
            yield Problem(f"{source.name}: {name}", "sources.not_finite", message)


def finite(tensor: Tensor) -> bool:
    """Whether a floating tensor holds neither NaN nor infinity."""
    # torch has no isfinite for 8-bit floats; widening any float keeps NaN and infinity.
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def differing_integers(sources: list[LoadedSource]) -> tuple[str, ...]:
    """Names of the integer and bool tensors that are not the same in all sources; the first source's are taken."""
    first, *others = sources
    return tuple(
        name
        for name, facts in first.store.facts().items()
        if not facts.floating
        and any(not torch.equal(first.store.read(name), other.store.read(name)) for other in others)
    )
