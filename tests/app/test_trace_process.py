"""Traces are read by processes of their own: the API stays small, and nothing of them outlives its request."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from app.fusions import trace_process
from app.listening import listen
from app.main import create_app
from app.settings import Settings
from app.store.migrate import migrate
from tests.app.conftest import running, small
from tests.app.factories import Service, trace_file, trace_rows

PARQUET = {"Accept": "application/vnd.apache.parquet"}
MEGABYTE = 2**20


@contextmanager
def _process(settings: Settings) -> Iterator[tuple[Service, psutil.Process]]:
    """The API as a process, and its memory to look at."""
    migrate(settings.resolved_database_url)
    environment = os.environ | {
        "COGRAM_DATA_DIR": str(settings.data_dir),
        "DATABASE_URL": settings.resolved_database_url,
        "BROKER_URL": str(settings.broker_url),
        "COGRAM_MIN_FREE_BYTES": "0",
    }
    with listen("127.0.0.1", 0) as listener:
        command = [sys.executable, "-m", "app.api", "--fd", str(listener.fileno())]
        process = subprocess.Popen(command, env=environment, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
        context = create_app(settings).state.context
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as http:
                yield Service(http, context), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(20)
            context.database.close()


@pytest.fixture
def alone(tmp_path: Path, broker_server: str) -> Iterator[tuple[Service, psutil.Process]]:
    """An API process on SQLite."""
    with _process(small(tmp_path, f"sqlite:///{tmp_path}/cogram.sqlite3", broker_server)) as started:
        yield started


def _traced(service: Service, rows: int, group_rows: int = 1000) -> str:
    fusion_id = service.fusion()
    service.succeed(fusion_id, {"trace.parquet": trace_file(trace_rows(rows), group_rows)})
    return f"/v1/fusions/{fusion_id}/trace"


def _until(ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_api_stays_below_150_megabytes_whatever_traces_it_serves(alone: tuple[Service, psutil.Process]) -> None:
    service, process = alone
    url = _traced(service, 20_000)
    assert service.http.get(f"{url}/summary").json()["layers"][0]["visits"] == 10_000
    assert len(service.http.get(url).text.splitlines()) == 20_000
    assert len(service.http.get(url, params={"limit": 10_000}).text.splitlines()) == 10_000
    assert service.http.get(url, params={"action": "merged"}, headers=PARQUET).content.endswith(b"PAR1")
    with ThreadPoolExecutor(6) as threads:
        several = list(threads.map(lambda _: service.http.get(url).text.count("\n"), range(6)))
    assert several == [20_000] * 6
    assert process.memory_info().rss < 150 * MEGABYTE
    _until(lambda: not _readers(process))


def test_a_client_that_goes_away_takes_the_reader_with_it(alone: tuple[Service, psutil.Process]) -> None:
    service, process = alone
    url = _traced(service, 60_000)
    with service.connect(url) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert len(_readers(process)) == 1
    _until(lambda: not _readers(process))
    with service.connect(url + "?layer=fc1"):
        _until(lambda: len(_readers(process)) == 1)  # before it has written anything
    _until(lambda: not _readers(process))


def test_two_readers_at_most_run_at_once_and_the_others_wait(alone: tuple[Service, psutil.Process]) -> None:
    service, process = alone
    url = _traced(service, 3_000)
    most = 0
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(service.http.get, f"{url}/summary") for _ in range(5)]
        while not all(answer.done() for answer in answers):
            most = max(most, len(_readers(process)))
            time.sleep(0.005)
    assert [answer.result().status_code for answer in answers] == [200] * 5
    assert 1 <= most <= 2


def test_a_trace_that_can_not_be_read_is_a_problem_and_leaves_no_reader(sqlite_service: Service) -> None:
    fusion_id = sqlite_service.fusion()
    sqlite_service.succeed(fusion_id, {"trace.parquet": trace_file(trace_rows(5))[:-20]})
    url = f"/v1/fusions/{fusion_id}/trace"
    for rest in ("", "?limit=3", "/summary"):
        answer = sqlite_service.http.get(url + rest)
        assert (answer.status_code, answer.json()["code"]) == (500, "trace.unreadable"), rest
        assert answer.json()["request_id"] in answer.json()["detail"]
    answer = sqlite_service.http.get(url, params={"layer": "fc1"}, headers=PARQUET)
    assert (answer.status_code, answer.json()["code"]) == (500, "trace.unreadable")


def test_a_trace_that_breaks_off_is_no_whole_answer(sqlite_service: Service) -> None:
    fusion_id = sqlite_service.fusion()
    content = bytearray(trace_file(trace_rows(4_000), group_rows=2_000))
    middle = len(content) // 2
    content[middle : middle + 4_000] = b"\xff" * 4_000  # within the second group, or nothing else would come first
    sqlite_service.succeed(fusion_id, {"trace.parquet": bytes(content)})
    with pytest.raises(httpx.RemoteProtocolError):
        sqlite_service.http.get(f"/v1/fusions/{fusion_id}/trace")


def test_clients_that_take_nothing_lose_their_readers_and_until_then_others_are_told_to_come_again(
    sqlite_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = _traced(sqlite_service, 60_000)
    monkeypatch.setattr(trace_process, "_QUEUE_SECONDS", 0.2)
    monkeypatch.setattr(trace_process, "_SILENCE_SECONDS", 5)
    with sqlite_service.connect(url), sqlite_service.connect(url):
        _until(lambda: len(_readers()) == 2)
        answer = sqlite_service.http.get(f"{url}/summary")
        assert (answer.status_code, answer.json()["code"]) == (503, "trace.busy")
        assert answer.headers["Retry-After"]
        _until(lambda: not _readers())
        assert sqlite_service.http.get(f"{url}?limit=1").status_code == 200


def test_a_client_that_takes_a_little_now_and_then_loses_its_reader_and_its_connection(
    sqlite_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with running(sqlite_settings) as service:
        url = _traced(service, 60_000)
        whole = len(service.http.get(url).content)  # as fast as it comes
    changes = {"body_idle_seconds": 0.5, "trace_min_bytes_per_second": 10 * MEGABYTE}
    with running(sqlite_settings.model_copy(update=changes)) as service:
        taken, deadline = 0, time.monotonic() + 15
        with service.connect(url) as connection, suppress(ConnectionResetError):
            _until(lambda: len(_readers()) == 1)
            while piece := connection.recv(1 << 16):
                taken += len(piece)
                assert time.monotonic() < deadline
                time.sleep(0.02 if _readers() else 0)
        assert 0 < taken < whole
        assert not _readers()
        assert service.http.get(f"{url}?limit=1").status_code == 200
    assert not [line for line in caplog.records if line.levelno >= logging.ERROR]


def test_a_client_that_takes_nothing_and_then_goes_on_is_cut_off_and_no_error_of_ours(
    sqlite_service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = _traced(sqlite_service, 60_000)
    monkeypatch.setattr(trace_process, "_SILENCE_SECONDS", 5)
    with sqlite_service.connect(url) as connection, suppress(ConnectionResetError):
        _until(lambda: len(_readers()) == 1)
        _until(lambda: not _readers())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert not answer.endswith(b"0\r\n\r\n")
    assert not [line for line in caplog.records if line.levelno >= logging.ERROR]


def _readers(process: psutil.Process | None = None) -> list[psutil.Process]:
    return [child for child in (process or psutil.Process()).children() if _is_reader(child)]


def _is_reader(process: psutil.Process) -> bool:
    try:
        return "app.fusions.trace_reader" in process.cmdline()
    except psutil.Error:
        return False  # it has just ended
