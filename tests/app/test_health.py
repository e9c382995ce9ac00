"""Health: alive is not ready."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import pytest

from app.broker import ping
from app.listening import listen
from tests.app.conftest import running, small
from tests.app.factories import Service


def test_a_whole_service_is_ready_with_and_without_the_version_in_the_path(service: Service) -> None:
    for prefix in ("", "/v1"):
        assert service.http.get(f"{prefix}/healthz/live").json() == {"status": "ok"}
        ready = service.http.get(f"{prefix}/healthz/ready")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ok", "checks": dict.fromkeys(("database", "broker", "blobs", "disk"), "ok")}


def test_everything_that_is_missing_is_listed(tmp_path: Path) -> None:
    settings = small(tmp_path, f"sqlite:///{tmp_path}/empty.sqlite3", f"redis+socket://{tmp_path}/none.sock")
    with running(settings.model_copy(update={"min_free_bytes": 2**62})) as service:
        assert service.http.get("/healthz/live").status_code == 200
        answer = service.http.get("/healthz/ready")
        assert (answer.status_code, answer.json()["code"]) == (503, "service.not_ready")
        assert [error["location"] for error in answer.json()["errors"]] == ["database", "broker", "disk"]
        assert str(tmp_path) not in answer.text


def test_a_database_of_another_version_is_told_with_the_remedy(sqlite_service: Service) -> None:
    path, http = str(sqlite_service.context.database.engine.url.database), sqlite_service.http
    for broken, mended in (
        ("ALTER TABLE fusions RENAME COLUMN tenant TO gone", "ALTER TABLE fusions RENAME COLUMN gone TO tenant"),
        ("ALTER TABLE outbox RENAME TO gone", "ALTER TABLE gone RENAME TO outbox"),
    ):
        _by_another_hand(path, broken)
        answer = http.get("/healthz/ready")
        assert answer.status_code == 503
        assert (
            answer.json()["detail"] == "database: its tables can't be read as this version has them: run cogram migrate"
        )
        _by_another_hand(path, mended)
        assert http.get("/healthz/ready").status_code == 200


def _by_another_hand(path: str, statement: str) -> None:
    """On a connection of its own: one that has seen other tables before resolves names by what it remembers."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_ping_fails_where_nobody_answers(free_port: int) -> None:
    with pytest.raises(OSError, match="refused"):
        ping(f"redis://127.0.0.1:{free_port}")


def test_a_ping_tells_its_name_and_fails_where_it_is_not_welcome() -> None:
    heard = []

    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            heard.append(connection.recv(4096))
            connection.sendall(b"-WRONGPASS invalid\r\n")

    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=refuse, args=[listener])
        thread.start()
        with pytest.raises(OSError, match="WRONGPASS"):
            ping(f"redis://user:a%40b@127.0.0.1:{listener.getsockname()[1]}/0")
        thread.join()
    assert heard == [b"*3\r\n$4\r\nAUTH\r\n$4\r\nuser\r\n$3\r\na@b\r\n"]


def test_the_catalogue_of_methods_is_served_as_it_is(sqlite_service: Service) -> None:
    catalogue = json.loads((files("cogram_core") / "methods" / "catalogue.json").read_text())
    assert sqlite_service.http.get("/v1/methods").json() == {"items": catalogue["methods"]}
