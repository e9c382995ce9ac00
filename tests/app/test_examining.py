"""Headers are read by children with limits: whatever a file says, the API stays small, alive and clear about it."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from app.store.migrate import migrate
from tests.app.conftest import running, small
from tests.app.factories import Service, chain, safetensors_file
from tests.app.test_trace_process import MEGABYTE, alone

__all__ = ["alone"]

ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
FEW = b"\0" * 4


def file(header: str | bytes, data: bytes = FEW) -> bytes:
    raw = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def many(count: int, shape: str = "[0]") -> bytes:
    """A legal file of so many empty tensors."""
    entries = ",".join(f'"layer.{i}.w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}' for i in range(count))
    return file("{" + entries + "}", b"")


DEEP = "[" * 200_000 + "]" * 200_000
BOMBS: dict[str, tuple[bytes, str]] = {
    "more brackets than any network needs": (file('{"a":' + "[]," * 500_000 + "0}"), "checkpoint.too_many_values"),
    "nesting, closed": (file('{"a":' + DEEP + "}"), "checkpoint.nesting"),
    "nesting, never closed": (file("{" + '"a":{' * 300_000), "checkpoint.too_many_values"),
    "objects in the metadata": (file('{"__metadata__":{"a":{"b":{"c":{}}}},"t":' + ENTRY + "}"), "checkpoint.nesting"),
    "one name twice": (file('{"t":' + ENTRY + ',"t":' + ENTRY + "}"), "checkpoint.duplicate_key"),
    "one key twice in an entry": (file('{"t":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}'),
        "checkpoint.duplicate_key"),
    "names that are equal once unescaped": (file('{"t":' + ENTRY + ',"\\u0074":' + ENTRY + "}"), "checkpoint.duplicate_key"),
    "a header of 16 MiB and a byte": (struct.pack("<Q", 16 * MEGABYTE + 1) + b"{}", "checkpoint.header_too_large"),
    "a header of 2**64 - 1 bytes": (b"\xff" * 8 + b"{}", "checkpoint.header_too_large"),
    "a header longer than the file": (struct.pack("<Q", 1000) + b"{}", "checkpoint.truncated"),
    "a name of a million letters": (file('{"' + "x" * 1_000_000 + '":' + ENTRY + "}"), "checkpoint.name"),
    "a number of a million digits": (file('{"t":{"dtype":"F32","shape":[' + "9" * 1_000_000 + '],"data_offsets":[0,4]}}'),
        "checkpoint.shape"),
    "a negative number": (file('{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'), "checkpoint.shape"),
    "a shape that overflows": (file('{"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'),
        "checkpoint.overflow"),
    "offsets beyond 2**63": (file('{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775808]}}'),
        "checkpoint.offsets"),
    "not a number": (file('{"t":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}'), "checkpoint.json"),
    "infinity": (file('{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}'), "checkpoint.json"),
    "a number beyond floats": (file('{"t":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}'), "checkpoint.shape"),
    "half of a surrogate pair": (file('{"\\ud800":' + ENTRY + "}"), "checkpoint.name"),
    "UTF-8 that is none": (file(b'{"\xff":' + ENTRY.encode() + b"}"), "checkpoint.encoding"),
    "a name that turns the text around": (file('{"a\\u202eb":' + ENTRY + "}"), "checkpoint.name"),
    "a name with NUL in it": (file('{"a\\u0000b":' + ENTRY + "}"), "checkpoint.name"),
    "more tensors than are taken": (file("{" + ",".join(f'"{i}":{{}}' for i in range(200_500)) + "}"),
        "checkpoint.too_many_tensors"),
    "thousands of faults": (file("{" + ",".join(f'"{i}":1' for i in range(50_000)) + "}"), "checkpoint.entry"),
    "a pickle": (b"\x80\x04\x95" + b"\0" * 100, "checkpoint.pickle"),
    "nothing": (b"", "checkpoint.truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_with_its_reason(sqlite_service: Service, name: str) -> None:
    content, code = BOMBS[name]
    sqlite_service.upload("checkpoints", "bomb", "model.safetensors", content)
    answer = sqlite_service.http.post("/v1/checkpoints", json={"name": "bomb"})
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint.invalid"), answer.text
    assert code in {error["code"] for error in answer.json()["errors"]}
    assert len(answer.json()["errors"]) <= 51
    assert len(answer.content) < 100_000


NETWORKS = {
    "nesting": '{"kind":"sequential","layers":' + DEEP + "}",
    "aliases": "a: &a [1,2]\n" + "\n".join(f"b{i}: [*a, *a, *a]" for i in range(50)),
    "digits": '{"kind":"sequential","layers":[{"type":"linear","name":"a","in_features":' + "9" * 900_000 + "}]}",
    "a whole megabyte and more": " " * (MEGABYTE + 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_description_of_a_network_may_be_no_bomb_either(sqlite_service: Service, name: str) -> None:
    sqlite_service.upload("checkpoints", "bomb", "model.safetensors", chain())
    sqlite_service.upload("checkpoints", "bomb", "network.json", NETWORKS[name].encode())
    answer = sqlite_service.http.post("/v1/checkpoints", json={"name": "bomb"})
    assert (answer.status_code, answer.json()["code"]) == (422, "network.invalid"), answer.text
    assert len(answer.content) < 100_000


def test_the_api_stays_small_while_a_legal_header_takes_hundreds_of_megabytes(
    alone: tuple[Service, psutil.Process],
) -> None:
    service, process = alone
    service.upload("checkpoints", "wide", "model.safetensors", many(150_000))
    answer = service.http.post("/v1/checkpoints", json={"name": "wide"})
    assert (answer.status_code, answer.json()["tensors"]) == (201, 150_000), answer.text
    page = service.http.get(f"/v1/checkpoints/{answer.json()['id']}/tensors", params={"limit": 3}).json()
    assert [one["name"] for one in page["items"]] == ["layer.0.w", "layer.1.w", "layer.10.w"]
    assert process.memory_info().rss < 150 * MEGABYTE
    for child in process.children():
        assert child.memory_info().rss < 150 * MEGABYTE  # what has grown was replaced


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, broker_server: str) -> Iterator[Service]:
    """A service with one examiner, and limits that are reached at once."""
    folder = tmp_path_factory.mktemp("single")
    url = f"sqlite:///{folder}/cogram.sqlite3"
    migrate(url)
    limits = {
        "examiners": 1,
        "examine_queue_seconds": 0.5,
        "examine_seconds": 6.0,
    }
    with running(small(folder, url, broker_server).model_copy(update=limits)) as service:
        yield service


def _child(service: Service) -> psutil.Process:
    """The examiner, once it has answered a question."""
    _post(service, "first")
    (pid,) = service.context.examiners.pids
    return psutil.Process(pid)


def _post(service: Service, name: str = "next") -> httpx.Response:
    service.upload("checkpoints", name, "model.safetensors", chain())
    return service.http.post("/v1/checkpoints", json={"name": name}, timeout=60)


def test_too_much_memory_is_a_clear_refusal(tmp_path: Path, sqlite_url: str, broker_server: str) -> None:
    limits = {"examine_memory_bytes": 256 * MEGABYTE, "max_upload_bytes": 64 * MEGABYTE, "examiners": 1}
    with running(small(tmp_path, sqlite_url, broker_server).model_copy(update=limits)) as service:
        service.upload("checkpoints", "wide", "model.safetensors", many(199_000, "[0,0,0,0,0,0]"))
        answer = service.http.post("/v1/checkpoints", json={"name": "wide"}, timeout=60)
        assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint.too_costly"), answer.text
        assert "268435456 bytes of memory (COGRAM_EXAMINE_MEMORY_BYTES)" in answer.json()["detail"]
        assert answer.json()["errors"]
        assert _post(service).status_code == 201


def test_too_much_time_is_a_clear_refusal_and_ends_the_child(single: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    child = _child(single)
    child.suspend()
    pool = single.context.examiners._pool
    monkeypatch.setattr(pool, "_limits", replace(pool._limits, seconds=0.5))
    answer = _post(single)
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint.too_costly")
    assert "COGRAM_EXAMINE_SECONDS" in answer.json()["detail"]
    _until(lambda: not child.is_running())


def test_too_much_processor_time_is_a_clear_refusal(single: Service) -> None:
    with ThreadPoolExecutor(1) as thread:
        child = _child(single)
        child.suspend()
        asked = thread.submit(_post, single)
        _until(lambda: _is_busy(single))
        os.kill(child.pid, signal.SIGXCPU)  # as the kernel does
        child.resume()
        answer = asked.result()
        assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint.too_costly")
        assert "COGRAM_EXAMINE_CPU_SECONDS" in answer.json()["detail"]
        assert _post(single).status_code == 201


def test_the_kernel_ends_what_takes_too_much_processor_time() -> None:
    code = "from app.examining.limits import bound_processor\nbound_processor(1)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGXCPU


def test_a_child_that_dies_is_replaced_and_the_question_asked_again(single: Service) -> None:
    with ThreadPoolExecutor(1) as thread:
        _child(single).kill()
        assert _post(single, "after-an-idle-one").status_code == 201
        child = psutil.Process(single.context.examiners.pids[0])
        child.suspend()
        asked = thread.submit(_post, single, "after-a-busy-one")
        _until(lambda: _is_busy(single))
        child.kill()
        assert asked.result().status_code == 201


def test_a_caller_who_goes_away_takes_the_question_along(single: Service) -> None:
    child = _child(single)
    child.suspend()
    single.upload("checkpoints", "left", "model.safetensors", chain())
    body = json.dumps({"name": "left"})
    with single.connect("/v1/healthz/live") as connection:
        connection.recv(65536)
        head = "POST /v1/checkpoints HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        _until(lambda: _is_busy(single))
    _until(lambda: not child.is_running())
    assert _post(single).status_code == 201


def test_who_would_wait_too_long_is_told_to_come_again(single: Service) -> None:
    with ThreadPoolExecutor(1) as thread:
        child = _child(single)
        child.suspend()
        first = thread.submit(_post, single, "first-in-the-queue")
        _until(lambda: _is_busy(single))
        answer = _post(single, "second-in-the-queue")
        assert (answer.status_code, answer.json()["code"]) == (503, "examining.busy")
        assert answer.headers["Retry-After"]
        assert single.http.get("/v1/healthz/live").status_code == 200
        child.resume()
        assert first.result().status_code == 201


def test_a_small_question_never_waits_behind_large_ones(tmp_path: Path, sqlite_url: str, broker_server: str) -> None:
    settings = small(tmp_path, sqlite_url, broker_server)
    with running(settings) as service, ThreadPoolExecutor(2) as thread:
        assert settings.examiners == 2
        _until(lambda: bool(service.context.examiners.pids))
        (child,) = map(psutil.Process, service.context.examiners.pids)
        for name in ("large", "larger"):
            service.upload("checkpoints", name, "model.safetensors", many(15_000, "[0,0,0,0,0,0]"))
        child.suspend()
        large = [
            thread.submit(service.http.post, "/v1/checkpoints", json={"name": name}) for name in ("large", "larger")
        ]
        _until(lambda: _is_busy(service))
        assert _post(service).status_code == 201  # by the second child
        assert not any(one.done() for one in large)
        child.resume()
        assert [one.result().json()["tensors"] for one in large] == [15_000, 15_000]


def test_warm_children_are_used_again(single: Service) -> None:
    child = _child(single)
    for number in range(5):
        assert _post(single, f"number-{number}").status_code == 201
    recipe = single.recipe(stages=[{"method": "linear"}], guard={"mode": "off"})
    assert single.http.post("/v1/fusions/validate", json=recipe).json()["ok"]
    assert single.context.examiners.pids == [child.pid]


def test_a_dataset_that_is_no_dataset_is_refused_under_its_own_name(sqlite_service: Service) -> None:
    content = safetensors_file({"inputs": ("F32", (1, 1), FEW)})
    sqlite_service.upload("datasets", "broken", "data.safetensors", content)
    answer = sqlite_service.http.post("/v1/datasets", json={"name": "broken"})
    assert (answer.status_code, answer.json()["code"]) == (422, "dataset.invalid")
    assert answer.json()["errors"][0]["location"] == "data.safetensors"


def _is_busy(service: Service) -> bool:
    pool = service.context.examiners._pool
    return bool(pool._busy)


def _until(ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.02)
