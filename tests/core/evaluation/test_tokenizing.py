from __future__ import annotations

import json
import random as chance
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer as Fast
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from cogram_core.errors import DatasetError
from cogram_core.evaluation.datasets import read_dataset
from cogram_core.evaluation.tokenizing import Tokenizer
from cogram_core.networks.packing import unpack
from cogram_core.networks.tokens import Tokens
from cogram_core.preflight.data import DatasetFacts, read_dataset_facts
from cogram_core.preflight.parquet import read_parquet_facts

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "cat", "sat", "on", "the", "mat"]
NETWORK = Tokens(len(WORDS), packed=True, masked=True, longest=8)
ROWS = [
    {"text": "a cat", "label": 0},
    {"text": "on the mat on the mat on the mat", "label": 1},
    {"text": "dog", "label": 1},
]
# [CLS] … [SEP], cut to eight.
IDS = [[1, 4, 5, 2], [1, 7, 8, 9, 7, 8, 9, 2], [1, 3, 2]]


def with_tokenizer(folder: Path) -> Tokenizer:
    made = Fast(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.enable_padding(length=30)
    made.enable_truncation(3)
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder, 8)


def lines(folder: Path, rows: list[Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("written", [lines, table])
def test_texts_are_tokenised_cut_and_padded(tmp_path: Path, written: Any) -> None:
    made = read_dataset(written(tmp_path, ROWS), torch.float32, "data", NETWORK, with_tokenizer(tmp_path))
    ids, mask, types = unpack(made.inputs, 0)
    assert [row[present.bool()].tolist() for row, present in zip(ids, mask, strict=True)] == IDS
    assert made.inputs.shape == (3, 8)
    assert made.targets.tolist() == [0, 1, 1]
    assert not types.any()


@pytest.mark.parametrize("written", [lines, table])
def test_texts_without_labels_are_their_own_and_values_stay_values(tmp_path: Path, written: Any) -> None:
    texts = [{"text": row["text"], "other": 3} for row in ROWS]
    path = written(tmp_path, texts)
    made = read_dataset(path, torch.float32, "data", NETWORK, with_tokenizer(tmp_path))
    assert (made.loss, read_dataset_facts(path)) == ("causal_lm", DatasetFacts(3, (0,), None, None, "causal_lm"))
    assert [[label for label in row if label != -100] for row in made.targets.tolist()] == IDS
    path = written(tmp_path, [row | {"labels": 0.5 * place} for place, row in enumerate(texts)])
    made = read_dataset(path, torch.float32, "data", NETWORK, with_tokenizer(tmp_path))
    assert made.targets.tolist() == [0.0, 0.5, 1.0]
    assert read_dataset_facts(path).loss == made.loss == "mean_squared_error"


def test_facts_of_texts_are_their_rows_and_labels(tmp_path: Path) -> None:
    assert read_dataset_facts(lines(tmp_path, ROWS)) == DatasetFacts(3, (0,), 0, 1, "cross_entropy")
    # A footer says nothing of the range.
    assert read_dataset_facts(table(tmp_path, ROWS)) == DatasetFacts(3, (0,), None, None, "cross_entropy")


def refusal(path: Path) -> dict[str, str]:
    with pytest.raises(DatasetError) as caught:
        read_dataset_facts(path)
    return {problem.location: problem.message for problem in caught.value.problems}


def test_every_wrong_line_is_told_by_its_number(tmp_path: Path) -> None:
    wrong = [
        ROWS[0], "", "[1, 2]", "{", '{"label": 1}', '{"text": 5}',
        '{"text": "a", "label": "x"}', '{"text": "a", "label": -1}',
        '{"text": "a", "label": 1, "labels": 1}', '{"text": "a", "text": "b"}', '{"text": "a", "label": true}', "[" * 5000,
    ]  # fmt: skip
    found = refusal(lines(tmp_path, wrong))
    assert list(found) == [f"data.jsonl: line {number}" for number in range(3, 13)]
    assert "is no JSON object" in found["data.jsonl: line 3"]
    assert "give the number of a class" in found["data.jsonl: line 7"]
    many = refusal(lines(tmp_path, [ROWS[0], *["{}"] * 30]))
    assert len(many) == 21
    assert many["data.jsonl"].startswith("10 more lines are wrong")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{"], "is not valid JSON"),
        ([ROWS[0], {"text": "a"}], "1 of 2 rows have no label"),
        ([" {} "], "has no 'text'"),
    ],
)
def test_files_that_are_no_rows_are_refused(tmp_path: Path, rows: list[Any], said: str) -> None:
    (message,) = refusal(lines(tmp_path, rows)).values()
    assert said in message


def test_lines_have_a_greatest_length(tmp_path: Path) -> None:
    path = lines(tmp_path, [{"text": "a" * 2**20}])
    assert refusal(path) == {"data.jsonl: line 1": "has more than 1,048,576 bytes; give one text a line"}


def test_parquet_without_texts_or_with_other_labels_is_refused(tmp_path: Path) -> None:
    assert list(refusal(table(tmp_path, [{"label": 1}])).values()) == ["has no column 'text'; add the texts"]
    assert "labels that are no numbers" in refusal(table(tmp_path, [{"text": "a", "label": "b"}]))["data.parquet"]
    path = table(tmp_path, [{"text": "a", "label": 1}, {"text": None, "label": 1}])
    with pytest.raises(DatasetError, match="line 2: has no 'text'"):
        read_dataset(path, torch.float32, "data", NETWORK, with_tokenizer(tmp_path))


def test_a_footer_is_read_as_its_library_reads_it(tmp_path: Path) -> None:
    wide = {f"c{place}": pa.array([float(place)] * 70, pa.float32()) for place in range(40)}
    path = tmp_path / "wide.parquet"
    pq.write_table(
        pa.table({"text": ["a"] * 70, "label": pa.array([1] * 70, pa.int32()), **wide}), path, row_group_size=9
    )
    found = read_parquet_facts(path, "data")
    assert (found.rows, found.columns["text"], found.columns["label"], found.columns["c39"]) == (
        pq.ParquetFile(path).metadata.num_rows, "other", "integer", "floating",
    )  # fmt: skip
    assert list(found.columns) == pq.ParquetFile(path).schema.names


def test_a_footer_of_any_bytes_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    whole = table(tmp_path, ROWS).read_bytes()
    drawn = chance.Random(0)
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(drawn.randrange(1, 6)):
            broken[drawn.randrange(4, len(broken))] = drawn.randrange(256)
        path = tmp_path / "broken.parquet"
        path.write_bytes(broken[: drawn.randrange(8, len(broken) + 1)])
        with suppress(DatasetError):
            assert read_dataset_facts(path).examples >= 0


def test_no_tokenizer_and_no_network_of_texts_are_told(tmp_path: Path) -> None:
    path = lines(tmp_path, ROWS)
    with pytest.raises(DatasetError, match=r"put its tokenizer\.json beside the tensors"):
        read_dataset(path, torch.float32, "data", NETWORK, Tokenizer(tmp_path, 8))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DatasetError, match="no tokenizer that can be used"):
        read_dataset(path, torch.float32, "data", NETWORK, Tokenizer(tmp_path, 8))
    with pytest.raises(DatasetError, match="this network reads none"):
        read_dataset(path, torch.float32, "data")
