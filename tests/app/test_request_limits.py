"""Limits on what a request may look like before anything is done for it, and on how many there may be at once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.conftest import running, small
from tests.app.factories import Service

HEAD = b"GET /v1/healthz/live HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory, broker_server: str) -> Iterator[Service]:
    """A service with limits that a test reaches."""
    folder = tmp_path_factory.mktemp("tight")
    limits = {
        "head_seconds": 0.5,
        "keep_alive_seconds": 1,
        "max_requests": 3,
        "max_requests_per_peer": 2,
        "max_connections": 6,
    }
    settings = small(folder, f"sqlite:///{folder}/none.sqlite3", broker_server).model_copy(update=limits)
    with running(settings) as service:
        yield service


def _connect(service: Service, source: str = "127.0.0.1") -> socket.socket:
    url = service.http.base_url
    return socket.create_connection((url.host, url.port or 80), 20, source_address=(source, 0))


def _rest(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Everything up to the end of the connection: status, headers, document."""
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body)


def _look(connection: socket.socket) -> None:
    """A whole request with a whole answer."""
    connection.sendall(HEAD + b"\r\n")
    answer = b""
    while not answer.endswith(b'{"status":"ok"}'):
        piece = connection.recv(65536)
        assert piece, answer
        answer += piece


@pytest.mark.parametrize("sent", [b"GET /v1/hea", HEAD, HEAD + b"X-Slow: "], ids=["line", "header", "half a header"])
def test_a_head_that_does_not_come_ends_its_connection(tight: Service, sent: bytes) -> None:
    with _connect(tight) as connection:
        connection.sendall(sent)
        status, headers, document = _rest(connection)
    assert (status, document["code"]) == (408, "request.too_slow")
    assert "COGRAM_HEAD_SECONDS" in document["detail"]
    assert headers["connection"] == "close"


def test_a_sender_of_one_byte_now_and_then_gains_no_time(tight: Service) -> None:
    with _connect(tight) as connection:
        connection.sendall(HEAD)
        ended = False
        for _ in range(100):  # far longer than the limit
            time.sleep(0.05)
            try:
                connection.sendall(b"X")
            except OSError:
                ended = True
                break
        assert ended


def test_a_connection_that_says_nothing_is_closed_without_a_word(tight: Service) -> None:
    with _connect(tight) as connection:
        assert connection.recv(100) == b""


def test_after_an_answer_the_next_head_has_its_time_too_and_idleness_another(tight: Service) -> None:
    with _connect(tight) as connection:
        for _ in range(2):
            _look(connection)
        connection.sendall(b"G")  # ends uvicorn's own timer
        assert _rest(connection)[0] == 408
    with _connect(tight) as connection:
        _look(connection)
        assert connection.recv(100) == b""  # idle for too long


def test_long_heads_and_targets_are_told_which_limit_they_passed(sqlite_service: Service) -> None:
    http = sqlite_service.http
    cases = {
        "request.target_too_long": (414, {"url": "/v1/fusions?page_token=" + "x" * 9_000}),
        "request.head_too_large": (431, {"url": "/v1/fusions", "headers": {"X-Long": "x" * 33_000}}),
    }
    for code, (status, call) in cases.items():
        answer = http.get(**call)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert "COGRAM_MAX_" in answer.json()["detail"]
    answer = http.get("/v1/fusions", headers=[(f"X-{number}", "x") for number in range(120)])
    assert (answer.status_code, answer.json()["code"]) == (431, "request.head_too_large")
    assert http.get("/v1/fusions?page_token=" + "x" * 500).status_code == 422


def test_a_head_without_end_is_no_request(sqlite_service: Service) -> None:
    with _connect(sqlite_service) as connection:
        connection.sendall(HEAD)
        refused = False
        for _ in range(10_000):  # 10 MB
            try:
                connection.sendall(b"X: " + b"x" * 1000 + b"\r\n")
            except OSError:  # the connection was closed
                refused = True
                break
        assert refused


@pytest.mark.parametrize("depth", [65, 5_000, 400_000])
def test_json_is_nested_so_deep_and_no_deeper(sqlite_service: Service, depth: int) -> None:
    body = '{"sources":' + "[" * depth + "]" * depth + "}"
    headers = {"Content-Type": "application/json"}
    answer = sqlite_service.http.post("/v1/fusions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "recipe.syntax")
    assert f"nested {depth + 1} deep" in answer.json()["detail"]
    answer = sqlite_service.http.post("/v1/checkpoints", content=body, headers=headers)
    assert answer.status_code in {400, 422}
    assert answer.headers["Content-Type"] == "application/problem+json"
    in_text = sqlite_service.http.post("/v1/fusions", content='{"name":"' + "[" * depth + '"}', headers=headers)
    assert in_text.json()["code"] == "recipe.invalid"


def test_one_address_and_all_together_have_so_many_requests_at_once(tight: Service) -> None:
    waiting = [_hold(tight), _hold(tight)]
    refused = _ask(tight)
    assert (refused[0], refused[2]["code"]) == (429, "request.too_many_open")
    assert refused[1]["retry-after"]
    assert tight.http.get("/v1/healthz/live").status_code == 200  # alive, though busy
    waiting.append(_hold(tight, "127.0.0.2"))
    refused = _ask(tight, "127.0.0.2")
    assert (refused[0], refused[2]["code"]) == (503, "service.busy")
    assert refused[1]["retry-after"]
    for connection in waiting:
        connection.close()
    deadline = time.monotonic() + 20
    while _ask(tight)[0] in {429, 503}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _hold(service: Service, source: str = "127.0.0.1") -> socket.socket:
    """A request that is being answered for as long as its connection is open: its body never ends."""
    connection = _connect(service, source)
    head = b"POST /v1/fusions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 100")  # the body is asked for: it is under way
    return connection


def _ask(service: Service, source: str = "127.0.0.1") -> tuple[int, dict[str, str], dict[str, Any]]:
    with _connect(service, source) as connection:
        connection.sendall(b"GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return _rest(connection)


def test_beyond_so_many_connections_a_new_one_is_told_to_come_later(tmp_path: Path, broker_server: str) -> None:
    settings = small(tmp_path, f"sqlite:///{tmp_path}/none.sqlite3", broker_server)
    with running(settings.model_copy(update={"max_connections": 3})) as service:
        held = [_connect(service) for _ in range(3)]
        for connection in held:
            _look(connection)
        with _connect(service) as connection:
            status, headers, document = _rest(connection)
        assert (status, document["code"]) == (503, "service.not_ready")
        assert headers["retry-after"]
        for connection in held:
            connection.close()
        with httpx.Client(base_url=service.http.base_url, transport=httpx.HTTPTransport(retries=5)) as http:
            deadline = time.monotonic() + 20
            while http.get("/healthz/live").status_code != 200:
                assert time.monotonic() < deadline
