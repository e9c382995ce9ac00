"""Fusions: accepted or refused as a whole; looked at, waited for, cancelled, deleted."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
import yaml
from sqlalchemy import func, select

from app.fusions import service as fusions
from app.fusions.errors import FusionNotFound
from app.store import jobs
from app.store.models import Event, Fusion, FusionInput, OutboxMessage
from app.store.ownership import LOCAL
from tests.app.factories import Service, chain, examples, recipe, trace_file, trace_rows


def _rows(service: Service) -> list[int]:
    with service.context.database.reading() as session:
        tables = (Fusion, FusionInput, OutboxMessage, Event)
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


def test_a_recipe_becomes_a_queued_job_with_ids_for_names(service: Service) -> None:
    posted = service.recipe()
    answer = service.http.post("/v1/fusions", json=posted)
    assert answer.status_code == 202
    fusion = answer.json()
    assert answer.headers["Location"] == f"/v1/fusions/{fusion['id']}"
    assert "Retry-After" in answer.headers
    assert (fusion["state"], fusion["attempt"], fusion["error"], fusion["verdict"]) == ("queued", 0, None, None)
    assert [source["checkpoint"][:5] for source in fusion["recipe"]["sources"]] == ["ckpt_", "ckpt_"]
    assert fusion["recipe"]["data"]["holdout"].startswith("data_")
    assert fusion["recipe"]["seed"] == 0
    assert fusion["links"]["events"] == f"/v1/fusions/{fusion['id']}/events"
    assert _rows(service) == [1, 4, 1, 1]


def test_a_name_means_its_latest_checkpoint_and_an_id_means_itself(service: Service) -> None:
    posted = service.recipe()
    older = service.http.get("/v1/checkpoints", params={"name": "a"}).json()["items"][0]["id"]
    newer = service.checkpoint("a", chain(value=0.25))["id"]
    by_name = service.http.post("/v1/fusions", json=posted).json()
    assert by_name["recipe"]["sources"][0]["checkpoint"] == newer
    posted["sources"][0]["checkpoint"] = older
    by_id = service.http.post("/v1/fusions", json=posted).json()
    assert by_id["recipe"]["sources"][0]["checkpoint"] == older


@pytest.mark.parametrize("media", ["application/yaml", "application/x-yaml; charset=utf-8"])
def test_yaml_is_the_same_recipe(service: Service, media: str) -> None:
    text = yaml.safe_dump(service.recipe())
    answer = service.http.post("/v1/fusions", content=text, headers={"Content-Type": media})
    assert answer.status_code == 202
    assert answer.json()["recipe"]["stages"][0]["method"] == "fisher"


def test_all_problems_of_a_recipe_come_in_one_answer_and_nothing_is_queued(service: Service) -> None:
    posted = service.recipe()
    posted["stages"] = [{"method": "fischer"}, {"method": "cogram", "tau_min": 3, "tau_max": 1}]
    posted["gaurd"] = "off"
    answer = service.http.post("/v1/fusions", json=posted)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "recipe.invalid")
    locations = [error["location"] for error in problem["errors"]]
    assert {"gaurd", "stages[0].method", "stages[1].tau_min"} <= set(locations)
    assert "fisher" in answer.text
    assert "guard" in answer.text
    assert _rows(service) == [0, 0, 0, 0]


def test_every_reference_to_nothing_is_listed(service: Service) -> None:
    answer = service.http.post("/v1/fusions", json=recipe())
    assert (answer.status_code, answer.json()["code"]) == (422, "recipe.invalid")
    assert [(error["location"], error["code"]) for error in answer.json()["errors"]] == [
        ("sources[0].checkpoint", "checkpoint.not_found"),
        ("sources[1].checkpoint", "checkpoint.not_found"),
        ("data.evaluation", "dataset.not_found"),
        ("data.holdout", "dataset.not_found"),
    ]
    assert _rows(service) == [0, 0, 0, 0]


def test_what_headers_tell_is_refused_before_anything_is_queued(service: Service) -> None:
    posted = service.recipe()
    service.checkpoint("b", chain(hidden=5))
    answer = service.http.post("/v1/fusions", json=posted)
    assert answer.status_code == 422
    assert "fc1.weight" in answer.text
    service.checkpoint("b")
    service.dataset("eval", examples(classes=3))
    answer = service.http.post("/v1/fusions", json=posted)
    assert answer.status_code == 422
    assert "data.evaluation" in answer.json()["errors"][0]["location"]
    assert _rows(service) == [0, 0, 0, 0]


def test_one_source_or_a_guard_without_holdout_is_refused(service: Service) -> None:
    posted = service.recipe()
    for change in ({"sources": posted["sources"][:1]}, {"data": {"evaluation": "eval"}}):
        answer = service.http.post("/v1/fusions", json=posted | change)
        assert (answer.status_code, answer.json()["code"]) == (422, "recipe.invalid")
    assert _rows(service) == [0, 0, 0, 0]


_NO_RECIPES = [
    ("application/json", b"{", 400, "recipe.syntax"),
    ("application/json", b"[]", 400, "recipe.syntax"),
    ("application/json", b'{"seed": NaN}', 400, "recipe.syntax"),
    ("application/json", b'{"a": 1, "a": 2}', 400, "recipe.syntax"),
    ("application/json", b"[" * 100_000, 400, "recipe.syntax"),
    ("application/json", b'{"sources": "\\ud800"}', 400, "recipe.syntax"),
    ("application/json", b'{"sources": "\\u0000"}', 400, "recipe.syntax"),
    ("application/json", b'{"seed": ' + b"9" * 5000 + b"}", 400, "recipe.syntax"),
    ("application/json", b"\xff", 400, "recipe.syntax"),
    ("application/yaml", b"a: [", 400, "recipe.syntax"),
    ("application/yaml", b"a: &x [1]\nb: *x", 400, "recipe.syntax"),
    ("application/yaml", b"!!python/object:os.system {}", 400, "recipe.syntax"),
    ("text/plain", b"{}", 415, "recipe.unsupported_media"),
    ("", b"{}", 415, "recipe.unsupported_media"),
    ("application/json", b"{}", 422, "recipe.invalid"),
]


def test_a_body_that_is_no_recipe_is_refused(sqlite_service: Service) -> None:
    for media, body, status, code in _NO_RECIPES:
        for url in ("/v1/fusions", "/v1/fusions/validate"):
            answer = sqlite_service.http.post(url, content=body, headers={"Content-Type": media})
            if (url, status) == ("/v1/fusions/validate", 422):
                assert (answer.status_code, answer.json()["ok"]) == (200, False)
            else:
                assert (answer.status_code, answer.json()["code"]) == (status, code), body[:50]


def test_yaml_that_would_take_long_to_read_is_refused_unread(sqlite_service: Service) -> None:
    long = b"a: [" + b"1," * 40_000 + b"1]"
    for url in ("/v1/fusions", "/v1/fusions/validate"):
        answer = sqlite_service.http.post(url, content=long, headers={"Content-Type": "application/yaml"})
        assert (answer.status_code, answer.json()["code"]) == (413, "request.too_large")
        assert "send it as JSON" in answer.json()["detail"]
    as_json = json.dumps({"sources": [], "note": "x" * 80_000})
    answer = sqlite_service.http.post("/v1/fusions", content=as_json, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_a_document_that_is_too_long_is_refused(sqlite_service: Service) -> None:
    limit = sqlite_service.context.settings.max_json_bytes
    body = b'{"a": "' + b"x" * limit + b'"}'
    headers = {"Content-Type": "application/json"}
    for content in (body, iter([body])):
        answer = sqlite_service.http.post("/v1/fusions", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "request.too_large")


def test_validation_queues_nothing_and_gives_estimates(service: Service) -> None:
    posted = service.recipe()
    answer = service.http.post("/v1/fusions/validate", json=posted).json()
    assert (answer["ok"], answer["errors"]) == (True, [])
    assert answer["estimates"]["memory_bytes"] > 0
    answer = service.http.post("/v1/fusions/validate", json=posted | {"seed": -1}).json()
    assert (answer["ok"], answer["errors"][0]["location"]) == (False, "seed")
    assert _rows(service) == [0, 0, 0, 0]


def test_fusions_are_listed_by_state_in_pages(service: Service) -> None:
    posted = service.recipe()
    ids = [service.http.post("/v1/fusions", json=posted).json()["id"] for _ in range(3)]
    service.http.post(f"/v1/fusions/{ids[1]}/cancel")

    def listed(**query: Any) -> list[str]:
        return [item["id"] for item in service.http.get("/v1/fusions", params=query).json()["items"]]

    assert listed() == ids[::-1]
    assert listed(state="cancelled") == [ids[1]]
    assert listed(state=["cancelled", "queued"]) == ids[::-1]
    first = service.http.get("/v1/fusions", params={"state": "queued", "limit": 1}).json()
    assert [item["id"] for item in first["items"]] == [ids[2]]
    assert listed(state="queued", page_token=first["next_page_token"]) == [ids[0]]
    assert service.http.get("/v1/fusions", params={"state": "lost"}).status_code == 422


def test_a_fusion_is_not_sent_again_until_it_changes(service: Service) -> None:
    url = f"/v1/fusions/{service.fusion()}"
    answer = service.http.get(url)
    tag = answer.headers["ETag"]
    assert answer.headers["Retry-After"]
    unchanged = service.http.get(url, headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", tag)
    service.http.post(f"{url}/cancel")
    changed = service.http.get(url, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["state"]) == (200, "cancelled")
    assert "Retry-After" not in changed.headers


def test_waiting_ends_with_the_fusion(service: Service) -> None:
    fusion_id = service.fusion()
    timer = threading.Timer(0.4, service.succeed, [fusion_id, {"trace.parquet": trace_file(trace_rows(1))}])
    timer.start()
    began = time.monotonic()
    answer = service.http.get(f"/v1/fusions/{fusion_id}", params={"wait": 15})
    assert answer.json()["state"] == "succeeded"
    assert 0.3 < time.monotonic() - began < 10
    timer.join()


def test_waiting_gives_up_in_time_and_ends_early_with_any_change_that_the_caller_does_not_know(
    service: Service,
) -> None:
    url = f"/v1/fusions/{service.fusion()}"
    began = time.monotonic()
    answer = service.http.get(url, params={"wait": 0.5})
    assert answer.json()["state"] == "queued"
    assert time.monotonic() - began >= 0.5
    tag = answer.headers["ETag"]
    assert service.http.get(url, params={"wait": 0.2}, headers={"If-None-Match": tag}).status_code == 304
    timer = threading.Timer(0.3, service.claim, [url.rsplit("/", 1)[1]])
    timer.start()
    changed = service.http.get(url, params={"wait": 15}, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["state"]) == (200, "running")
    timer.join()
    assert service.http.get(url, params={"wait": 31}).status_code == 422


def test_a_queued_fusion_is_cancelled_at_once_and_a_running_one_is_asked_to_stop(service: Service) -> None:
    queued, running = service.fusion(), service.fusion()
    claim = service.claim(running)
    answer = service.http.post(f"/v1/fusions/{queued}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert service.http.post(f"/v1/fusions/{queued}/cancel").status_code == 202
    answer = service.http.post(f"/v1/fusions/{running}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    with service.context.database.transaction() as session:
        assert jobs.finish_cancelled(session, claim)
    assert service.http.get(f"/v1/fusions/{running}").json()["state"] == "cancelled"


def test_a_fusion_that_has_succeeded_can_not_be_cancelled(service: Service) -> None:
    fusion_id = service.fusion()
    service.succeed(fusion_id, {})
    answer = service.http.post(f"/v1/fusions/{fusion_id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "fusion.already_final")


def test_a_cancel_that_waits_for_a_deletion_finds_nothing(service: Service) -> None:
    cancelled, failed = service.fusion(), service.fusion()
    assert service.http.post(f"/v1/fusions/{cancelled}/cancel").status_code == 202
    claim = service.claim(failed)
    with service.context.database.transaction() as session:
        assert jobs.finish_failed(session, claim, {"code": "test", "detail": "", "errors": []})
    for fusion_id in (cancelled, failed):
        with ThreadPoolExecutor(1) as threads:
            with service.context.database.transaction() as session:
                fusions.delete(session, LOCAL.tenant, fusion_id)
                cancel = threads.submit(service.http.post, f"/v1/fusions/{fusion_id}/cancel")
                assert not wait([cancel], 0.5).done  # it has read the row, or waits to begin
            answer = cancel.result()
        assert (answer.status_code, answer.json()["code"]) == (404, "fusion.not_found")


def test_a_fusion_that_was_removed_after_it_was_seen_is_not_cancelled(postgresql_service_server: Service) -> None:
    service = postgresql_service_server
    fusion_id = service.fusion()
    assert service.http.post(f"/v1/fusions/{fusion_id}/cancel").status_code == 202
    with service.context.database.transaction() as session:
        seen = fusions.get(session, LOCAL.tenant, fusion_id)
        assert service.http.delete(f"/v1/fusions/{fusion_id}").status_code == 204
        with pytest.raises(FusionNotFound):
            fusions.cancel(session, LOCAL.tenant, fusion_id)
    assert seen.id == fusion_id  # what was read stays in the session for as long as somebody has it


def test_only_a_fusion_that_has_ended_can_be_deleted(service: Service) -> None:
    fusion_id = service.fusion()
    answer = service.http.delete(f"/v1/fusions/{fusion_id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "fusion.not_finished")
    service.succeed(fusion_id, {"trace.parquet": b"x"})
    assert service.http.delete(f"/v1/fusions/{fusion_id}").status_code == 204
    assert service.http.get(f"/v1/fusions/{fusion_id}").status_code == 404
    assert _rows(service) == [0, 0, 0, 0]


def test_why_a_fusion_failed_is_told(service: Service) -> None:
    fusion_id = service.fusion()
    claim = service.claim(fusion_id)
    entry = {"location": "a: fc1.weight", "code": "checkpoint.nan", "message": "has 3 NaN"}
    error = {"code": "checkpoint.invalid", "detail": "one source has NaN", "errors": [entry]}
    with service.context.database.transaction() as session:
        assert jobs.finish_failed(session, claim, error)
    fusion = service.http.get(f"/v1/fusions/{fusion_id}").json()
    assert (fusion["state"], fusion["error"]) == ("failed", error)


def test_an_unknown_fusion_is_a_404_everywhere(sqlite_service: Service) -> None:
    for unknown in ("fus_0", "%00"):
        for method, rest in [
            ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/trace"),
            ("GET", "/trace/summary"), ("GET", "/artifacts"), ("GET", "/artifacts/x"),
        ]:  # fmt: skip
            answer = sqlite_service.http.request(method, f"/v1/fusions/{unknown}{rest}")
            assert (answer.status_code, answer.json()["code"]) == (404, "fusion.not_found"), (method, rest)
