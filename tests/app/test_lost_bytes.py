"""Stored bytes that are removed by other hands, or that a bucket loses, are told and logged as what they are."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from structlog.testing import capture_logs

from app.store.blobs import StoredBlob
from tests.app.factories import Service, chain, examples, sha256, trace_file, trace_rows
from tests.app.test_object_storage import far, forget_copies

__all__ = ["far"]  # a fixture
PARQUET = {"Accept": "application/vnd.apache.parquet"}
Lose = Callable[[bytes], None]


@pytest.fixture(params=["sqlite_service", "far"], ids=["disk", "bucket"])
def lossy(request: pytest.FixtureRequest) -> tuple[Service, Lose]:
    """A service, and what removes bytes from its storage."""
    service: Service = request.getfixturevalue(request.param)

    def lose(content: bytes) -> None:
        service.context.blobs.storage.remove(sha256(content))
        forget_copies(service)

    return service, lose


def _is_gone(answer: httpx.Response, content: bytes) -> bool:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (410, "blob.gone")
    assert "restore" in problem["detail"]
    assert answer.headers["Cache-Control"] == "no-store"  # or else they might stay gone for the caller
    return sha256(content) in problem["detail"]


def test_an_artifact_whose_bytes_are_gone_is_told_and_logged(lossy: tuple[Service, Lose]) -> None:
    service, lose = lossy
    fusion_id, content = service.fusion(), b"0123456789" * 1000
    service.succeed(fusion_id, {"model.safetensors": content, "report.json": b"{}"})
    url = f"/v1/fusions/{fusion_id}/artifacts"
    lose(content)
    for headers in ({}, {"Range": "bytes=5-9"}):
        with capture_logs() as logs:
            assert _is_gone(service.http.get(f"{url}/model.safetensors", headers=headers), content)
        (said,) = [line for line in logs if line["event"] == "blob.gone"]
        assert (said["log_level"], said["digest"]) == ("error", sha256(content))
    assert service.http.head(f"{url}/model.safetensors").status_code == 410
    assert service.http.get(f"{url}/report.json").content == b"{}"


def test_a_trace_whose_bytes_are_gone_is_told(lossy: tuple[Service, Lose]) -> None:
    service, lose = lossy
    fusion_id, content = service.fusion(), trace_file(trace_rows(5))
    service.succeed(fusion_id, {"trace.parquet": content})
    lose(content)
    url = f"/v1/fusions/{fusion_id}/trace"
    for rest, headers in (("", {}), ("", PARQUET), ("?layer=fc1", PARQUET), ("?limit=2", {}), ("/summary", {})):
        assert _is_gone(service.http.get(url + rest, headers=headers), content), rest


def test_a_recipe_whose_inputs_have_lost_their_bytes_is_refused_with_their_places(lossy: tuple[Service, Lose]) -> None:
    service, lose = lossy
    recipe = service.recipe()
    checkpoint = service.checkpoint("b", chain(value=0.25))["id"]
    lose(chain(value=0.25))
    answer = service.http.post("/v1/fusions", json=recipe)
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert (problem["location"], problem["code"]) == ("sources[1].checkpoint", "input.missing")
    assert checkpoint in problem["message"]
    assert service.http.post("/v1/fusions/validate", json=recipe).json()["errors"] == [problem]
    assert _is_gone(service.http.get(f"/v1/checkpoints/{checkpoint}/tensors"), chain(value=0.25))


def test_bytes_that_are_gone_are_not_held_and_come_back_with_the_next_upload(lossy: tuple[Service, Lose]) -> None:
    service, lose = lossy
    for kind, path, content in (
        ("checkpoints", "model.safetensors", chain()),
        ("datasets", "data.safetensors", examples()),
    ):
        service.upload(kind, "net", path, content)
        blob = f"/v1/blobs/sha256:{sha256(content)}"
        assert service.http.head(blob).status_code == 200
        lose(content)
        assert service.http.head(blob).status_code == 404
        answer = service.http.post(f"/v1/{kind}", json={"name": "net"})
        assert answer.status_code == 422
        assert path in answer.json()["errors"][0]["message"]
        service.upload(kind, "net", path, content)
        assert service.http.head(blob).status_code == 200
        assert service.http.post(f"/v1/{kind}", json={"name": "net"}).status_code == 201


def test_bytes_that_were_cut_off_are_gone_too(sqlite_service: Service) -> None:
    fusion_id, content = sqlite_service.fusion(), b"0123456789" * 1000
    sqlite_service.succeed(fusion_id, {"model.safetensors": content})
    path = sqlite_service.blob(sha256(content))
    path.chmod(0o600)
    path.write_bytes(b"")
    assert sqlite_service.context.blobs.storage.has(StoredBlob(sha256(content), len(content)))
    assert _is_gone(sqlite_service.http.get(f"/v1/fusions/{fusion_id}/artifacts/model.safetensors"), content)
