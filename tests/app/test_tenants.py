"""Another tenant's object is not there: on every endpoint that there is, those that come later included."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from app.main import create_app
from app.settings import Settings
from app.store import ids
from tests.app.access import Guarded
from tests.app.factories import Service, chain, examples, recipe, sha256, trace_file, trace_rows

TUS = {"Tus-Resumable": "1.0.0"}
# Parameters that are names in the caller's own tenant, whatever others have under them.
NAMES = {"name", "path"}
# What a call needs besides the path, so that only the id can be what is wrong.
EXTRAS: dict[tuple[str, str], dict[str, Any]] = {
    ("head", "/v1/uploads/{upload_id}"): {"headers": TUS},
    ("delete", "/v1/uploads/{upload_id}"): {"headers": TUS},
    ("patch", "/v1/uploads/{upload_id}"): {
        "headers": {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
        "content": b"xx",
    },
    ("patch", "/v1/webhooks/{webhook_id}"): {"json": {"events": ["fusion.failed"]}},
}
# A call that takes away what the others need comes after them.
LAST = {"delete"}


@dataclass(frozen=True)
class Operation:
    """One method of one path of the contract."""

    method: str
    path: str
    parameters: frozenset[str]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    def call(self, http: httpx.Client, values: dict[str, str]) -> httpx.Response:
        """The call with these values for the parameters."""
        url = self.path
        for name in self.parameters:
            url = url.replace("{" + name + "}", values[name])
        return http.request(self.method, url, **EXTRAS.get((self.method, self.path), {}))


@pytest.fixture
def application(sqlite_settings: Settings) -> Iterator[FastAPI]:
    app = create_app(sqlite_settings)
    yield app
    app.state.context.database.close()


def operations(app: FastAPI) -> list[Operation]:
    """All of the contract."""
    found = []
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            names = {entry["name"] for entry in operation.get("parameters", []) if entry["in"] == "path"}
            found.append(Operation(method, path, frozenset(names)))
    return sorted(found, key=lambda operation: (operation.method in LAST, operation.path))


def routes(router: FastAPI | APIRouter) -> Iterator[APIRoute]:
    """Every route, however deep it was included."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from routes(route.original_router)


def things_of(service: Service) -> dict[str, str]:
    """One object of every kind, by the name that the paths have for its id."""
    content = chain(value=0.123)
    checkpoint = service.checkpoint("net", content)
    fusion_id = service.fusion()
    trace = trace_file(trace_rows(3))
    service.succeed(fusion_id, {"model.safetensors": b"the fused one", "trace.parquet": trace})
    metadata = ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}"
        for key, value in {"kind": "checkpoint", "name": "tus", "path": "a"}.items()
    )
    upload = service.http.post("/v1/uploads", headers={**TUS, "Upload-Length": "9", "Upload-Metadata": metadata})
    webhook = service.http.post("/v1/webhooks", json={"url": "https://example.com/x", "events": ["fusion.succeeded"]})
    delivery = service.http.post(f"/v1/webhooks/{webhook.json()['id']}/test")
    return {
        "checkpoint_id": checkpoint["id"],
        "dataset_id": service.dataset("data")["id"],
        "fusion_id": fusion_id,
        "upload_id": upload.headers["Location"].rpartition("/")[2],
        "webhook_id": webhook.json()["id"],
        "delivery_id": delivery.json()["id"],
        "digest": sha256(content),
        "path": "model.safetensors",
    }


def never_given() -> dict[str, str]:
    """Ids of the right form that nothing has."""
    fresh = {
        "checkpoint_id": ids.new_checkpoint_id(),
        "dataset_id": ids.new_dataset_id(),
        "fusion_id": ids.new_fusion_id(),
        "upload_id": ids.new_upload_id(),
        "webhook_id": ids.new_webhook_id(),
        "delivery_id": ids.new_delivery_id(),
    }
    return {**fresh, "digest": "0" * 64, "path": "model.safetensors"}


def test_every_route_is_in_the_contract_and_every_parameter_is_known_here(application: FastAPI) -> None:
    """A new endpoint with an id has to be taught to this file before it may go out."""
    known = {*never_given(), *NAMES}
    for operation in operations(application):
        assert operation.parameters <= known, (
            f"teach things_of() what {operation} means by {operation.parameters - known}"
        )
    told = [method["operationId"] for path in application.openapi()["paths"].values() for method in path.values()]
    for route in routes(application):
        assert any(name.startswith(route.name) for name in told), f"{route.path} is hidden from the contract"


