"""Reads a trace.parquet row group by row group, so that memory doesn't grow with the trace.

For the process that reads traces (``trace_reader``): pyarrow is loaded with the first call, and would make the API large.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from app.fusions.trace_query import Filters

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_BATCH_ROWS = 1000
_HIDDEN = "payload"  # packed shares of single weights, trained or solved values: for replay, not for readers
_ACCEPTED = {"merged", "solved", "aligned"}


@dataclass
class LayerTally:
    """Counts of one layer, while its decisions go by."""

    visits: int = 0
    accepted: int = 0
    trained: int = 0
    rolled_back: int = 0
    skipped: int = 0
    loss_gained: float = 0.0
    share_sums: list[float] = field(default_factory=list)
    shared: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """One more decision."""
        self.visits += 1
        self.trained += row["action"] == "trained"
        self.rolled_back += row["action"] == "rolled_back"
        self.skipped += row["action"] == "skipped"
        if row["action"] not in _ACCEPTED:
            return
        self.accepted += 1
        gained = (row["loss_before"] or 0.0) - (row["loss_after"] or 0.0)
        told = row["loss_before"] is not None and row["loss_after"] is not None
        if row["action"] == "merged" and told and math.isfinite(gained):
            self.loss_gained += gained
        if row["shares"]:
            self.shared += 1
            self.share_sums = self.share_sums or [0.0] * len(row["shares"])
            self.share_sums = [total + share for total, share in zip(self.share_sums, row["shares"], strict=True)]

    def counts(self) -> dict[str, Any]:
        """Plain data; the mean shares of each source over the accepted decisions that mixed, none where none did."""
        return {
            "visits": self.visits,
            "accepted": self.accepted,
            "trained": self.trained,
            "rolled_back": self.rolled_back,
            "skipped": self.skipped,
            "loss_gained": self.loss_gained,
            "mean_shares": [total / self.shared for total in self.share_sums],
        }


def lines(path: Path, filters: Filters, start: int = 0) -> Iterator[tuple[int, str]]:
    """The wanted decisions as JSON lines, each with its place in the file, from row ``start`` on."""
    with _opened(path) as file:
        columns = [name for name in file.schema_arrow.names if name != _HIDDEN]
        for first, batch in _batches(file, columns, start):
            for place, row in enumerate(batch.to_pylist(), first):
                if place >= start and filters.accept(row):
                    yield place, json.dumps(_finite(row), ensure_ascii=False) + "\n"


def pieces(path: Path, filters: Filters, start: int) -> Iterator[str]:
    """All wanted decisions from row ``start`` on, some hundred lines at a time."""
    gathered: list[str] = []
    for _, line in lines(path, filters, start):
        gathered.append(line)
        if len(gathered) == _BATCH_ROWS:
            yield "".join(gathered)
            gathered = []
    yield "".join(gathered)


def page(path: Path, filters: Filters, start: int, limit: int) -> tuple[str, int | None]:
    """Up to ``limit`` decisions, and the row where the next page begins; None at the end."""
    gathered: list[str] = []
    for place, line in lines(path, filters, start):
        if len(gathered) == limit:
            return "".join(gathered), place
        gathered.append(line)
    return "".join(gathered), None


def filtered_copy(path: Path, filters: Filters) -> IO[bytes]:
    """A Parquet file of the wanted decisions, open at its begin; it is gone once it is closed."""
    import pyarrow.parquet

    copy = tempfile.TemporaryFile()  # noqa: SIM115 - whoever reads it closes it
    try:
        with _opened(path) as file, pyarrow.parquet.ParquetWriter(copy, file.schema_arrow, compression="zstd") as out:
            for _, batch in _batches(file, file.schema_arrow.names, 0):
                out.write_batch(batch.filter(pyarrow.array(_mask(batch, filters))))
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def tally(path: Path) -> dict[str, LayerTally]:
    """Every layer's counts, in the order in which the layers were first visited."""
    found: dict[str, LayerTally] = {}
    columns = ["layer", "action", "shares", "loss_before", "loss_after"]
    with _opened(path) as file:
        for _, batch in _batches(file, columns, 0):
            for row in batch.to_pylist():
                found.setdefault(row["layer"], LayerTally()).add(row)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield file


def _batches(
    file: pyarrow.parquet.ParquetFile, columns: list[str], start: int
) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
    """The file's batches, each with the place of its first row; row groups before ``start`` are not read."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows <= start:
            first += rows
            continue
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            yield first, batch
            first += batch.num_rows


def _mask(batch: pyarrow.RecordBatch, filters: Filters) -> list[bool]:
    """Which rows of the batch are wanted."""
    return [filters.accept(row) for row in batch.select([*filters.wanted]).to_pylist()]


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {key: _finite_value(value) for key, value in row.items()}


def _finite_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite_value(inner) for inner in value]
    return value
