"""The trace: every decision of a run, in order. Free of torch.

A finished run's trace is one Parquet file (zstd) with a row a decision and, in its metadata, what ``replay`` needs beside
the sources. While the run goes the same columns stand in its ``journal``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cogram_core.errors import Problem, ReplayError

UnitKind = Literal["tensor", "layer", "neuron", "weight"]
Action = Literal["merged", "solved", "aligned", "trained", "refined", "rolled_back", "skipped"]

METADATA_KEY = b"cogram"
VERSION = 1
"""Of a trace's columns and of what they mean; it stands in the metadata."""
_METADATA = {"version", "recipe", "sources", "written", "verdict"}
_BATCH_ROWS = 512


@dataclass(frozen=True, slots=True)
class Decision:
    """One merge, refinement, rollback or skip of one unit, with the losses that led to it. Losses are in nats.

    A training stage has one row a tensor and phase, with the losses on the training data before and after the phase. A
    tensor that is *solved* for comes from statistics of activations, and ``loss_before`` and ``loss_after`` are mean squared
    residuals of its layer's output: of the weighted average, and of what was found. *Aligned* are a layer's hidden units:
    the sources' are put in another order for all later stages.

    ``row`` is the neuron's index; ``column`` is there for single weights, and counts the neuron's numbers, the bias last.
    ``shares`` has one number a source, and one an extra candidate of CoGraM's; ``payload`` holds shares that differ from
    weight to weight, as ``mixing.pack_shares`` writes them, the values of a trained or solved tensor, as
    ``payload.pack_values`` does, or an order of units, as ``permuting.pack_alignment`` does. ``step`` is how much of the way
    from the old value to the mix was gone, None for a data-driven method's mix of whole tensors by ``shares`` alone.
    ``elapsed`` is in seconds since the run began.
    """

    seq: int
    stage: int
    method: str
    sweep: int
    layer: str
    kind: UnitKind
    row: int | None
    column: int | None
    loss_before: float | None
    loss_sources: tuple[float, ...] | None
    spread: float | None
    shares: tuple[float, ...] | None
    step: float | None
    action: Action
    loss_after: float | None
    reason: str
    elapsed: float
    payload: bytes | None = None


SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("stage", pa.int32(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("sweep", pa.int32(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("row", pa.int64()),
        pa.field("column", pa.int64()),
        pa.field("loss_before", pa.float64()),
        pa.field("loss_sources", pa.list_(pa.float64())),
        pa.field("spread", pa.float64()),
        pa.field("shares", pa.list_(pa.float64())),
        pa.field("step", pa.float64()),
        pa.field("action", pa.string(), nullable=False),
        pa.field("loss_after", pa.float64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("elapsed", pa.float64(), nullable=False),
        pa.field("payload", pa.large_binary()),
    ]
)


class Trace:
    """A finished trace: a Parquet file, read row group by row group; or its bytes, for runs in memory."""

    def __init__(self, source: Path | bytes) -> None:
        """Opens the file.

        Raises:
            ReplayError: if it is not a trace.
        """
        self._place = str(source) if isinstance(source, Path) else "trace"
        with self._readable():
            content = pa.BufferReader(source) if isinstance(source, bytes) else source
            self._file = pq.ParquetFile(content, page_checksum_verification=True)
            schema = self._file.schema_arrow
        metadata = _metadata(schema)
        if metadata is None or not schema.equals(SCHEMA):
            message = "a Parquet file, but not the trace of a fusion; give the trace.parquet of its output folder"
            raise ReplayError([Problem(self._place, "replay.not_a_trace", message)])
        self.metadata: dict[str, Any] = metadata

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def decisions(self) -> Iterator[Decision]:
        """Every decision, in order.

        Raises:
            ReplayError: if the file is damaged.
        """
        groups = range(self._file.num_row_groups)
        # Each by itself: a batch across groups could hold the payloads of all of them.
        batches = chain.from_iterable(self._file.iter_batches(_BATCH_ROWS, row_groups=[group]) for group in groups)
        while True:
            with self._readable():
                batch = next(batches, None)
                rows = [] if batch is None else list(decisions_of(batch))
            if batch is None:
                return
            yield from rows

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, pa.ArrowException) as error:
            message = f"not a readable trace: {error}; give the trace.parquet of a fusion's output folder"
            raise ReplayError([Problem(self._place, "replay.unreadable", message)]) from error


def _metadata(schema: pa.Schema) -> dict[str, Any] | None:
    """What a trace says beside its rows; None where that isn't what ``replay`` needs."""
    try:
        metadata = json.loads((schema.metadata or {})[METADATA_KEY])
    except (KeyError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) and metadata.keys() >= _METADATA else None


def decisions_of(batch: pa.RecordBatch) -> Iterator[Decision]:
    """The rows of a batch."""
    for row in batch.to_pylist():
        yield Decision(**{**row, **{key: _tuple(row[key]) for key in ("loss_sources", "shares")}})


def _tuple(value: list[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(value)
