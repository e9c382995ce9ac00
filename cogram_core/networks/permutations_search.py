"""Finds groups of units by supposing that a module's rows form one, and following them through the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogram_core.networks.permutations_leaves import (
    Moves,
    Passing,
    Rows,
    cycle,
    divisors,
    moved,
    moves_between,
    passing,
    rows_of,
    swap,
)
from cogram_core.networks.permutations_wiring import (
    OUTPUT,
    Key,
    UnknownCallError,
    Wiring,
    floats,
    rearranged,
    with_floats,
)
from cogram_core.permuting import Axis
from cogram_core.stopping import stop_point

OUTPUTS = "its units are the network's outputs"
UNREAD = "nothing changes with the order of its units"
_BLOCKS = (1, 2, 3)  # gate and up; queries, keys and values
_MOST_APART = 8
_TOLERANCE = 1e-3  # of the largest output: float32's rounding after many layers is far below, a wrong order far above
_Passes = dict[Key, tuple[Moves, tuple[Axis, ...], Moves]]


@dataclass(frozen=True)
class Place:
    """Where units pass by: the floating argument number ``argument`` of a module's call number ``nth``, and its axis."""

    module: str
    nth: int
    argument: int
    axis: Axis


@dataclass(frozen=True)
class Found:
    """A group; tensors go by the module's names. See ``permutations.Group``."""

    units: int
    features: int
    axes: tuple[Axis, ...]
    writers: tuple[str, ...]
    readers: tuple[Place, ...]


def close(expected: Tensor, found: Tensor) -> bool:
    """Whether two outputs agree but for the rounding of a whole network."""
    return bool(((expected - found).abs() <= _TOLERANCE * expected.abs().max()).all())


class _ConflictError(Exception):
    """Something else than moved units arrives at ``key``; or, with ``makes``, its own units must move, too."""

    def __init__(self, key: Key, makes: bool = False) -> None:
        super().__init__(key)
        self.key, self.makes = key, makes


class _FailedError(Exception):
    """Units can't be permuted, for a reason."""


@dataclass
class _Trial:
    """One supposition: so many units, and in which shape they stand in the rows of each writer, ``before`` and ``after``."""

    units: int
    shape: tuple[int, int]
    rows: int
    writers: dict[str, tuple[int, int]]
    loose: dict[str, Axis | None]


