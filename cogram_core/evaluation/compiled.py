"""Losses and visits by compiled code, where what follows a layer is a classifier's plain end.

``rank_one.c`` has the arithmetic, ``visits.c`` the visits. They are built with the package where there is a C compiler;
without it, or where the network ends in another way, the same decisions come from torch, only later.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor, nn

from cogram_core.evaluation.batches import Ending
from cogram_core.evaluation.columns import Columns
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates, Pool
from cogram_core.evaluation.visits import Did, Rules, Run, Visited
from cogram_core.networks.calls import ELEMENTWISE
from cogram_core.networks.layers import Level
from cogram_core.stopping import stop_point

_STEM = "_rank_one"
_VERSION = 4  # as visits.c has it
_LANES = 16
_MOST_CLASSES = 128  # as rank_one.c has it; more are better served by a matrix product
_FUNCTIONS = ("identity", "relu")
# Multiplications between two stop points: a tenth of a second, about.
_AT_ONCE = 2**30
# In multiplications: an example's loss, each class of it, and each feature of an example that a whole neuron is given, which
# comes from memory.
_LOSS, _CLASS, _FEATURE = 512, 32, 8


def _structure(*members: tuple[type, str]) -> type[ctypes.Structure]:
    """A structure of C's by its members' types and names."""
    fields = [(name, kind) for kind, names in members for name in names.split()]
    return type("_Structure", (ctypes.Structure,), {"_fields_": fields})


_INTEGER, _NUMBER, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
_End = _structure(
    (_INTEGER, "examples width classes padded rectified"),
    (_POINTER, "output own arriving directions weight bias targets weights base"),
)
_Batch = _structure((_INTEGER, "count"), (_POINTER, "levels picks rows losses means"))
_Visits = _structure(
    (_INTEGER, "first count level width inputs block rows candidates sources known steps single threads"),
    (_POINTER, "current values same levels features handicaps step"),
    (_NUMBER, "steepness below loss"),
    (_POINTER, "losses shares last_step after did"),
)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, if it was built from this version's source."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(_STEM + suffix)
        if path.is_file():
            return _loaded(path)
    return None


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.cogram_rank_one_version.restype = _INTEGER
        if loaded.cogram_rank_one_version() != _VERSION:
            return None
        loaded.cogram_losses.argtypes = (_POINTER, _POINTER, _INTEGER)
        loaded.cogram_losses.restype = None
        loaded.cogram_move.argtypes = (
            *(_POINTER, _INTEGER, _INTEGER, _POINTER, _INTEGER, _INTEGER, _POINTER, _INTEGER),
        )
        loaded.cogram_visit.argtypes = (_POINTER, _POINTER)
    except (OSError, AttributeError):  # built for another machine, or long ago
        return None
    return loaded


class CompiledProbe:
    """A layer's neurons on all examples: losses of candidates, moves, and visits.

    What follows Z, the last linear layer that a neuron reaches by a linear map, is nothing, or a ReLU and one more linear
    layer; then cross-entropy.
    """

    def __init__(
        self, loaded: ctypes.CDLL, endings: Sequence[Ending], last: nn.Linear | None, examples: Dataset
    ) -> None:
        first = endings[0]
        self._library = loaded
        self._columns = Columns.joined([ending.columns for ending in endings])
        self._function = ELEMENTWISE[first.function]
        self._pooled: tuple[Pool, Tensor] | None = None
        output = torch.cat([ending.output for ending in endings]).contiguous()
        width = output.shape[1]
        classes = width if last is None else last.out_features
        padded = 0 if last is None else -classes % _LANES + classes
        weights = torch.ones(len(examples), dtype=torch.float64) if examples.weights is None else examples.weights
        directions = torch.eye(width, dtype=torch.float64) if first.directions is None else first.directions
        own = self._columns.current
        arriving = self._function(own)
        tensors = (
            *(output, own, own.clone() if arriving is own else arriving, directions.contiguous()),
            *((None, None) if last is None else _padded(last, padded)),
            *(examples.targets.contiguous(), (weights / weights.sum()).contiguous()),
            torch.cat([ending.losses for ending in endings]),
        )
        self._kept = tensors  # what C points to
        integers = (len(output), width, classes, padded, int(first.function == "relu"))
        self._end = _End(*integers, *(None if tensor is None else tensor.data_ptr() for tensor in tensors))
        # Multiplications a candidate, about.
        self._work = len(output) * (width * (padded + 1) + _LOSS + _CLASS * classes)

    @classmethod
    def of(cls, endings: Sequence[Ending | None], examples: Dataset) -> CompiledProbe | None:
        """The probe of a layer whose ending, batch by batch of all the examples, is one of these; None if it isn't."""
        loaded, known = library(), [ending for ending in endings if ending is not None]
        if loaded is None or len(known) < len(endings) or examples.loss != "cross_entropy":
            return None
        first = known[0]
        fits = first.output.ndim == 2 and first.output.dtype == torch.float64 and first.output.device.type == "cpu"
        if not fits or first.chain is None or first.function not in _FUNCTIONS or not first.columns.of_vectors:
            return None
        chain = [module for module in first.chain if type(module) not in (nn.Identity, nn.Dropout)]
        last = chain[1] if [type(module) for module in chain] == [nn.ReLU, nn.Linear] else None
        classes = last.out_features if isinstance(last, nn.Linear) else first.output.shape[1]
        if (chain and last is None) or classes > _MOST_CLASSES:
            return None
        # Changes are added to what there is, and what isn't finite stays so.
        if not all(ending.output.isfinite().all() and ending.columns.current.isfinite().all() for ending in known):
            return None
        return cls(loaded, known, last if isinstance(last, nn.Linear) else None, examples)

    def effort(self) -> int:
        """See ``Probe.effort``."""
        return self._end.examples * self._end.width  # type: ignore[no-any-return]

    def losses(self, candidates: Candidates) -> tuple[Tensor, list[float]]:
        """Each example's loss under each candidate, float64 (K, N), and their means over the examples."""
        parts, means = [], []
        step = max(1, _AT_ONCE // self._work)
        for first in range(0, len(candidates), step):
            stop_point()
            found, mean = self._losses(candidates.part(first, first + step))
            parts.append(found)
            means += mean.tolist()
        return torch.cat(parts) if len(parts) > 1 else parts[0], means

    def _losses(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        pool, picks = candidates.pool, candidates.picks
        if pool is None or picks is None or not self._columns.fits(pool):
            levels, picks = self._function(self._columns.of(candidates)).contiguous(), None
        else:
            levels = self._levels_of(pool)
        rows = candidates.rows.contiguous()
        losses = torch.empty(len(rows), self._columns.current.shape[1], dtype=torch.float64)
        means = torch.empty(len(rows), dtype=torch.float64)
        # Read as they lie in memory; rows and picks of a window of one unit are every so many of a wider array's.
        picks = None if picks is None else picks.contiguous()
        pointers = (levels, picks, rows, losses, means)
        batch = _Batch(len(rows), *(None if tensor is None else tensor.data_ptr() for tensor in pointers))
        self._library.cogram_losses(ctypes.byref(self._end), ctypes.byref(batch), torch.get_num_threads())
        return losses, means

    def _levels_of(self, pool: Pool) -> Tensor:
        if self._pooled is None or self._pooled[0] is not pool:
            self._pooled = pool, self._function(self._columns.of_pool(pool)).contiguous()
        return self._pooled[1]

    def move(self, candidates: Candidates, place: int) -> None:
        """The candidate at ``place`` is about to be in the network.

        Raises:
            MemoryError: if there is none left.
        """
        moved = candidates.part(place, place + 1)
        numbers = moved.numbers if moved.columns is None else self._columns.change(moved)
        numbers = numbers.double().contiguous()
        column = -1 if candidates.columns is None else int(candidates.columns[place])
        inputs, width = self._columns.sizes
        features = self._columns.features.data_ptr()
        row, threads = int(candidates.rows[place]), torch.get_num_threads()
        failed = self._library.cogram_move(
            ctypes.byref(self._end), row, column, numbers.data_ptr(), inputs, width, features, threads
        )
        if failed:
            raise MemoryError("no memory to put a candidate into the network")

    def most(self, level: Level, losses: int) -> int:
        """How many units, of so many losses each at most, to have visited at once, so that a stop is heard soon."""
        features = 1 if level == "weight" else _FEATURE * self._columns.sizes[0]
        return max(1, _AT_ONCE // ((self._work + features * self._columns.current.shape[1]) * losses))

    def visit(self, run: Run, rules: Rules) -> Visited:
        """Visits units one after the other, and takes account of those that are merged; the caller changes the network.

        Raises:
            MemoryError: if there is none left.
        """
        count, candidates = run.count, len(run.values)
        losses, shares = (torch.empty(count, candidates, dtype=torch.float64) for _ in range(2))
        steps, after = (torch.empty(count, dtype=torch.float64) for _ in range(2))
        did = torch.empty(count, dtype=torch.int64)
        levels = None
        if run.level == "neuron" and self._columns.fits(run.pool):
            levels = self._levels_of(run.pool)
        given = tuple(torch.tensor(numbers, dtype=torch.float64) for numbers in (rules.handicaps, rules.steps))
        inputs, width = self._columns.sizes
        known = -1 if rules.known is None else rules.known
        visits = _Visits(
            *(run.first, count, int(run.level == "weight"), width, inputs, run.block, len(run.current), candidates),
            *(rules.sources, known, len(rules.steps), int(run.single), torch.get_num_threads()),
            *(run.current.data_ptr(), run.values.data_ptr(), run.same.data_ptr()),
            *(None if levels is None else levels.data_ptr(), self._columns.features.data_ptr()),
            *(tensor.data_ptr() for tensor in given),
            *(rules.steepness, rules.below, run.loss),
            *(tensor.data_ptr() for tensor in (losses, shares, steps, after, did)),
        )
        if self._library.cogram_visit(ctypes.byref(self._end), ctypes.byref(visits)):
            raise MemoryError("no memory for visits of neurons or weights")
        return Visited(
            [Did(what) for what in did.tolist()],
            [tuple(row) for row in losses.tolist()],
            [tuple(row) for row in shares.tolist()],
            steps.tolist(),
            after.tolist(),
        )


def _padded(last: nn.Linear, width: int) -> tuple[Tensor, Tensor]:
    """A linear layer's weight, transposed, (in, width), and bias, (width,), filled up with zeros."""
    weight = torch.zeros(last.in_features, width, dtype=torch.float64)
    weight[:, : last.out_features] = last.weight.detach().t()
    bias = torch.zeros(width, dtype=torch.float64)
    if last.bias is not None:
        bias[: last.out_features] = last.bias.detach()
    return weight, bias