def test_another_tenants_objects_are_not_there(guarded: Guarded, application: FastAPI) -> None:
    walked = [operation for operation in operations(application) if operation.parameters - NAMES]
    assert len(walked) >= 20
    with guarded.calling(guarded.key("one")) as one, guarded.client(guarded.key("two")) as two:
        things, nothing = things_of(one), never_given()
        seen = []
        for operation in walked:
            answer, unknown = operation.call(two, things), operation.call(two, nothing)
            assert answer.status_code == 404, f"{operation}: {answer.status_code} {answer.text}"
            if answer.content:
                assert answer.json()["code"] == unknown.json()["code"], operation
            assert unknown.status_code == 404, f"{operation}: {unknown.status_code} {unknown.text}"
        for operation in walked:  # the same calls reach the objects for their owner: so they could have failed above
            status = operation.call(one.http, things).status_code
            seen.append((str(operation), status))
    assert [entry for entry in seen if entry[1] in {401, 403, 404, 405, 415, 422} or entry[1] >= 500] == []


def test_lists_show_ones_own_only(guarded: Guarded, application: FastAPI) -> None:
    walked = [o for o in operations(application) if o.method == "get" and not o.parameters and "healthz" not in o.path]
    with guarded.calling(guarded.key("one")) as one, guarded.client(guarded.key("two")) as two:
        things_of(one)
        for operation in walked:
            if operation.path == "/v1/methods":
                continue
            mine, theirs = (operation.call(http, {}).json()["items"] for http in (one.http, two))
            assert (mine != [], theirs) == (True, []), operation
        assert two.get("/v1/checkpoints?name=net").json()["items"] == []
        token = one.http.get("/v1/checkpoints?limit=1").json()["next_page_token"]
        assert two.get("/v1/checkpoints", params={"page_token": token}).json()["items"] == []


@pytest.mark.parametrize("by", ["id", "name"])
def test_recipes_reach_ones_own_things_only(guarded: Guarded, by: str) -> None:
    with guarded.calling(guarded.key("one")) as one, guarded.calling(guarded.key("two")) as two:
        checkpoints = [one.checkpoint(name) for name in ("a", "b")]
        datasets = [one.dataset(name) for name in ("eval", "holdout")]
        document = recipe(
            sources=[{"name": made["name"], "checkpoint": made[by]} for made in checkpoints],
            data=dict(zip(("evaluation", "holdout"), (made[by] for made in datasets), strict=True)),
        )
        refused = two.http.post("/v1/fusions", json=document)
        assert refused.status_code == 422
        assert {entry["code"] for entry in refused.json()["errors"]} == {"checkpoint.not_found", "dataset.not_found"}
        validated = two.http.post("/v1/fusions/validate", json=document).json()
        assert {entry["code"] for entry in validated["errors"]} == {"checkpoint.not_found", "dataset.not_found"}
        assert one.http.post("/v1/fusions", json=document).status_code == 202


def test_files_of_a_colleague_can_be_used_and_those_of_strangers_can_not(guarded: Guarded) -> None:
    with guarded.calling(guarded.key("one")) as one, guarded.client(guarded.key("two")) as two:
        for kind, content in (("checkpoints", chain()), ("datasets", examples())):
            one.upload(kind, "net", "x.safetensors", content)
            for document in ({"name": "net"}, {"name": "net", "files": ["x.safetensors"]}):
                assert two.post(f"/v1/{kind}", json=document).status_code == 422
            stolen = {"name": "net", "blobs": {"x.safetensors": f"sha256:{sha256(content)}"}}
            assert two.post(f"/v1/{kind}", json=stolen).status_code == 422
            with guarded.client(guarded.key("one")) as colleague:
                assert colleague.post(f"/v1/{kind}", json={"name": "net"}).status_code == 201


def test_same_names_in_two_tenants_do_not_collide(guarded: Guarded) -> None:
    contents = {"one": chain(value=0.25), "two": chain(value=0.75)}
    with guarded.calling(guarded.key("one")) as one, guarded.calling(guarded.key("two")) as two:
        callers = {"one": one, "two": two}
        for tenant, caller in callers.items():
            caller.upload("checkpoints", "net", "model.safetensors", contents[tenant])
            caller.upload("datasets", "data", "data.safetensors", examples(4 if tenant == "one" else 8))
        for tenant, caller in callers.items():
            made = caller.http.post("/v1/checkpoints", json={"name": "net"}).json()
            assert made["files"][0]["sha256"] == sha256(contents[tenant])
            data = caller.http.post("/v1/datasets", json={"name": "data"}).json()
            assert data["examples"] == (4 if tenant == "one" else 8)
            found = caller.http.get("/v1/checkpoints?name=net").json()["items"]
            assert [entry["id"] for entry in found] == [made["id"]]


def test_whether_bytes_are_there_is_told_inside_a_tenant_only(guarded: Guarded) -> None:
    content = chain()
    url = f"/v1/blobs/sha256:{sha256(content)}"
    with guarded.calling(guarded.key("one")) as one, guarded.calling(guarded.key("two")) as two:
        one.checkpoint("net", content)
        assert (one.http.head(url).status_code, two.http.head(url).status_code) == (200, 404)
        two.upload("checkpoints", "mine", "model.safetensors", content)
        assert two.http.head(url).status_code == 200
