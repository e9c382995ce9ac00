"""Headers that take long to read: meanwhile everybody else is answered, and the API stays small."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from app.settings import Settings
from tests.app.tus.processes import ApiProcess, api_process

AT_ONCE = 4  # twice as many as there are examiners


def _wide(count: int) -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"a.{number}": entry for number in range(count)}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.fixture
def api(sqlite_settings: Settings, tmp_path: Path) -> Iterator[ApiProcess]:
    with api_process(sqlite_settings, tmp_path) as process:
        yield process


def test_while_headers_are_read_others_are_answered_and_the_api_stays_small(api: ApiProcess) -> None:
    heavy, broken = _wide(120_000), _wide(210_000)
    with httpx.Client(base_url=api.url, timeout=90) as http, ThreadPoolExecutor(AT_ONCE) as pool:
        for place in range(AT_ONCE):
            content = heavy if place % 2 else broken
            assert http.put(f"/v1/checkpoints/n{place}/files/model.safetensors", content=content).status_code == 201

        def make(place: int) -> httpx.Response:
            return httpx.post(f"{api.url}/v1/checkpoints", json={"name": f"n{place}"}, timeout=90)

        made, largest, answered = [pool.submit(make, place) for place in range(AT_ONCE)], 0, 0
        process = psutil.Process(api.pid)
        while not all(one.done() for one in made):
            assert http.get("/v1/checkpoints", timeout=20).status_code == 200
            answered += 1
            largest = max(largest, process.memory_info().rss)
        assert [one.result().status_code for one in made] == [422, 201] * (AT_ONCE // 2)
        problem = made[0].result().json()
        assert [entry["code"] for entry in problem["errors"]] == ["checkpoint.too_many_values"]
    assert answered > 1
    assert largest < 150e6
