"""The guard: scores every candidate on the holdout set, and says which one is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.scores import Score, score
from cogram_core.mixing import plain_average
from cogram_core.networks.network import Network
from cogram_core.recipe import Guard


@dataclass(frozen=True)
class Choice:
    """What is written: a source, the plain average, or the network after the first ``seq`` decisions of the trace."""

    kind: Literal["source", "average", "stage"]
    label: str
    source: int | None = None
    seq: int = 0

    def to_document(self) -> dict[str, Any]:
        """Plain data."""
        return {"kind": self.kind, "label": self.label, "source": self.source, "seq": self.seq}


@dataclass(frozen=True)
class Candidate:
    """A network that could be written, with its scores."""

    choice: Choice
    holdout: Score | None
    evaluation: Score | None

    def to_document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **self.choice.to_document(),
            "holdout": None if self.holdout is None else self.holdout.to_document(),
            "evaluation": None if self.evaluation is None else self.evaluation.to_document(),
        }


class Jury:
    """Collects candidates in the order in which they come up."""

    def __init__(
        self,
        guard: Guard,
        network: Network,
        evaluation: Dataset | None,
        holdout: Dataset | None,
        output_dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self.candidates: list[Candidate] = []
        self._guard = guard
        self._network = network
        self._evaluation = evaluation
        self._holdout = holdout
        self._output_dtypes = output_dtypes

    def hear(self, choice: Choice) -> None:
        """Scores the network as it stands, rounded as it would be written; without a holdout set nothing is compared."""
        if self._holdout is None:
            return
        with as_written(self._network, self._output_dtypes):
            holdout = score(self._network, self._holdout)
            evaluation = None if self._evaluation is None else score(self._network, self._evaluation)
        self.candidates.append(Candidate(choice, holdout, evaluation))

    def choose(self, final: Choice) -> Choice:
        """The candidate to be written: with the guard on the best on holdout, on ties the later one; else ``final``."""
        if self._guard.mode != "best_on_holdout":
            return final
        best = min(self._value(candidate) for candidate in self.candidates)
        return next(c.choice for c in reversed(self.candidates) if self._value(c) == best)

    def _value(self, candidate: Candidate) -> float:
        assert candidate.holdout is not None
        return candidate.holdout.criterion(self._guard.criterion)

    def verdict(self, written: Choice) -> dict[str, Any]:
        """What was found, in numbers and plain words."""
        document = verdict_document(self._guard, written)
        document["candidates"] = [candidate.to_document() for candidate in self.candidates]
        if not self.candidates:
            return document
        # The written choice may have been heard more than once under equal sequence numbers; the last is the same network.
        chosen = next(c for c in reversed(self.candidates) if c.choice == written)
        sources = [c for c in self.candidates if c.choice.kind == "source"]
        strongest = min(sources, key=self._value)
        beats = self._value(chosen) < self._value(strongest)
        document["fused_beats_all_sources"] = beats
        document["summary"] = _words(self._guard, chosen, strongest, beats)
        return document


def verdict_document(guard: Guard, written: Choice) -> dict[str, Any]:
    """The verdict of a run in which nothing was compared."""
    return {
        "mode": guard.mode,
        "criterion": guard.criterion,
        "written": written.to_document(),
        "fused_beats_all_sources": None,
        "summary": f"{written.label} was written; nothing was compared, for the guard is off.",
        "candidates": [],
    }


def _words(guard: Guard, chosen: Candidate, strongest: Candidate, beats: bool) -> str:
    what = guard.criterion.replace("_", " ")
    numbers = f"holdout {what} {_shown(chosen, guard)}, best source {strongest.choice.label} {_shown(strongest, guard)}"
    if chosen.choice.kind == "source":
        return f"Nothing was better than the source {chosen.choice.label}, so it was written unchanged ({numbers})."
    if chosen.choice.kind == "average":
        return f"Nothing was better than the plain average, so it was written ({numbers})."
    if beats:
        return f"{chosen.choice.label} was written and beats every source ({numbers})."
    relation = (
        "is level with" if chosen.choice.kind == "stage" and _equal(chosen, strongest, guard) else "is worse than"
    )
    return f"{chosen.choice.label} was written; it {relation} the best source ({numbers})."


def _equal(one: Candidate, other: Candidate, guard: Guard) -> bool:
    assert one.holdout is not None
    assert other.holdout is not None
    return one.holdout.criterion(guard.criterion) == other.holdout.criterion(guard.criterion)


def _shown(candidate: Candidate, guard: Guard) -> str:
    assert candidate.holdout is not None
    return f"{abs(candidate.holdout.criterion(guard.criterion)):.4f}"


@contextmanager
def as_written(network: Network, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Inside the block every tensor has the value it would have after being written and read again."""
    kept: dict[str, Tensor] = {}
    for name in network.names:
        tensor = network.tensor(name)
        if dtypes[name] != tensor.dtype:
            kept[name] = tensor.clone()
            tensor.copy_(tensor.to(dtypes[name]))
    try:
        yield
    finally:
        for name, tensor in kept.items():
            network.tensor(name).copy_(tensor)


def hear_inputs(jury: Jury, network: Network, states: list[tuple[str, Callable[[str], Tensor]]]) -> None:
    """Scores every source and the plain average, before any stage."""
    for place, (label, read) in enumerate(states):
        network.load(read)
        jury.hear(Choice("source", label, source=place))
    network.load(lambda name: plain_average((read(name) for _, read in states), len(states)))
    jury.hear(Choice("average", "plain average"))
