"""Who takes an answer slowly gets all of it; who takes nothing at all of it loses the connection, however little is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from socket import socket

import psutil
import pytest

from app.settings import Settings
from tests.app.conftest import running
from tests.app.factories import Service

SPAN = 1.0
MEGABYTE = 2**20
CONTENT = os.urandom(8 * MEGABYTE)  # more than the buffers of the system hold


@pytest.fixture
def hasty(sqlite_settings: Settings) -> Iterator[Service]:
    """A service that doesn't wait long for takers."""
    with running(sqlite_settings.model_copy(update={"take_idle_seconds": SPAN, "keep_alive_seconds": 1})) as service:
        yield service


@pytest.fixture
def url(hasty: Service) -> str:
    """A large artifact."""
    fusion_id = hasty.fusion()
    hasty.succeed(fusion_id, {"model.safetensors": CONTENT})
    return f"/v1/fusions/{fusion_id}/artifacts/model.safetensors"


def test_who_takes_less_than_one_write_in_each_span_gets_everything(hasty: Service, url: str) -> None:
    with hasty.connect(url, "Connection: close\r\n") as connection:
        answer, slow_until = bytearray(), time.monotonic() + 6 * SPAN
        while piece := connection.recv(1 << 15):
            answer += piece
            if time.monotonic() < slow_until:
                time.sleep(0.05)  # 640 kB/s at most, and the service writes 1 MiB at once
    assert answer.partition(b"\r\n\r\n")[2] == CONTENT


def test_who_takes_nothing_is_ended(hasty: Service, url: str) -> None:
    with hasty.connect(url) as connection:
        _until_none_is_open(hasty)
        assert len(_rest(connection)) < len(CONTENT)


def test_who_leaves_a_little_of_an_answer_is_ended_too(hasty: Service, url: str) -> None:
    with hasty.connect(url) as connection:
        _until_none_is_open(hasty)
        held = len(_rest(connection))  # by the buffers of the system
    with ExitStack() as connections:
        for little in range(8 << 10, 64 << 10, 8 << 10):
            connections.enter_context(hasty.connect(url, f"Range: bytes=0-{held + little}\r\n"))
        _until_none_is_open(hasty)


def test_nobody_in_between_is_to_buffer_a_download(hasty: Service, url: str) -> None:
    assert hasty.http.head(url).headers["X-Accel-Buffering"] == "no"


def _until_none_is_open(service: Service) -> None:
    """Waits until the service has no connection, while its callers still have theirs."""
    deadline = time.monotonic() + 20 * SPAN
    time.sleep(SPAN)
    while _open_ends(service):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _open_ends(service: Service) -> int:
    port = service.http.base_url.port
    ends = psutil.Process().net_connections("tcp")
    return sum(end.laddr.port == port and end.status != psutil.CONN_LISTEN for end in ends)


def _rest(connection: socket) -> bytes:
    taken = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(MEGABYTE):
            taken += piece
    return taken
