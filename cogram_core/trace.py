"""The trace: every decision of a run, in order. Free of torch.

While a run goes its rows stand in a *journal*, an Arrow IPC stream that stays readable up to its last complete batch
whatever happens to the process, and from which a later run goes on. A finished run's trace is one Parquet file (zstd)
with the same columns and, in its metadata, what ``replay`` needs beside the sources.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cogram_core.errors import OutputError, Problem, ReplayError

UnitKind = Literal["tensor", "layer", "neuron", "weight"]
Action = Literal["merged", "trained", "refined", "rolled_back", "skipped"]

METADATA_KEY = b"cogram"
VERSION = 1
"""Of a trace's columns and of what they mean; it stands in the metadata."""
JOURNAL_NAME = "trace.journal"
_CHECKSUM_KEY = b"crc32"
_METADATA = {"version", "recipe", "sources", "written", "verdict"}
_BATCH_ROWS = 512
_BATCH_SECONDS = 1.0
_BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Decision:
    """One merge, refinement, rollback or skip of one unit, with the losses that led to it. Losses are in nats.

    A training stage has one row a tensor and phase, with the losses on the training data before and after the phase.
    ``row`` is the neuron's index; ``column`` is there for single weights, and counts the neuron's numbers, the bias last.
    ``shares`` has one number a source, and one an extra candidate of CoGraM's; ``payload`` holds shares that differ from
    weight to weight, as ``mixing.pack_shares`` writes them, or the values of a trained tensor, as ``payload.pack_values``
    does. ``step`` is how much of the way from the old value to the mix was gone. ``elapsed`` is in seconds since the run
    began.
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
_COLUMNS = tuple(field.name for field in fields(Decision))


def _batch(decisions: list[Decision]) -> pa.RecordBatch:
    columns = {name: [getattr(decision, name) for decision in decisions] for name in _COLUMNS}
    return pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


class Journal:
    """Writes decisions as the run goes, in batches; the row that comes a second after a batch's first completes it.

    ``identity`` says what run it is of; it stands at the head of the file. A file of that path is replaced.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any] | None = None) -> None:
        self.path = path
        if path.is_file():
            path.unlink()  # not emptied: this run may be about to go on from what stands in it, and has it open
        self._file = path.open("wb")
        head = {METADATA_KEY: json.dumps(identity or {}, sort_keys=True).encode()}
        self._stream = pa.ipc.new_stream(self._file, SCHEMA.with_metadata(head))
        self._file.flush()
        self._waiting: list[Decision] = []
        self._waiting_bytes = 0
        self._oldest = 0.0
        self._count = 0

    def append(self, decision: Decision) -> None:
        """Takes one more row."""
        size = len(decision.payload or b"")
        if self._waiting_bytes + size > _BATCH_BYTES:
            self.flush()  # a payload as large as a page of Parquet may be has to have one for itself
        if not self._waiting:
            self._oldest = time.monotonic()
        self._waiting.append(decision)
        self._waiting_bytes += size
        self._count += 1
        late = time.monotonic() - self._oldest > _BATCH_SECONDS
        if late or len(self._waiting) >= _BATCH_ROWS or self._waiting_bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hands all rows taken so far to the operating system, as one complete batch."""
        if self._waiting:
            batch = _batch(self._waiting)
            self._stream.write_batch(batch, custom_metadata={_CHECKSUM_KEY: _checksum(batch)})
            self._file.flush()
            self._waiting, self._waiting_bytes = [], 0

    def close(self) -> None:
        """Ends the stream. Safe to call twice."""
        if not self._file.closed:
            self.flush()
            self._stream.close()
            self._file.close()

    def decisions(self) -> Iterator[Decision]:
        """Every decision taken so far, read back from the file."""
        self.flush()
        for batch in read_journal(self.path):
            yield from decisions_of(batch)

    def finish(self, target: Path, metadata: Mapping[str, Any]) -> None:
        """Ends the stream, writes its rows, batch by batch, as a Parquet file with ``metadata``.

        Raises:
            OutputError: if the file can't be written, or not all rows can be read again.
        """
        self.close()
        schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
        count = 0
        try:
            with pq.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True) as writer:
                for batch in read_journal(self.path):
                    writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
                    count += batch.num_rows
        except (OSError, MemoryError, pa.ArrowException) as error:
            raise OutputError(f"{target}: can't be written ({error}); check that there is room") from error
        if count != self._count:
            message = f"{self.path}: only {count} of {self._count} decisions can be read again; check the disk"
            raise OutputError(message)


def read_journal(path: Path) -> Iterator[pa.RecordBatch]:
    """The complete batches of a journal; a batch that was cut off or damaged ends it."""
    with path.open("rb") as file:
        yield from journal_batches(file)


def journal_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    """See ``read_journal``; of an open file, from its start."""
    file.seek(0)
    try:
        with pa.ipc.open_stream(file) as stream:
            while stream.schema.equals(SCHEMA):
                batch, metadata = stream.read_next_batch_with_custom_metadata()
                batch.validate(full=True)  # before its offsets are followed
                if metadata is None or metadata.get(_CHECKSUM_KEY) != _checksum(batch):
                    return
                yield batch
    except _UNREADABLE:
        return


def journal_identity(file: BinaryIO) -> Any:
    """What an open journal says of the run that wrote it; None where it is not a journal of this format."""
    file.seek(0)
    try:
        with pa.ipc.open_stream(file) as stream:
            schema = stream.schema
            return json.loads((schema.metadata or {})[METADATA_KEY]) if schema.equals(SCHEMA) else None
    except (*_UNREADABLE, KeyError, ValueError):
        return None


# What Arrow raises on damage: lengths in it may ask for any amount of memory, and the end of a stream is one error more.
_UNREADABLE = (pa.ArrowException, OSError, MemoryError, OverflowError, StopIteration)


def _checksum(batch: pa.RecordBatch) -> bytes:
    """Arrow has none of its own, and a decision read wrong would be carried out wrong."""
    return str(zlib.crc32(batch.serialize())).encode()


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


class Past:
    """The decisions of an earlier, killed run of the same recipe on the same inputs, to be gone through again.

    Read only as they are asked for. ``taken`` counts those that were taken over, ``left`` those that are still there.
    """

    def __init__(
        self,
        decisions: Iterable[Decision],
        count: int,
        again: Callable[[Decision], None],
        ended: Callable[[int], object],
    ) -> None:
        self.left = count
        self.taken = 0
        self._decisions = islice(decisions, count)
        self._again = again
        self._ended = ended
        self._next: deque[Decision] = deque()

    def upcoming(self, count: int) -> Sequence[Decision]:
        """The next decisions, ``count`` at most; fewer only where there are no more. They stay where they are."""
        self._next.extend(islice(self._decisions, max(0, count - len(self._next))))
        return tuple(islice(self._next, count))

    def take(self, count: int) -> None:
        """Takes the next ``count`` decisions over into this run, which goes on after them; the caller has applied them."""
        for decision in self.upcoming(count):
            self._next.popleft()
            self.left -= 1
            self.taken += 1
            self._again(decision)
            if self.left == 0:
                self._ended(self.taken)

    def forget(self) -> None:
        """Drops what is left: it ends inside something that has to be computed again from its start."""
        if self.left and self.taken:
            self._ended(self.taken)
        self._next.clear()
        self._decisions = islice((), 0)
        self.left = 0


class Recorder:
    """Numbers and times a run's decisions, writes them to the journal and tells ``listener`` of each.

    ``past`` has the first ``left`` of ``earlier``, an earlier run's decisions; ``resumed`` is told, once, how many of them
    were taken over.
    """

    def __init__(
        self,
        journal: Journal,
        listener: Callable[[Decision], None],
        earlier: Iterable[Decision] = (),
        left: int = 0,
        resumed: Callable[[int], object] = bool,
    ) -> None:
        self.count = 0
        self.past = Past(earlier, left, self._again, resumed)
        self._journal = journal
        self._listener = listener
        self._start = time.monotonic()

    def record(
        self,
        *,
        stage: int,
        method: str,
        layer: str,
        kind: UnitKind,
        action: Action,
        reason: str,
        sweep: int = 0,
        row: int | None = None,
        column: int | None = None,
        loss_before: float | None = None,
        loss_sources: tuple[float, ...] | None = None,
        spread: float | None = None,
        shares: tuple[float, ...] | None = None,
        step: float | None = None,
        loss_after: float | None = None,
        payload: bytes | None = None,
    ) -> None:
        """Adds the next row of the trace; what is left of the past is of no use from here on."""
        if self.past.left:
            self.past.forget()
        decision = Decision(
            seq=self.count,
            stage=stage,
            method=method,
            sweep=sweep,
            layer=layer,
            kind=kind,
            row=row,
            column=column,
            loss_before=loss_before,
            loss_sources=loss_sources,
            spread=spread,
            shares=shares,
            step=step,
            action=action,
            loss_after=loss_after,
            reason=reason,
            elapsed=self.elapsed(),
            payload=payload,
        )
        self._add(decision)

    def elapsed(self) -> float:
        """Seconds since the run began, those of the run that it goes on from included."""
        return time.monotonic() - self._start

    def _again(self, decision: Decision) -> None:
        self._start = time.monotonic() - decision.elapsed  # the clock goes on where the earlier run stopped
        self._add(decision)

    def _add(self, decision: Decision) -> None:
        self.count += 1
        self._journal.append(decision)
        self._listener(decision)
