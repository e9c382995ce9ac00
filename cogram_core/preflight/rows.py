"""Text files of data: which kind a file is, JSON lines read strictly, and what Parquet's footer says. Free of libraries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cogram_core.checkpoints.strict_json import Bounds, Malformed, RepeatedKeys, parse_json
from cogram_core.errors import DatasetError, Problem

FileKind = Literal["safetensors", "lines", "parquet"]
TEXT = "text"
LABELS = ("label", "labels")
MAX_LINE = 2**20
"""Bytes of a line: no text of that length is read to its end by any network."""
MAX_ROWS = 10**7
_MAGIC = b"PAR1"
_LISTED = 20
# A row has two columns that count; others may stand beside them.
_BOUNDS = Bounds(depth=4, objects=64, arrays=64, strings=2000, commas=10_000)


@dataclass(frozen=True)
class Row:
    """One text and its class or value, None where the file has neither."""

    text: str
    label: int | float | None


class RowProblems:
    """What is wrong with a file's rows: the first ones, and how many there are."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._found: list[Problem] = []
        self.count = 0

    def add(self, row: int, message: str) -> None:
        """Notes what is wrong with a row; rows count from 1."""
        self.count += 1
        if len(self._found) < _LISTED:
            self._found.append(Problem(f"{self._place}: line {row}", "dataset.invalid_row", message))

    def raise_if_any(self) -> None:
        """One error with all that was noted.

        Raises:
            DatasetError: if anything was.
        """
        if self.count > _LISTED:
            message = f"{self.count - _LISTED} more lines are wrong; repair those above first"
            self._found.append(Problem(self._place, "dataset.more_problems", message))
        if self._found:
            raise DatasetError(self._found)


def kind_of(path: Path) -> FileKind:
    """Which kind of data file this is, by its first bytes: names of stored files say nothing."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(_MAGIC):
        return "parquet"
    # A safetensors file begins with the length of its header in eight bytes, the last ones of which are zero.
    return "lines" if head.lstrip()[:1] == b"{" and 0 not in head else "safetensors"


def read_lines(path: Path, place: str) -> list[Row]:
    """The rows of a file of JSON objects, one a line, with a ``text`` and perhaps a ``label`` or ``labels``.

    Raises:
        DatasetError: with the numbers of the first lines that are none, or if labels are there for some rows only.
    """
    problems, rows = RowProblems(place), []
    for number, line in enumerate(_lines(path, place), start=1):
        if not line.strip():
            continue
        row = _row(line, number, problems)
        if row is not None:
            rows.append(row)
    problems.raise_if_any()
    check_rows(rows, place)
    return rows


def check_rows(rows: list[Row], place: str) -> None:
    """Checks what only all rows together tell.

    Raises:
        DatasetError: if there is no row, or only some have labels.
    """
    without = sum(row.label is None for row in rows)
    if not rows:
        message = "holds no row; give one JSON object a line, with a text"
        raise DatasetError([Problem(place, "dataset.empty", message)])
    if 0 < without < len(rows):
        message = (
            f"{without} of {len(rows)} rows have no label; give every row one, or none (each next token is told then)"
        )
        raise DatasetError([Problem(place, "dataset.missing_labels", message)])


def label_of(values: dict[str, Any]) -> tuple[int | float | None, str]:
    """A row's label by the columns that may hold one, and what is wrong with it, empty if nothing is."""
    given = [values[name] for name in LABELS if values.get(name) is not None]
    if len(given) > 1:
        return None, "has both a label and labels; give one"
    label = given[0] if given else None
    if isinstance(label, bool) or not isinstance(label, int | float | None):
        return None, f"its label is a {type(label).__name__}; give the number of a class, or a value"
    if isinstance(label, float) and not math.isfinite(label):
        return None, "its label is no class from 0 on and no finite value; correct it"
    return label, ""


def _lines(path: Path, place: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number in range(1, MAX_ROWS + 2):
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                message = f"has more than {MAX_LINE:,} bytes; give one text a line"
                raise DatasetError([Problem(f"{place}: line {number}", "dataset.invalid_row", message)])
            yield line
    message = f"holds more than {MAX_ROWS:,} lines; take a part of them"
    raise DatasetError([Problem(place, "dataset.too_many_rows", message)])


def _row(line: bytes, number: int, problems: RowProblems) -> Row | None:
    try:
        values = parse_json(line, _BOUNDS)
    except Malformed as error:
        problems.add(number, error.message)
        return None
    except RecursionError:
        problems.add(number, "is nested too deep")
        return None
    fault = _fault(values)
    label, wrong = (None, "") if fault else label_of(values)
    if fault or wrong:
        problems.add(number, fault or wrong)
        return None
    return Row(values[TEXT], label)


def _fault(values: Any) -> str:
    if not isinstance(values, dict):
        return 'is no JSON object; write one a line, such as {"text": "…", "label": 0}'
    if isinstance(values, RepeatedKeys):
        return f"has the key {values.repeated[0]!r} twice; keep one"
    if not isinstance(values.get(TEXT), str):
        return f"has no {TEXT!r} that is a string; add it"
    return ""


def label_range(labels: Iterable[int | float | None]) -> tuple[int | None, int | None, bool]:
    """Least and greatest class, None where labels are values or not there; and whether they are values."""
    given = [label for label in labels if label is not None]
    if any(isinstance(label, float) for label in given):
        return None, None, True
    classes = [label for label in given if isinstance(label, int)]
    return (min(classes), max(classes), False) if classes else (None, None, False)
