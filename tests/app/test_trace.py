"""The trace over HTTP: lines or Parquet, filtered, in pages, and summed up."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from app.fusions import trace_file as reading
from app.fusions.trace_query import Filters
from tests.app.factories import Service, sha256, trace_file, trace_rows

PARQUET = "application/vnd.apache.parquet"
ROWS = 200


@pytest.fixture
def url(service: Service) -> str:
    """The trace of a fusion with 200 decisions in four row groups."""
    fusion_id = service.fusion()
    service.succeed(fusion_id, {"trace.parquet": trace_file(trace_rows(ROWS))})
    return f"/v1/fusions/{fusion_id}/trace"


def _lines(service: Service, url: str, **query: Any) -> list[dict[str, Any]]:
    answer = service.http.get(url, params=query)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    return [json.loads(line, parse_constant=pytest.fail) for line in answer.text.splitlines()]


def test_every_decision_is_a_line_without_its_payload(service: Service, url: str) -> None:
    lines = _lines(service, url)
    assert [line["seq"] for line in lines] == list(range(ROWS))
    expected = trace_rows(1)[0]
    del expected["payload"]
    assert lines[0] == expected | {"loss_sources": [1.0, None]}  # JSON has no NaN


def test_filters_choose_decisions(service: Service, url: str) -> None:
    rows = trace_rows(ROWS)
    for query in (
        {"layer": "fc1"},
        {"kind": "neuron"},
        {"action": "rolled_back"},
        {"action": "trained"},
        {"layer": "fc2", "kind": "layer"},
    ):
        wanted = [row["seq"] for row in rows if all(row[key] == value for key, value in query.items())]
        assert [line["seq"] for line in _lines(service, url, **query)] == wanted
    assert _lines(service, url, layer="none") == []
    assert service.http.get(url, params={"action": "kept"}).status_code == 422


def test_nobody_in_between_is_to_buffer_a_trace(service: Service, url: str) -> None:
    assert service.http.get(url, params={"limit": 1}).headers["X-Accel-Buffering"] == "no"


def test_pages_together_are_the_whole(service: Service, url: str) -> None:
    for query in ({}, {"layer": "fc2", "action": "refined"}):
        whole = _lines(service, url, **query)
        paged = []
        answer = service.http.get(url, params={**query, "limit": 23})
        while True:
            page = [json.loads(line) for line in answer.text.splitlines()]
            assert len(page) <= 23
            paged += page
            if "next" not in answer.links:
                break
            answer = service.http.get(answer.links["next"]["url"])
        assert paged == whole


def test_parquet_is_the_artifact_itself_or_a_filtered_copy(service: Service, url: str) -> None:
    answer = service.http.get(url, headers={"Accept": PARQUET})
    assert answer.headers["Content-Type"] == PARQUET
    assert sha256(answer.content) == sha256(trace_file(trace_rows(ROWS)))
    answer = service.http.get(url, headers={"Accept": PARQUET}, params={"action": "merged"})
    assert answer.headers["Content-Type"] == PARQUET
    table = pyarrow.parquet.read_table(io.BytesIO(answer.content))
    assert table.column("seq").to_pylist() == [0, 1]


def test_the_artifact_itself_keeps_conditions_as_the_contract_says(service: Service, url: str) -> None:
    foreign = {"Accept": PARQUET, "If-Match": '"x"'}
    assert service.http.get(url, headers=foreign).status_code == 412
    declared = service.http.get("/v1/openapi.json").json()["paths"]["/v1/fusions/{fusion_id}/trace"]["get"]["responses"]
    assert "412" in declared


def test_the_summary_counts_each_layer(service: Service, url: str) -> None:
    rows = [row for row in trace_rows(ROWS) if row["layer"] == "fc2"]
    accepted = [row for row in rows if row["action"] == "merged"]
    layers = service.http.get(f"{url}/summary").json()["layers"]
    assert [layer["layer"] for layer in layers] == ["fc1", "fc2"]
    assert layers[1] == {
        "layer": "fc2",
        "visits": len(rows),
        "accepted": len(accepted),
        "trained": 1,
        "rolled_back": sum(row["action"] == "rolled_back" for row in rows),
        "skipped": 0,
        "shares": [{"source": "a", "mean_share": 0.25}, {"source": "b", "mean_share": 0.75}],
        "loss_gained": pytest.approx(0.5 * len(accepted)),
    }


def test_there_is_no_trace_before_the_end_nor_after_a_failure(service: Service) -> None:
    fusion_id = service.fusion()
    for rest in ("trace", "trace/summary", "artifacts", "artifacts/model.safetensors"):
        answer = service.http.get(f"/v1/fusions/{fusion_id}/{rest}")
        assert (answer.status_code, answer.json()["code"]) == (409, "fusion.not_finished")
    service.http.post(f"/v1/fusions/{fusion_id}/cancel")
    answer = service.http.get(f"/v1/fusions/{fusion_id}/trace")
    assert (answer.status_code, answer.json()["code"]) == (409, "fusion.no_result")


def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    peaks = []
    for rows in (1_000, 8_000):
        path = tmp_path / f"{rows}.parquet"
        path.write_bytes(trace_file(trace_rows(rows), group_rows=500))
        tracemalloc.start()
        assert sum(1 for _ in reading.lines(path, Filters())) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5
