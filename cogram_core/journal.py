"""The journal: a run's decisions as they are taken, readable up to the last complete batch whatever happens. Free of torch.

An Arrow IPC stream with the columns of the trace, from which a later run goes on, and which becomes the trace at the end.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cogram_core.errors import OutputError
from cogram_core.trace import METADATA_KEY, SCHEMA, Decision, decisions_of

JOURNAL_NAME = "trace.journal"
_CHECKSUM_KEY = b"crc32"
_BATCH_ROWS = 512
_BATCH_SECONDS = 1.0
_BATCH_BYTES = 32 * 2**20
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
