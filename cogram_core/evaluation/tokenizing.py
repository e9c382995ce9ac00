"""Files of texts as datasets: read row by row, and tokenised by the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cogram_core.errors import DatasetError, Problem
from cogram_core.evaluation.texts import Texts
from cogram_core.preflight.data import IGNORED
from cogram_core.preflight.rows import (
    LABELS,
    TEXT,
    Row,
    RowProblems,
    check_rows,
    kind_of,
    label_of,
    label_range,
    read_lines,
)
from cogram_core.stopping import stop_point

USUAL_LENGTH = 512
"""Tokens that a text is cut to where nothing else is said and the network has room for more."""
_ROWS = 1024


class Tokenizer:
    """The tokenizer of a checkpoint's folder, loaded when it is first asked; each text is cut to ``longest`` tokens."""

    def __init__(self, folder: Path, longest: int | None) -> None:
        self._folder = folder
        self._longest = longest

    def read(self, path: Path, place: str) -> Texts:
        """The texts of a file of JSON lines or Parquet, with their labels, or each with its own ids as labels.

        Raises:
            DatasetError: listing the rows that are none, or if there is no tokenizer.
        """
        rows = read_lines(path, place) if kind_of(path) == "lines" else _read_parquet(path, place)
        encoded = []
        for number, row in enumerate(rows):
            if number % _ROWS == 0:
                stop_point()
            encoded.append(self._tokenizer.encode(row.text))
        width = max(1, *(len(text.ids) for text in encoded)) if encoded else 1
        ids = _filled((text.ids for text in encoded), len(rows), width)
        types = _filled((text.type_ids for text in encoded), len(rows), width)
        mask = torch.arange(width) < torch.tensor([len(text.ids) for text in encoded])[:, None]
        return Texts(ids, _targets(rows, ids, mask), mask, types)

    @cached_property
    def _tokenizer(self) -> Any:
        found = _load(self._folder)
        found.no_padding()
        found.no_truncation()
        if self._longest is not None:
            found.enable_truncation(self._longest)
        return found


def _load(folder: Path) -> Any:
    """The folder's own files and nothing else: no code, no network."""
    from tokenizers import Tokenizer as Fast

    try:
        if (folder / "tokenizer.json").is_file():
            return Fast.from_file(str(folder / "tokenizer.json"))
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # whatever a stranger's files make the libraries raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        message = (
            f"has no tokenizer that can be used ({first}); put its tokenizer.json beside the tensors, or give token ids"
        )
        raise DatasetError([Problem("sources[0].checkpoint", "dataset.no_tokenizer", message)]) from error


def _filled(rows: Iterator[Sequence[int]], count: int, width: int) -> torch.Tensor:
    found = torch.zeros(count, width, dtype=torch.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return found


def _targets(rows: Sequence[Row], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    low, _, values = label_range(row.label for row in rows)
    if values:
        return torch.tensor([float(row.label or 0) for row in rows])
    if low is not None:
        return torch.tensor([int(row.label or 0) for row in rows])
    return torch.where(mask, ids, IGNORED)


def _read_parquet(path: Path, place: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    problems = RowProblems(place)
    rows: list[Row] = []
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in (TEXT, *LABELS) if name in file.schema_arrow.names]
            for batch in file.iter_batches(_ROWS, columns=columns):
                stop_point()
                for values in batch.to_pylist():
                    rows.append(_row(values, len(rows) + 1, problems))
    except (pa.ArrowException, OSError) as error:
        message = f"can't be read as Parquet ({str(error).splitlines()[0]}); write the file again"
        raise DatasetError([Problem(place, "dataset.invalid_parquet", message)]) from error
    problems.raise_if_any()
    check_rows(rows, place)
    return rows


def _row(values: dict[str, Any], number: int, problems: RowProblems) -> Row:
    label, fault = label_of(values)
    text = values.get(TEXT)
    if not isinstance(text, str):
        fault = f"has no {TEXT!r} that is a string; add it"
    if fault:
        problems.add(number, fault)
    return Row(text if isinstance(text, str) else "", label)
