"""The service's commands told to start where they can't: a line for each thing that is wrong, exit code 2, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import nursery

_OWN = ("DATABASE_URL", "BROKER_URL", "BLOB_URL")
_ALL = (["serve", "--port", "0"], ["api", "--port", "0"], ["dispatcher"], ["worker"], ["migrate"])


def _refused(*words: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in _OWN}
    code, _, said = nursery.run("app.cli", *words, environment=inherited | environment)
    assert (code, "Traceback" in said) == (2, False), said
    return said


@pytest.mark.parametrize("words", [*_ALL, ["keys", "list"]], ids=" ".join)
def test_every_setting_that_cannot_be_used_is_told_without_its_value(words: list[str], tmp_path: Path) -> None:
    said = _refused(
        *words,
        COGRAM_DATA_DIR=str(tmp_path),
        COGRAM_LEASE_SECONDS="soon",
        COGRAM_WORKERS="0",
        DATABASE_URL="mysql://user:hidden@host/db",
        BLOB_URL="http://hidden@host",
    )
    lines = said.splitlines()
    assert "cogram: COGRAM_LEASE_SECONDS: must be a number" in lines
    assert "cogram: COGRAM_WORKERS: must be greater than 0" in lines
    for name, remedy in (("DATABASE_URL", "postgresql://"), ("BLOB_URL", "s3://")):
        assert [line for line in lines if line.startswith(f"cogram: {name}: ") and remedy in line]
    assert "hidden" not in said


@pytest.mark.parametrize("words", _ALL, ids=" ".join)
def test_a_file_is_no_data_folder(words: list[str], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    said = _refused(*words, "--data-dir", str(taken))
    assert said.startswith(f"cogram: {taken} can't be the data folder: File exists.")
    assert "--data-dir" in said


@pytest.mark.parametrize("words", [["serve", "--port", "0"], ["migrate"], ["keys", "list"]], ids=" ".join)
def test_a_database_that_is_away_is_told(words: list[str], tmp_path: Path) -> None:
    away = "postgresql://user:hidden@127.0.0.1:1/db"  # nobody listens on port 1
    said = _refused(*words, COGRAM_DATA_DIR=str(tmp_path), DATABASE_URL=away)
    assert "cogram: the database can't be used: " in said
    assert "Check DATABASE_URL" in said
    assert "hidden" not in said


def test_an_unknown_queue_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    said = _refused("worker", "--queues", "fusion.cpu,fusion.gpu", "--data-dir", str(tmp_path))
    assert said == "cogram: there is no queue 'fusion.gpu'; known here: fusion.cpu, fusion.cuda, io.\n"
