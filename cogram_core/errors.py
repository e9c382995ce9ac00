"""Typed errors of the core, each with a stable code. Free of torch.

CogramError
├── InvalidInput           what the caller gave can't be used; lists every problem found
│   ├── RecipeError        the recipe document
│   ├── CheckpointError    a checkpoint's files or tensors
│   ├── DatasetError       evaluation, holdout, training or per-source data
│   ├── NetworkError       a checkpoint that can't be made to run, or doesn't fit its description
│   └── ReplayError        a trace that doesn't belong to these sources, or is damaged
├── OutputError            the output folder can't be written
└── FusionStopped          the observer asked to stop
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, a stable code, and a message that names the remedy."""

    location: str
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" if self.location else self.message


class CogramError(Exception):
    """Root of all errors the core raises on purpose."""

    code: ClassVar[str] = "cogram.error"


class InvalidInput(CogramError):
    """What the caller gave can't be used; ``problems`` lists all that was found, at least one."""

    code = "input.invalid"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def single(cls, location: str, code: str, message: str) -> InvalidInput:
        """The error with one problem."""
        return cls([Problem(location, code, message)])

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class RecipeError(InvalidInput):
    """The recipe document is not valid."""

    code = "recipe.invalid"


class CheckpointError(InvalidInput):
    """A checkpoint's files or tensors can't be used."""

    code = "checkpoint.invalid"


class DatasetError(InvalidInput):
    """Evaluation, holdout, training or per-source data can't be used."""

    code = "dataset.invalid"


class NetworkError(InvalidInput):
    """A checkpoint can't be made to run, or doesn't fit its description."""

    code = "network.invalid"


class ReplayError(InvalidInput):
    """A trace doesn't belong to these sources, or is damaged."""

    code = "replay.invalid"


class OutputError(CogramError):
    """The output folder can't be written."""

    code = "output.failed"


class FusionStopped(CogramError):
    """The observer asked to stop; nothing was written."""

    code = "fusion.stopped"
