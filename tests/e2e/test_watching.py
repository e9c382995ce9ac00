"""What those who run the service see of it: metrics, traces and logs of one fusion agree with what happened."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.listening import CannotServe, listen
from tests.e2e.collector import Collector, collecting
from tests.e2e.inputs import Inputs
from tests.e2e.served import Served, serving, until
from tests.e2e.test_service import upload

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
REQUEST = "a-request-that-is-looked-for"
PORTS = 4  # API, dispatcher, a worker for fusions, one for webhooks
SECRET = "cgm_0123456789ab_" + "s3cr3tS3CR3T" * 4 + "X"


@dataclass
class Watched:
    """A service that has fused once, and everything that was to be seen of it."""

    fusion: dict[str, Any]
    traceresponse: str
    decisions: Counter[str]
    artifact_bytes: int
    uploaded_bytes: int
    metrics: dict[str, dict[tuple[tuple[str, str], ...], float]]
    collector: Collector
    log: list[dict[str, Any]]

    def value(self, name: str, **labels: str) -> float:
        """Of one sample, of whichever process served it."""
        return self.metrics[name].get(tuple(sorted(labels.items())), 0.0)


@pytest.fixture(scope="module")
def watched(small_inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched") / "data"
    port = _free_ports()
    with collecting() as collector:
        environment = {
            "COGRAM_METRICS_PORT": str(port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with serving(folder, **environment) as served:
            yield _watch(served, small_inputs, collector, port, folder.parent / "data.log")


def _watch(served: Served, inputs: Inputs, collector: Collector, port: int, log: Path) -> Watched:
    headers = {
        "traceparent": f"00-{TRACE}-{CALLER}-01",
        "X-Request-ID": REQUEST,
        "Authorization": "Basic c29tZTpzZWNyZXQ=",
    }
    until(lambda: _answers(port + 1))  # what happens from here on counts
    with served.client() as client, httpx.Client(base_url=served.address, timeout=60) as http:
        upload(client, inputs)
        answer = http.post("/v1/fusions", json=inputs.recipe(), headers=headers)
        assert answer.status_code == 202, answer.text
        fusion = client.wait(answer.json()["id"], 60)
        assert fusion["state"] == "succeeded"
        decisions = Counter(row["action"] for row in client.trace(fusion["id"]))
        artifact = next(one for one in client.artifacts(fusion["id"]) if one["path"] == "model.safetensors")
        assert http.get(f"/v1/fusions/{fusion['id']}/artifacts/model.safetensors").is_success
        assert http.get("/v1/nowhere/at/all").status_code == 404
        assert http.get("/v1/checkpoints", headers={"User-Agent": f"careless {SECRET}"}).is_success
        assert http.get("/metrics").status_code == 404  # never on the public port
    until(lambda: {"store the result", "POST /v1/fusions", "fusion attempt"} <= collector.of(TRACE).keys())
    return Watched(
        fusion,
        answer.headers["traceresponse"],
        decisions,
        artifact["size"],
        sum(inputs.path(name).stat().st_size for name in ("a", "b")),
        {name: values for place in range(PORTS) for name, values in _scrape(port + place).items()},
        collector,
        [json.loads(line) for line in log.read_text().splitlines()],
    )


def test_metrics_of_requests_are_by_route_and_count_bytes(watched: Watched) -> None:
    put = {"method": "PUT", "route": "/v1/checkpoints/{name}/files/{path}"}
    assert watched.value("cogram_http_requests_total", status="201", **put) == 2
    assert watched.value("cogram_http_received_bytes_total", **put) == watched.uploaded_bytes
    got = {"method": "GET", "route": "/v1/fusions/{fusion_id}/artifacts/{path}"}
    assert watched.value("cogram_http_sent_bytes_total", **got) == watched.artifact_bytes
    assert watched.value("cogram_http_request_seconds_count", method="POST", route="/v1/fusions") == 1
    assert watched.value("cogram_http_requests_total", status="404", method="GET", route="unmatched") == 2
    labels = {label for values in watched.metrics.values() for sample in values for _, label in sample}
    assert not [label for label in labels if watched.fusion["id"] in label or "nowhere" in label]


def test_metrics_of_jobs_are_what_the_database_has(watched: Watched) -> None:
    assert watched.value("cogram_fusions", state="succeeded") == 1
    assert watched.value("cogram_fusions_ended_total", state="succeeded") == 1
    begin, end = (datetime.fromisoformat(watched.fusion[name]) for name in ("started_at", "finished_at"))
    spent = {"method": "cogram", "state": "succeeded"}
    assert watched.value("cogram_fusion_seconds_count", **spent) == 1
    assert watched.value("cogram_fusion_seconds_sum", **spent) == pytest.approx((end - begin).total_seconds(), abs=1e-3)
    counted = {action: watched.value("cogram_decisions_total", action=action) for action in ("refined", "rolled_back")}
    assert counted == {action: watched.decisions[action] for action in counted}
    assert watched.value("cogram_decisions_total", action="accepted") == watched.decisions["merged"]
    assert sum(watched.metrics["cogram_decisions_total"].values()) == watched.decisions.total() > 0
    assert watched.value("cogram_queue_jobs", queue="fusion.cpu") == 0
    assert watched.value("cogram_leases_lost_total") == 0
    assert watched.value("cogram_database_up") == 1
    assert watched.value("cogram_dispatcher_duties_failing") == 0
    assert watched.value("cogram_worker_stopping") == 0


def test_one_trace_goes_from_the_caller_through_the_queue_to_the_stages(watched: Watched) -> None:
    spans = watched.collector.of(TRACE)
    request, attempt, store = (spans[name] for name in ("POST /v1/fusions", "fusion attempt", "store the result"))
    assert (request.service, request.parent) == ("cogram-api", CALLER)
    assert watched.traceresponse == f"00-{TRACE}-{request.id}-01"
    assert request.attributes["cogram.request_id"] == REQUEST
    assert (attempt.service, attempt.parent) == ("cogram-worker", request.id)
    assert attempt.attributes["cogram.fusion_id"] == watched.fusion["id"]
    stages = [span for span in watched.collector.spans if span.trace == TRACE and span.name.startswith("stage ")]
    assert sorted(span.attributes["cogram.stage"] for span in stages) == ["0", "1", "2"]
    assert {span.name for span in stages} == {"stage fisher", "stage cogram"}
    assert {span.parent for span in (*stages, store)} == {attempt.id}
    assert not [span for span in watched.collector.spans if span.trace == TRACE and span.failed]


def test_the_log_is_json_names_the_request_in_every_process_and_holds_no_secret(watched: Watched) -> None:
    lines = {line["event"]: line for line in watched.log if line.get("request_id") == REQUEST}
    assert lines["request"]["status"] == 202
    assert lines["request"]["trace_id"] == TRACE
    for event in ("fusion started", "fusion closed"):
        line = lines[event]
        assert line["logger"] == "worker.lease"
        assert (line["fusion_id"], line["attempt"], line["trace_id"]) == (watched.fusion["id"], 1, TRACE)
    text = json.dumps(watched.log)
    assert "c29tZTpzZWNyZXQ" not in text
    assert SECRET[-20:] not in text
    assert "careless cgm_0123456789ab_[redacted]" in text
    assert {"app.request", "worker.dispatcher"} <= {line["logger"] for line in watched.log}


def _scrape(port: int) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).is_success
    except httpx.TransportError:
        return False


def _free_ports() -> int:
    """The first of some in a row; beyond the range that the system gives away by itself."""
    for port in range(20_000, 30_000, PORTS):
        try:
            for place in range(PORTS):
                listen("127.0.0.1", port + place).close()
        except CannotServe:
            continue
        return port
    raise AssertionError("no ports are free")
