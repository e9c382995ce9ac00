"""``cogram keys``: what it prints works, and what it revokes doesn't any more."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner, Result

from app.cli.keys import keys
from app.store.models import Account
from tests.app.access import Guarded
from tests.app.test_auth_keys import SCANNED


@pytest.fixture
def run(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> Runner:
    url = make_url(guarded.service.context.database.url).render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    return Runner()


class Runner:
    """The command, in this process."""

    def __call__(self, *words: str) -> Result:
        """What came of it."""
        return CliRunner().invoke(keys, words)


def test_a_key_that_was_made_works_until_it_is_revoked(guarded: Guarded, run: Runner) -> None:
    limits = ["--quota-bytes", "5", "--quota-jobs", "6", "--quota-concurrent", "7", "--rate", "8.5"]
    made = run("create", "--tenant", "one", "--name", "[red]ci", "--scope", "read", "--scope", "upload", *limits)
    assert made.exit_code == 0
    text = made.stdout.strip()
    assert SCANNED.fullmatch(text)  # alone on standard output, so that it can go into a variable
    account = re.search(r"key_\w+", made.stderr)
    assert account is not None
    listed = run("list", "--tenant", "one").stdout
    for shown in (account[0], "[red]ci", "read upload", "5", "6", "7", "8.5", "good"):
        assert shown in listed
    assert text not in listed
    assert run("list", "--tenant", "two").stdout.count("key_") == 0
    headers = {"Authorization": f"Bearer {text}"}
    http = guarded.service.http
    assert http.get("/v1/checkpoints", headers=headers).status_code == 200
    assert http.put("/v1/checkpoints/a/files/b", headers=headers, content=b"123456").status_code == 403
    assert run("revoke", account[0]).exit_code == 0
    deadline = time.monotonic() + 20
    while http.get("/v1/checkpoints", headers=headers).status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "revoked" in run("list").stdout
    assert run("revoke", account[0]).exit_code == 0  # again: nothing to do


def test_a_key_expires(guarded: Guarded, run: Runner) -> None:
    run("create", "--name", "n", "--scope", "read", "--expires-days", "30")
    with guarded.service.context.database.reading() as session:
        account = session.query(Account).one()
    assert account.tenant == "default"
    assert account.expires_at is not None
    assert 29.9 < (account.expires_at - account.created_at).total_seconds() / 86400 < 30.1
    assert f"until {account.expires_at:%Y-%m-%d}" in run("list").stdout


def test_what_is_wrong_is_listed_and_nothing_is_made(guarded: Guarded, run: Runner) -> None:
    wrong = run("create", "--tenant", "a b", "--name", "", "--scope", "write", "--rate", "0", "--expires-days", "-1")
    assert wrong.exit_code == 2
    for place in ("tenant", "name", "scope", "rate", "expires-days"):
        assert f"cogram: {place}: " in wrong.stderr
    unknown = run("revoke", "key_x")
    assert (unknown.exit_code, "cogram keys list" in unknown.stderr) == (2, True)
    with guarded.service.context.database.reading() as session:
        assert session.query(Account).count() == 0


def test_a_database_without_tables_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    for folder in (tmp_path / "none", tmp_path):
        refused = Runner()("create", "--name", "n", "--scope", "read", "--data-dir", str(folder))
        assert (refused.exit_code, "cogram migrate" in refused.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
