"""The client: typed errors, checked downloads, nothing half-written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import app.client as client_module
from app.client import Client, ClientError, DamagedDownload, ServiceProblem, Unreachable
from app.settings import Settings
from tests.app.conftest import running
from tests.app.factories import Service, chain, examples, trace_file, trace_rows


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    """A client of the empty service."""
    with Client(str(service.http.base_url)) as client:
        yield client


def test_a_folder_is_uploaded_with_everything_below_it(client: Client, tmp_path: Path) -> None:
    (tmp_path / "net" / "extra").mkdir(parents=True)
    (tmp_path / "net" / "model.safetensors").write_bytes(chain())
    (tmp_path / "net" / "extra" / "notes é.txt").write_bytes(b"x" * 3_000_000)
    made = client.upload_checkpoint("net", tmp_path / "net")
    assert [file["path"] for file in made["files"]] == ["extra/notes é.txt", "model.safetensors"]
    (tmp_path / "eval.safetensors").write_bytes(examples())
    assert client.upload_dataset("eval", tmp_path / "eval.safetensors")["examples"] == 6
    with pytest.raises(ClientError, match="no file"):
        client.upload_checkpoint("net", tmp_path / "none")


def test_a_refusal_carries_everything_that_the_service_said(client: Client) -> None:
    with pytest.raises(ServiceProblem) as refused:
        client.submit({"sources": []})
    problem = refused.value
    assert (problem.status, problem.code) == (422, "recipe.invalid")
    assert problem.request_id.startswith("req_")
    assert problem.errors
    assert problem.errors[0]["message"] in str(problem)
    with pytest.raises(ServiceProblem, match=r"fusion\.not_found"):
        next(client.follow("fus_0"))


def test_nobody_there_is_an_error_of_its_own(free_port: int) -> None:
    with Client(f"http://127.0.0.1:{free_port}") as client, pytest.raises(Unreachable, match="doesn't answer"):
        client.fusion("fus_0")


def test_waiting_ends_in_time(service: Service, client: Client) -> None:
    fusion_id = service.fusion()
    with pytest.raises(TimeoutError, match="queued"):
        client.wait(fusion_id, 0.2)
    service.succeed(fusion_id, {})
    assert client.wait(fusion_id, 5)["state"] == "succeeded"


def test_following_goes_on_when_the_service_could_not_answer_for_a_while(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(sqlite_settings.model_copy(update={"max_requests": 1})) as busy:
        followed, other = busy.fusion(), busy.fusion()
        busy.succeed(followed, {})
        with busy.connect(f"/v1/fusions/{other}/events") as only_one:
            assert only_one.recv(100)
            pauses = []

            def pause(seconds: float) -> None:
                pauses.append(seconds)
                only_one.close()  # so that there is room for the next try, or the one after
                time.sleep(0.05)

            monkeypatch.setattr(client_module, "time", SimpleNamespace(sleep=pause))
            with Client(str(busy.http.base_url)) as client:
                assert [event.type for event in client.follow(followed)][-1] == "succeeded"
            assert pauses


def test_artifacts_are_downloaded_and_checked(service: Service, client: Client, tmp_path: Path) -> None:
    fusion_id = service.fusion()
    service.succeed(fusion_id, {"model.safetensors": b"x" * 3_000_000, "deep/er.json": b"{}"})
    paths = client.download(fusion_id, tmp_path / "out")
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in paths) == [
        "deep/er.json",
        "model.safetensors",
    ]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"x" * 3_000_000


def test_a_damaged_download_is_not_kept(service: Service, client: Client, tmp_path: Path) -> None:
    fusion_id = service.fusion()
    service.succeed(fusion_id, {"model.safetensors": b"hello"})
    blob = service.blob(hashlib.sha256(b"hello").hexdigest())
    blob.chmod(0o644)
    blob.write_bytes(b"jello")
    with pytest.raises(DamagedDownload, match=r"model\.safetensors"):
        client.download(fusion_id, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_trace_of_many_pages_is_one(service: Service, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = trace_rows(23)
    fusion_id = service.fusion()
    service.succeed(fusion_id, {"trace.parquet": trace_file(rows)})
    expected = [row["seq"] for row in rows]
    assert [row["seq"] for row in client.trace(fusion_id)] == expected
    monkeypatch.setattr(client_module, "_TRACE_PAGE", 5)
    assert [row["seq"] for row in client.trace(fusion_id)] == expected
    layer = rows[0]["layer"]
    assert [row["seq"] for row in client.trace(fusion_id, layer=layer)] == [
        row["seq"] for row in rows if row["layer"] == layer
    ]
