"""What is asked of a trace; it goes from the API to the process that reads the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Filters:
    """Which decisions are wanted; None takes all."""

    layer: str | None = None
    kind: str | None = None
    action: str | None = None

    def __bool__(self) -> bool:
        return bool(self.wanted)

    def accept(self, row: Mapping[str, Any]) -> bool:
        """Whether the decision is wanted."""
        return all(row[column] == value for column, value in self.wanted.items())

    @property
    def wanted(self) -> dict[str, str]:
        """The values that some columns must have."""
        return {column: value for column, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class TraceQuery:
    """One question: which file, as what, which decisions, from which row on, how many."""

    path: str
    form: Literal["lines", "parquet", "summary"]
    filters: Filters = Filters()
    start: int = 0
    limit: int | None = None

    def as_json(self) -> str:
        """For the reader's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What ``as_json`` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "filters": Filters(**fields["filters"])})
