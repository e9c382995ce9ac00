"""Every failed call is a problem document, whoever it is that refuses it; and every answer carries its request's id."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import structlog
from sqlalchemy import Connection, event

from app.main import create_app
from app.settings import Settings
from app.store.migrate import migrate
from tests.app.conftest import running, small
from tests.app.factories import Service
from tests.services import PostgreSQL

_TUS = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
MEMBERS = {"type", "title", "status", "code", "detail", "instance", "request_id", "errors"}


def _check(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem.keys() == MEMBERS
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"urn:cogram:problem:{code}")
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert all(entry.keys() == {"location", "code", "message"} for entry in problem["errors"])
    return problem


def test_unknown_paths_and_methods_are_problems(sqlite_service: Service) -> None:
    http = sqlite_service.http
    for url in ("/", "/v1", "/v2/fusions", "/v1/fusions/", "/docs", "/v1/checkpoints/a/files"):
        assert _check(http.get(url), 404, "http.not_found")["instance"] == url
    answer = http.patch("/v1/fusions")
    _check(answer, 405, "http.method_not_allowed")
    assert answer.headers["Allow"] == "GET, POST"
    assert http.request("BREW", "/v1/fusions/x/artifacts/y").headers["Allow"] == "GET, HEAD"


def test_wrong_parameters_are_listed_with_their_places(sqlite_service: Service) -> None:
    http = sqlite_service.http
    problem = _check(http.get("/v1/fusions?limit=0&state=lost"), 422, "request.invalid")
    assert {entry["location"] for entry in problem["errors"]} == {"limit", "state.0"}
    problem = _check(http.post("/v1/checkpoints", json={"name": "a/b", "file": []}), 422, "request.invalid")
    assert {entry["location"] for entry in problem["errors"]} == {"name", "file"}
    problem = _check(http.post("/v1/checkpoints", json=["x"]), 422, "request.invalid")
    headers = {"Content-Type": "application/json"}
    problem = _check(http.post("/v1/checkpoints", content=b'{"name":', headers=headers), 400, "request.malformed")
    assert problem["detail"] == "body: is not well-formed JSON at character 8: Expecting value; correct it"
    _check(http.post("/v1/checkpoints", content=b"[" * 100_000, headers=headers), 400, "http.bad_request")
    _check(http.get("/v1/checkpoints?name=%00"), 422, "request.invalid")


def test_a_mistyped_or_missing_key_is_told_with_its_remedy(sqlite_service: Service) -> None:
    http = sqlite_service.http
    for collection in ("checkpoints", "datasets"):
        problem = _check(http.post(f"/v1/{collection}", json={"nme": "x"}), 422, "request.invalid")
        assert {entry["location"]: entry["message"] for entry in problem["errors"]} == {
            "name": "is required; add it",
            "nme": "unknown key 'nme'; did you mean 'name'?",
        }
    problem = _check(http.post("/v1/checkpoints", json={"name": 1, "files": []}), 422, "request.invalid")
    assert [entry["message"] for entry in problem["errors"]] == ["must be text", "needs 1 or more entries"]
    problem = _check(http.get("/v1/fusions?limit=x"), 422, "request.invalid")
    assert problem["errors"][0]["message"] == "must be a whole number"
    problem = _check(http.get("/v1/fusions?state=lost"), 422, "request.invalid")
    assert problem["errors"][0]["message"].startswith("must be 'queued', 'running',")
    problem = _check(http.post("/v1/checkpoints", json={"name": ".."}), 422, "request.invalid")
    assert problem["errors"][0]["message"] == "a name has more than dots"


def test_so_many_mistakes_that_nobody_could_read_them_are_counted(sqlite_service: Service) -> None:
    answer = sqlite_service.http.post("/v1/webhooks", json={f"key{place}": 1 for place in range(5000)})
    errors = _check(answer, 422, "request.invalid")["errors"]
    assert len(errors) == 101
    assert errors[-1]["message"] == "4902 more things are wrong; correct these"  # url and events are missing


def test_what_is_no_http_at_all_is_a_problem_too(sqlite_service: Service) -> None:
    status, problem = sqlite_service.raw("GET", "/with a space")
    assert (status, problem["code"], problem.keys()) == (400, "request.malformed", MEMBERS)


def test_characters_that_can_not_be_written_do_not_break_the_answer(sqlite_service: Service) -> None:
    body = json.dumps({"name": "net", "files": ["\ud800"]})
    answer = sqlite_service.http.post("/v1/checkpoints", content=body, headers={"Content-Type": "application/json"})
    _check(answer, 422, "checkpoint.files_missing")


def test_something_unforeseen_is_a_500_that_tells_nothing_but_where_to_look(tmp_path: Path, broker_server: str) -> None:
    settings = small(tmp_path, f"sqlite:///{tmp_path}/without-tables.sqlite3", broker_server)
    with running(settings) as broken:
        problem = _check(broken.http.get("/v1/fusions", headers={"X-Request-ID": "mine-1"}), 500, "internal")
        assert problem["request_id"] == "mine-1"
        assert "mine-1" in problem["detail"]
        assert "sqlite" not in json.dumps(problem).lower()
        assert broken.http.get("/v1/healthz/live").status_code == 200


def test_a_database_that_is_away_is_told_as_such_and_not_as_a_mistake(
    tmp_path: Path, broker_server: str, postgresql_server: PostgreSQL, postgresql_url: str
) -> None:
    with running(small(tmp_path, postgresql_url, broker_server)) as service:
        assert service.http.get("/v1/fusions").status_code == 200
        with postgresql_server.out_of_reach(postgresql_url):
            answer = service.http.get("/v1/fusions")
            _check(answer, 503, "service.database")
            assert int(answer.headers["Retry-After"]) > 0
        assert service.http.get("/v1/fusions").status_code == 200


def test_a_database_without_room_is_told_as_such_and_not_as_a_mistake(tmp_path: Path, broker_server: str) -> None:
    settings = small(tmp_path, f"sqlite:///{tmp_path}/small.sqlite3", broker_server)
    migrate(settings.resolved_database_url)
    with running(settings) as service:
        event.listen(service.context.database.engine, "begin", _no_page_more)
        body = {"url": "https://example.org/" + "x" * 1500, "events": ["fusion.succeeded"]}
        answers = [service.http.post("/v1/webhooks", json=body) for _ in range(10)]
        answer = next(one for one in answers if one.status_code != 201)
        _check(answer, 503, "service.disk_full")


def test_a_caller_who_hangs_up_is_no_mistake_of_ours(sqlite_service: Service) -> None:
    metadata = "kind Y2hlY2twb2ludA==,name YQ==,path bW9kZWwuc2FmZXRlbnNvcnM="  # checkpoint, a, model.safetensors
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "100000", "Upload-Metadata": metadata}
    url = sqlite_service.http.post("/v1/uploads", headers=headers).headers["Location"]
    address = (sqlite_service.http.base_url.host, sqlite_service.http.base_url.port)
    with structlog.testing.capture_logs() as logs:
        with socket.create_connection(address) as line:
            head = f"PATCH {url} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            line.sendall((head + "".join(f"{key}: {_TUS[key]}\r\n" for key in _TUS) + "\r\n").encode() + b"x" * 1000)
            time.sleep(0.1)
        until = time.monotonic() + 20
        while not (told := _answers_to("PATCH", logs)) and time.monotonic() < until:
            time.sleep(0.02)
    assert told == [400]
    assert [entry["event"] for entry in logs if entry["event"].startswith("request.")] == ["request.cut_off"]


def _answers_to(method: str, logs: Sequence[Mapping[str, Any]]) -> list[int]:
    """The line about an earlier request may come after its answer."""
    return [entry["status"] for entry in logs if entry["event"] == "request" and entry["method"] == method]


def _no_page_more(connection: Connection) -> None:
    connection.exec_driver_sql("PRAGMA max_page_count = 1")  # never fewer than there are


def test_a_document_that_does_not_come_is_waited_for_so_long(sqlite_settings: Settings) -> None:
    with running(sqlite_settings.model_copy(update={"body_idle_seconds": 0.5})) as service:
        for path in ("/v1/webhooks", "/v1/fusions"):
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
            port = service.http.base_url.port
            assert port is not None
            with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
                caller.sendall(head.encode() + b"{")
                answer = caller.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"\r\nconnection: close\r\n" in answer.lower()
        assert service.http.post("/v1/webhooks", json={}).status_code == 422


def test_a_request_id_is_kept_if_it_is_plain_and_made_otherwise(sqlite_service: Service) -> None:
    http = sqlite_service.http
    assert http.get("/healthz/live", headers={"X-Request-ID": "a.B-1_"}).headers["X-Request-ID"] == "a.B-1_"
    made = set()
    for unfit in ("", "a b", "x" * 129, 'a"b'):
        made.add(http.get("/healthz/live", headers={"X-Request-ID": unfit}).headers["X-Request-ID"])
    assert len(made) == 4
    assert all(each.startswith("req_") for each in made)


def test_the_contract_declares_problems_and_recipes(sqlite_service: Service) -> None:
    document = sqlite_service.http.get("/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert set(response["content"]) == {"application/problem+json"}, (method, path)
    references = set(_references(document))
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
    assert "#/components/schemas/Recipe" in references


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for inner in value.values() for found in _references(inner)]
    return [found for inner in value for found in _references(inner)] if isinstance(value, list) else []


def test_every_route_answers_an_unknown_id_with_what_it_declares(sqlite_service: Service) -> None:
    document = create_app(sqlite_service.context.settings).openapi()
    for path, operations in document["paths"].items():
        if "_id}" not in path:
            continue
        url = path.replace("{path}", "x")
        url = re.sub(r"{\w+_id}", "unknown", url)
        for method, operation in operations.items():
            headers = _TUS if "upload_id" in path else {"Content-Type": "application/json"}
            content = b"{}" if method == "patch" else b""
            answer = sqlite_service.http.request(method, url, headers=headers, content=content)
            assert answer.status_code == 404, (method, path)
            assert "404" in operation["responses"]
