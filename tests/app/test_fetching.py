"""Files of a far storage, while requests wait for them: nobody else waits, and nothing is left behind."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.fetching import fetched
from app.fusions import trace_process
from tests import services
from tests.app.conftest import running, small
from tests.app.factories import chain, examples, trace_file, trace_rows

AT_ONCE = 45  # more than there are threads for everybody's requests


def test_who_waits_for_a_far_storage_keeps_nobody_else_waiting(
    tmp_path: Path,
    sqlite_url: str,
    broker_server: str,
    mortal: services.ObjectStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace_process, "_QUEUE_SECONDS", 0.5)  # a reader is a process: most are told to come again
    settings = small(tmp_path, sqlite_url, broker_server).model_copy(update={"blob_url": mortal.prefix()})
    with running(settings) as service, ThreadPoolExecutor(AT_ONCE) as threads:
        http = service.http
        http.timeout = httpx.Timeout(60)
        tensors = f"/v1/checkpoints/{service.checkpoint('a')['id']}/tensors"
        recipe = service.recipe()
        fusion_id = service.fusion()
        service.succeed(fusion_id, {"trace.parquet": trace_file(trace_rows(2))})
        service.upload("checkpoints", "more", "model.safetensors", chain(value=0.25))
        service.upload("datasets", "more", "data.safetensors", examples(8))
        calls: list[Callable[[int], httpx.Response]] = [
            lambda _: http.get(tensors),
            lambda _: http.get(f"/v1/fusions/{fusion_id}/trace/summary"),
            lambda _: http.post("/v1/fusions/validate", json=recipe),
            lambda _: http.post("/v1/checkpoints", json={"name": "more"}),
            lambda _: http.post("/v1/datasets", json={"name": "more"}),
        ]
        for call in calls:
            shutil.rmtree(settings.blob_cache_dir, ignore_errors=True)
            with mortal.standing_still():
                waiting = [threads.submit(call, number) for number in range(AT_ONCE)]
                time.sleep(0.5)
                assert http.get("/v1/checkpoints", timeout=5).status_code == 200
                assert not any(one.done() for one in waiting)
            assert 500 not in {one.result(60).status_code for one in waiting}


def test_who_leaves_while_files_are_on_their_way_leaves_nothing_behind() -> None:
    begun, arrived, given_back = (threading.Event() for _ in range(3))

    @contextmanager
    def files() -> Iterator[None]:
        begun.set()
        assert arrived.wait(30)
        yield
        given_back.set()

    async def leave() -> None:
        async def use() -> None:
            async with fetched(files()):
                pytest.fail("nobody is there to use them")

        using = asyncio.create_task(use())
        await asyncio.to_thread(begun.wait, 30)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        assert not given_back.is_set()
        arrived.set()
        assert await asyncio.to_thread(given_back.wait, 30)

    asyncio.run(leave())
