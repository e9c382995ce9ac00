"""A fusion that failed or was cancelled is tried again as a new one."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select

from app.store import jobs
from app.store.models import Dataset, Fusion, FusionInput, OutboxMessage
from app.store.states import FusionState
from tests.app.factories import Service

_ERROR = {"code": "fusion.internal", "detail": "No.", "errors": []}


def _retry(service: Service, fusion_id: str) -> httpx.Response:
    return service.http.post(f"/v1/fusions/{fusion_id}/retry")


def _row(service: Service, fusion_id: str) -> Fusion:
    with service.context.database.reading() as session:
        fusion = session.get(Fusion, fusion_id)
        assert fusion is not None
        return fusion


def _in_state(service: Service, state: FusionState) -> str:
    """A fusion that came there by the moves of the service."""
    fusion_id = str(service.http.post("/v1/fusions", json=service.recipe()).json()["id"])
    if state is FusionState.CANCELLED:
        service.http.post(f"/v1/fusions/{fusion_id}/cancel")
    elif state is not FusionState.QUEUED:
        with service.context.database.transaction() as session:
            claim = jobs.claim(session, fusion_id, "host:1", 60, 3)
            assert claim is not None
            if state is FusionState.FAILED:
                jobs.finish_failed(session, claim, _ERROR)
            elif state is FusionState.SUCCEEDED:
                jobs.finish_succeeded(session, claim, {}, [])
            elif state is FusionState.CANCELLING:
                jobs.request_cancel(session, fusion_id)
    assert _row(service, fusion_id).state is state
    return fusion_id


@pytest.mark.parametrize("state", [FusionState.FAILED, FusionState.CANCELLED])
def test_what_ended_without_a_result_is_queued_again_as_a_new_fusion(service: Service, state: FusionState) -> None:
    earlier = _in_state(service, state)
    answer = _retry(service, earlier)
    assert answer.status_code == 202
    fusion: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/v1/fusions/{fusion['id']}"
    assert (fusion["state"], fusion["attempt"], fusion["retry_of"]) == ("queued", 0, earlier)
    assert fusion["recipe"] == _row(service, earlier).recipe
    assert _row(service, earlier).state is state
    with service.context.database.reading() as session:
        queued = session.scalars(select(OutboxMessage.fusion_id)).all()
        used = [set(_inputs(session, of)) for of in (earlier, fusion["id"])]
    assert queued == [fusion["id"]]
    assert used[0] == used[1] != set()


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (FusionState.QUEUED, "fusion.not_finished"),
        (FusionState.RUNNING, "fusion.not_finished"),
        (FusionState.CANCELLING, "fusion.not_finished"),
        (FusionState.SUCCEEDED, "fusion.already_succeeded"),
    ],
)
def test_what_has_not_ended_or_has_a_result_is_refused(service: Service, state: FusionState, code: str) -> None:
    fusion_id = _in_state(service, state)
    answer = _retry(service, fusion_id)
    assert (answer.status_code, answer.json()["code"]) == (409, code)
    assert len(service.http.get("/v1/fusions").json()["items"]) == 1


def test_inputs_that_are_gone_are_all_named_and_nothing_is_queued(service: Service) -> None:
    fusion_id = _in_state(service, FusionState.FAILED)
    with service.context.database.transaction() as session:
        gone = session.scalars(select(Dataset.id)).all()
        session.execute(delete(Dataset))
    answer = _retry(service, fusion_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "fusion.inputs_removed")
    assert sorted(problem["location"] for problem in answer.json()["errors"]) == sorted(gone)
    assert len(service.http.get("/v1/fusions").json()["items"]) == 1


def test_no_fusion_is_not_found(service: Service) -> None:
    answer = _retry(service, "fus_" + "0" * 26)
    assert (answer.status_code, answer.json()["code"]) == (404, "fusion.not_found")


def _inputs(session: Any, fusion_id: str) -> list[str]:
    return [*session.scalars(select(FusionInput.reference).where(FusionInput.fusion_id == fusion_id))]
