"""A caller's trace goes with its job, whether or not this process sends spans anywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app.listening import listen
from app.store.models import Fusion
from tests.app.factories import Service

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WRONG = [
    "",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
    "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
    GIVEN + "-more",
    GIVEN + "\u00e9",
]


def test_a_job_keeps_the_trace_and_the_id_of_its_request(service: Service) -> None:
    recipe = service.recipe()
    answer = service.http.post("/v1/fusions", json=recipe, headers={"traceparent": GIVEN, "X-Request-ID": "mine"})
    assert answer.headers["traceresponse"] == GIVEN
    fusion = _row(service, answer.json()["id"])
    assert (fusion.traceparent, fusion.request_id) == (GIVEN, "mine")
    claim = service.claim(fusion.id)
    assert (claim.origin.traceparent, claim.origin.request_id) == (GIVEN, "mine")


@pytest.mark.parametrize("given", WRONG)
def test_what_is_no_trace_context_is_left_out(sqlite_service: Service, given: str) -> None:
    headers = {"traceparent": given.encode("latin-1")}
    answer = sqlite_service.http.get(f"/v1/fusions/{sqlite_service.fusion()}", headers=headers)
    assert (answer.status_code, "traceresponse" in answer.headers) == (200, False)
    posted = sqlite_service.http.post(
        "/v1/fusions", json=sqlite_service.recipe(), headers={"traceparent": given.encode("latin-1")}
    )
    assert _row(sqlite_service, posted.json()["id"]).traceparent is None


def test_without_a_collector_nothing_of_the_sdk_is_loaded() -> None:
    code = (
        "import sys, app.serving, app.tracing, worker.spans\n"
        "app.tracing.start_tracing('api')\n"
        "with app.tracing.span('nothing') as span: assert span is None\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_a_collector_that_never_answers_keeps_no_process_from_ending() -> None:
    code = (
        "import app.tracing as tracing\n"
        "tracing.start_tracing('test')\n"
        "with tracing.span('something') as span: assert span is not None\n"
        "tracing.flush_traces()\n"
    )
    with listen("127.0.0.1", 0) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": where, "OTEL_EXPORTER_OTLP_TIMEOUT": "600"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def _row(service: Service, fusion_id: str) -> Fusion:
    with service.context.database.reading() as session:
        return session.get_one(Fusion, fusion_id)