class Search:
    """Tries writers one after the other; ``wiring`` holds random values."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._rows: dict[str, Rows] = {}
        for name in wiring.leaves:
            if wiring.calls_of(name) and (rows := rows_of(wiring, name)) is not None:
                self._rows[name] = rows
        self._groups: list[Found] = []
        self._taken: set[str] = set()
        self._shapes: dict[tuple[int, int, int], None] = {}
        self._hopeless: dict[str, str] = {}
        self._passing: dict[tuple[Key, int, tuple[tuple[int, Axis], ...]], Passing | None] = {}

    def groups(self) -> tuple[list[Found], dict[str, str]]:
        """All groups, front to back, and why other modules' rows are in none, by module."""
        left = {}
        for name in dict.fromkeys(key[0] for key in self._wiring.given):
            if name not in self._rows or name in self._taken:
                continue
            reason = self._try(name)
            if reason is not None:
                left[name] = reason
        found = self._groups
        if not self._holds(found):
            found = [group for group in self._groups if self._holds([group])]
            dropped = [group.writers for group in self._groups if group not in found]
            left |= {writers[0]: "the network's output depends on the order of its units" for writers in dropped}
        order = {key[0]: place for place, key in reversed(list(enumerate(self._wiring.given)))}
        return sorted(found, key=lambda group: order[group.writers[0]]), left

    def _holds(self, groups: Sequence[Found]) -> bool:
        """Whether the network itself gives the same with the units in two orders that together generate all."""
        for make in (cycle, swap):
            orders = [(axis, make(group.units)) for group in groups for axis in group.axes]
            with rearranged(self._wiring.tensors, orders):
                if not close(self._wiring.output, self._wiring.run()):
                    return False
        return True

    def _try(self, name: str) -> str | None:
        """Adds the group of a writer's rows in the finest units possible; else why there is none."""
        if name in self._hopeless:
            return self._hopeless[name]
        if name in self._wiring.feeds[OUTPUT]:
            return OUTPUTS
        if not any(name in feeding for feeding in self._wiring.feeds.values()):
            return "nothing is seen to read its units"
        rows = self._rows[name].units
        reason = "it has a single unit"
        tied = {name}
        for finest, (units, before, after) in enumerate(self._suppositions(rows)):
            # Those that moved with it before, which saves finding them again; of few perhaps not all have to.
            for members in [tied, {name}] if 1 < len(tied) <= _MOST_APART else [tied]:
                trial = _Trial(units, (before, after), rows, {}, {})
                try:
                    group = self._grow(trial, members)
                except _FailedError as error:
                    reason = str(error) if finest == 0 else reason
                    continue
                self._groups.append(group)
                self._taken.update(group.writers)
                self._shapes.setdefault((units, before, after))
                return None
            if reason == OUTPUTS:  # so they are in coarser units
                break
        if reason == OUTPUTS or len(tied) > _MOST_APART:
            self._hopeless |= dict.fromkeys(tied, reason)
        return reason

    def _suppositions(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """Units, before, after with the product ``rows``: single rows first, then what was true elsewhere, then the rest.

        Several rows side by side come before several blocks of rows, and of each many units before few.
        """
        yield rows, 1, 1
        known = [shape for shape in self._shapes if math.prod(shape) == rows and shape[0] != rows]
        yield from known
        for before in _BLOCKS:
            for units in reversed(divisors(rows // before)[1:] if rows % before == 0 else ()):
                shape = units, before, rows // units // before
                if shape not in known and units != rows:
                    yield shape

    def _grow(self, trial: _Trial, members: set[str]) -> Found:
        """Takes in more writers until the network's output is what it was; ``members`` has them even after a failure.

        Raises:
            _FailedError: if it can't be.
        """
        for member in sorted(members):
            self._join(trial, member)
        while True:
            stop_point()
            try:
                passes = self._pass(trial)
            except _ConflictError as conflict:
                found = {conflict.key[0]} if conflict.makes else self._makers(conflict.key)
                missing = found - trial.writers.keys() - trial.loose.keys()
                if not missing:
                    raise _FailedError(_mixed(conflict.key)) from conflict
                for member in sorted(missing):
                    members.add(member)
                    self._join(trial, member)
                continue
            except UnknownCallError:
                raise _FailedError("which modules are called depends on the order of its units") from None
            return self._group_of(trial, passes)

    def _makers(self, key: Key) -> set[str]:
        """The leaves with rows and the loose tensors that reach a call, those before leaves that hand units on included."""
        found: set[str] = set()
        waiting, seen = list(self._wiring.feeds.get(key, ())), set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self._rows or name not in self._wiring.leaves:
                found.add(name)
            else:
                for call in self._wiring.calls_of(name):
                    waiting.extend(self._wiring.feeds.get(call, ()))
        return found

    def _join(self, trial: _Trial, name: str) -> None:
        if name not in self._wiring.leaves:
            trial.loose[name] = self._loose_axis(trial, name)
            return
        rows = self._rows[name].units
        if name in self._taken:
            raise _FailedError(f"{name} is permuted with others")
        if rows % trial.units:
            raise _FailedError(f"{name} has {rows} units")
        trial.writers[name] = trial.shape if rows == trial.rows else (1, rows // trial.units)

    def _loose_axis(self, trial: _Trial, name: str) -> Axis | None:
        """The last dimension that can hold the units, one of as many entries as the first writer has rows before others."""
        shape = self._wiring.tensors[name].shape
        fitting = [dim for dim, size in enumerate(shape) if size % trial.units == 0]
        if not fitting:
            return None
        dim = max(fitting, key=lambda dim: (shape[dim] == trial.rows, dim))
        before, after = trial.shape if shape[dim] == trial.rows else (1, shape[dim] // trial.units)
        return Axis(name, dim, before, after)

    def _pass(self, trial: _Trial) -> _Passes:
        """One pass with the units moved: for each call what has moved of its arguments, its tensors' axes, its outputs.

        Raises:
            _ConflictError: where something arrives that is neither as it was nor moved as a whole.
            _FailedError: where a module can't take what arrives.
        """
        wiring, order = self._wiring, cycle(trial.units)
        passes: _Passes = {}

        def answer(key: Key, arguments: Any) -> Any:
            recorded = wiring.recorded(key)
            passes[key] = self._step(trial, key, arguments)
            moves = passes[key][2]
            values = [
                moved(value, moves[place], order) if place in moves else value
                for place, value in enumerate(floats(recorded))
            ]
            return with_floats(recorded, values)

        loose = [axis for axis in trial.loose.values() if axis is not None]
        with torch.no_grad(), wiring.rearranged(loose, order):
            output = wiring.force(answer)
        moves = moves_between(wiring.output, output, trial.units)
        if moves is None:
            raise _ConflictError(OUTPUT)
        if moves:
            raise _FailedError(OUTPUTS)
        self._check_shared(trial, passes)
        return passes

    def _check_shared(self, trial: _Trial, passes: _Passes) -> None:
        """A tensor that several calls use, of one module or of several, is in one order for all of them.

        Raises:
            _ConflictError: naming a call for which the tensor has yet to move.
        """
        moved_axes: dict[str, dict[Axis, None]] = {}
        for _, axes, _ in passes.values():
            for axis in axes:
                moved_axes.setdefault(axis.tensor, {})[axis] = None
        for key, (_, axes, _) in passes.items():
            name = key[0]
            for tensor in self._wiring.leaves[name]:
                rows = self._rows.get(name)
                for axis in moved_axes.get(tensor, ()):
                    if axis not in axes:
                        own = rows is not None and (axis.tensor, axis.dim) in rows.tensors
                        raise _ConflictError(key, makes=own and name not in trial.writers)

    def _step(self, trial: _Trial, key: Key, arguments: Any) -> tuple[Moves, tuple[Axis, ...], Moves]:
        wiring, name = self._wiring, key[0]
        arrived = moves_between(wiring.given[key], arguments, trial.units)
        if arrived is None:
            raise _ConflictError(key)
        axes: tuple[Axis, ...] = ()
        leaving: Moves = {}
        if arrived:
            known = key, trial.units, tuple(sorted(arrived.items()))
            if known not in self._passing:
                self._passing[known] = passing(wiring, key, arrived, trial.units)
            found = self._passing[known]
            if found is None:
                raise _FailedError(_mixed(key))
            axes, leaving = found.axes, found.moves
        if name in trial.writers:
            if leaving:
                raise _FailedError(f"{name} both hands its units on and makes them")
            shape = trial.writers[name]
            axes, leaving = axes + self._rows[name].axes(*shape), self._rows[name].moves(*shape)
        return arrived, axes, leaving

    def _group_of(self, trial: _Trial, passes: _Passes) -> Found:
        """The group of a pass that gave what it should.

        Raises:
            _FailedError: if nothing reads the units, or a tensor's are in another group.
        """
        axes = dict.fromkeys(axis for _, found, _ in passes.values() for axis in found)
        axes |= dict.fromkeys(axis for axis in trial.loose.values() if axis is not None)
        readers = self._distinct(
            Place(*key, argument, axis)
            for key, (arrived, _, leaving) in passes.items()
            for argument, axis in arrived.items()
            if not leaving or key[0] in trial.writers
        )
        used = {(axis.tensor, axis.dim) for group in self._groups for axis in group.axes}
        if not readers:
            raise _FailedError(UNREAD)
        if len({(axis.tensor, axis.dim) for axis in axes} - used) < len(axes):
            raise _FailedError("one of its tensors is permuted with others")
        writers = tuple(dict.fromkeys(key[0] for key in passes if key[0] in trial.writers))
        features = max(after for _, after in trial.writers.values())
        return Found(trial.units, features, tuple(axes), writers, tuple(readers))

    def _distinct(self, places: Iterable[Place]) -> list[Place]:
        """Without those at which the same arrives as at one before, such as queries, keys and values of one input."""
        kept: list[tuple[Place, Tensor]] = []
        for place in places:
            value = floats(self._wiring.given[place.module, place.nth])[place.argument]
            if not any(place.axis == other.axis and torch.equal(value, known) for other, known in kept):
                kept.append((place, value))
        return [place for place, _ in kept]


def _mixed(key: Key) -> str:
    who = key[0] or "the network's output"
    return f"{who} is given its units mixed with others"
