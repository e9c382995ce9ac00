"""Forward passes that stand still at chosen calls, so that others can go on beside them and tensors be exchanged between.

A pass that stands still holds what the rest of its computation needs and nothing else: no list of known modules is
needed, nothing is computed twice, and nothing is kept that the network itself doesn't keep. Each pass runs in a thread of
its own, for Python has no other way to leave a function in its middle; never do two run at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cogram_core.networks.calls import Call

Key = tuple[str, int]
ENDED = 2**62
"""Where a pass is that has come to its end."""

_running = threading.local()


class _ClosedError(BaseException):
    """Ends a forward pass that nobody wants any more; no ``except Exception`` on its way may stop it."""


@dataclass(frozen=True)
class Stops:
    """Calls at whose beginning or end a pass may stand still, by their place among all beginnings and ends of the pass.

    ``outputs`` has the calls whose outputs are kept until they are taken.
    """

    begins: Mapping[Key, int] = field(default_factory=dict)
    ends: Mapping[Key, int] = field(default_factory=dict)
    outputs: Collection[Key] = ()

    @classmethod
    def at(cls, begins: Sequence[Call] = (), ends: Sequence[Call] = (), outputs: Sequence[Call] = ()) -> Stops:
        """The stops at some calls."""
        return cls(
            {call.key: call.begin for call in begins},
            {call.key: call.end for call in ends},
            frozenset(call.key for call in outputs),
        )

    @property
    def modules(self) -> set[str]:
        """The modules that have to be watched."""
        return {name for name, _ in (*self.begins, *self.ends, *self.outputs)}


class Pass:
    """One forward pass on a batch, (N, ...). ``close`` it when it isn't wanted any more; ``watched`` lets it hear of calls.

    ``at`` is the place at which it stands still, −1 before it begins; ``given`` is the first tensor that the call there
    gets, where that is a beginning. ``outputs`` has what is kept.
    """

    def __init__(self, module: nn.Module, inputs: Tensor, stops: Stops) -> None:
        self.at = -1
        self.given: Tensor | None = None
        self.outputs: dict[Key, Any] = {}
        self._module = module
        self._inputs = inputs
        self._stops = stops
        self._target = ENDED
        self._counts: Counter[tuple[str, str]] = Counter()
        self._go, self._stand = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closed = False

    def advance(self, target: int) -> None:
        """Goes on to the first stop at ``target`` or behind it, or to the end.

        Raises:
            Exception: what the network's forward pass raises.
        """
        if self.at >= target:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="forward pass", daemon=True)
            self._thread.start()
        self._target, self.given = target, None
        self._go.release()
        self._stand.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the pass where it stands and lets go of all that it holds. Safe to call twice."""
        self._closed = True
        if self._thread is not None:
            self._go.release()
            self._thread.join()
            self._thread = None
        self.given, self.outputs = None, {}

    def _run(self) -> None:
        self._go.acquire()
        _running.now = self
        try:
            if not self._closed:
                with torch.no_grad():
                    self._module(self._inputs)
        except _ClosedError:
            pass
        except BaseException as error:  # handed over to the thread that waits
            self._error = error
        finally:
            self.at = ENDED
            self._stand.release()

    def _begins(self, name: str, given: Tensor | None) -> None:
        place = self._stops.begins.get(self._count(name, "begin"))
        if place is not None and place >= self._target:
            self.given = given
            self._pause(place)

    def _ends(self, name: str, output: Any) -> None:
        key = self._count(name, "end")
        place = self._stops.ends.get(key)
        stands = place is not None and place >= self._target
        if key in self._stops.outputs:
            # What comes next may work in place.
            self.outputs[key] = output if stands or not isinstance(output, Tensor) else output.clone()
        if place is not None and stands:
            self._pause(place)

    def _count(self, name: str, edge: str) -> Key:
        nth = self._counts[name, edge]
        self._counts[name, edge] += 1
        return name, nth

    def _pause(self, place: int) -> None:
        self.at = place
        self._stand.release()
        self._go.acquire()
        if self._closed:
            raise _ClosedError


@contextmanager
def watched(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside the block passes through ``module`` hear of the calls of the modules ``names`` inside it."""
    inner = dict(module.named_modules())
    handles = []
    for name in sorted(names):
        hook = inner[name].register_forward_pre_hook
        handles.append(hook(lambda _, args, named, name=name: _tell_begin(name, args, named), with_kwargs=True))
        handles.append(inner[name].register_forward_hook(lambda _, __, output, name=name: _tell_end(name, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tell_begin(name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    now: Pass | None = getattr(_running, "now", None)
    if now is not None:
        now._begins(name, first_tensor(arguments, named))


def _tell_end(name: str, output: Any) -> None:
    now: Pass | None = getattr(_running, "now", None)
    if now is not None:
        now._ends(name, output)


def first_tensor(arguments: Sequence[Any], named: Mapping[str, Any]) -> Tensor | None:
    """What a call works on: the first tensor that it is given."""
    return next((value for value in (*arguments, *named.values()) if isinstance(value, Tensor)), None)
