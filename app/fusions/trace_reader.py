"""The process that reads one trace for the API: ``python -m app.fusions.trace_reader QUERY``; it ends with its answer.

The first line on its standard output is ``{"next": row or null}``, and comes when the reading has gone well so far; what
follows are lines of JSON, a Parquet file, or one JSON list with each layer's counts.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import IO

from app.fusions import trace_file
from app.fusions.trace_query import TraceQuery

_ADDRESS_SPACE = 4 * 2**30  # pyarrow reserves far more than it uses; a damaged file that asks for more ends here


def main() -> None:
    """Answers the query on the command line."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: the end, not an error
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    answer(TraceQuery.from_json(sys.argv[1]), sys.stdout.buffer)


def answer(query: TraceQuery, out: IO[bytes]) -> None:
    """Writes what is asked for."""
    path = Path(query.path)
    if query.form == "summary":
        layers = [{"layer": name, **tally.counts()} for name, tally in trace_file.tally(path).items()]
        _begin(out, None)
        out.write(json.dumps(layers).encode())
    elif query.form == "parquet":
        with trace_file.filtered_copy(path, query.filters) as copy:
            _begin(out, None)
            shutil.copyfileobj(copy, out)
    elif query.limit is not None:
        text, following = trace_file.page(path, query.filters, query.start, query.limit)
        _begin(out, following)
        out.write(text.encode())
    else:
        pieces = trace_file.pieces(path, query.filters, query.start)
        first = next(pieces)  # before the first line, so that an unreadable file is told as an error
        _begin(out, None)
        out.write(first.encode())
        for piece in pieces:
            out.write(piece.encode())
    out.flush()


def _begin(out: IO[bytes], following: int | None) -> None:
    out.write(json.dumps({"next": following}).encode() + b"\n")


if __name__ == "__main__":
    main()
