"""Bytes that a tenant has already need not come again; those of others are as if they weren't there."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from app.client import Client, ServiceProblem
from app.store.blobs import Collector
from app.store.models import Checkpoint, Dataset, Fusion, UploadedFile
from tests.app.factories import Service, chain, examples, sha256


def _has(service: Service, content: bytes) -> bool:
    answer = service.http.head(f"/v1/blobs/sha256:{sha256(content)}")
    assert answer.status_code in {200, 404}
    if answer.status_code == 200:
        assert answer.headers["Content-Length"] == str(len(content))
    return answer.status_code == 200


def _refused(service: Service, kind: str, document: dict[str, object]) -> list[tuple[str, str]]:
    answer = service.http.post(f"/v1/{kind}", json=document)
    assert answer.status_code == 422, answer.text
    return [(error["location"], error["message"]) for error in answer.json()["errors"]]


def test_a_tenant_finds_the_bytes_of_all_its_things(service: Service) -> None:
    assert not _has(service, b"hello")
    service.upload("datasets", "d", "x", b"hello")
    assert _has(service, b"hello")
    service.checkpoint("net", chain())
    service.dataset("eval", examples())
    service.succeed(service.fusion(), {"report.json": b"{}"})
    assert all(_has(service, content) for content in (chain(), examples(), b"{}"))
    with service.context.database.transaction() as session:
        for table in (UploadedFile, Checkpoint, Dataset, Fusion):
            session.execute(update(table).values(tenant="other"))
    assert not any(_has(service, content) for content in (b"hello", chain(), examples(), b"{}"))


def test_what_is_no_digest_is_refused(sqlite_service: Service) -> None:
    for wrong in ("abc", "A" * 64, "g" * 64):
        assert sqlite_service.http.head(f"/v1/blobs/sha256:{wrong}").status_code == 422


def test_a_checkpoint_is_made_of_bytes_that_are_here(service: Service) -> None:
    first = service.checkpoint("net", chain())
    again = {"name": "again", "blobs": {"model.safetensors": f"sha256:{sha256(chain())}"}}
    made = service.http.post("/v1/checkpoints", json=again)
    assert made.status_code == 201, made.text
    assert (made.json()["sha256"], made.json()["name"]) == (first["sha256"], "again")
    service.upload("checkpoints", "both", "config.json", b"{}")
    both = service.http.post("/v1/checkpoints", json=again | {"name": "both", "files": ["config.json"]}).json()
    assert [file["path"] for file in both["files"]] == ["config.json", "model.safetensors"]
    with service.context.database.reading() as session:
        assert session.query(UploadedFile).count() == 0


def test_a_dataset_is_made_of_bytes_that_are_here(service: Service) -> None:
    service.dataset("eval", examples())
    blobs = {"data.safetensors": f"sha256:{sha256(examples())}"}
    made = service.http.post("/v1/datasets", json={"name": "again", "blobs": blobs})
    assert (made.status_code, made.json()["sha256"]) == (201, sha256(examples()))
    problems = _refused(service, "datasets", {"name": "d", "blobs": blobs, "files": ["x"]})
    assert [place for place, _ in problems] == ["files"]


def test_all_that_is_wrong_is_told_at_once_and_nothing_stays(service: Service) -> None:
    service.upload("checkpoints", "net", "here", b"{}")
    held = f"sha256:{sha256(b'{}')}"
    nowhere = f"sha256:{sha256(b'nowhere')}"
    document = {
        "name": "net",
        "files": ["missing", "here"],
        "blobs": {"here": held, "a": nowhere, "../b": held, "c.pkl": held, "d": held},
    }
    problems = _refused(service, "checkpoints", document)
    assert [(place, message.split(":")[0].split()[0]) for place, message in problems] == [
        ("blobs", "'../b'"), ("blobs", "'a'"), ("blobs", "'c.pkl'"), ("blobs", "'here'"), ("files", "'missing'"),
    ]  # fmt: skip
    with service.context.database.reading() as session:
        assert [file.path for file in session.query(UploadedFile)] == ["here"]
    shapes = _refused(service, "checkpoints", {"name": "net", "blobs": {"a": "sha256:abc", "b": "md5:x"}})
    assert [place for place, _ in shapes] == ["blobs.a", "blobs.b"]
    assert [place for place, _ in _refused(service, "checkpoints", {"name": "net", "blobs": {}})] == ["blobs"]


def test_another_tenants_bytes_are_not_here(service: Service) -> None:
    service.upload("checkpoints", "net", "model.safetensors", chain())
    with service.context.database.transaction() as session:
        session.execute(update(UploadedFile).values(tenant="other"))
    blobs = {"model.safetensors": f"sha256:{sha256(chain())}"}
    ((place, message),) = _refused(service, "checkpoints", {"name": "net", "blobs": blobs})
    assert (place, "upload the file" in message) == ("blobs", True)
    service.upload("checkpoints", "net", "model.safetensors", chain())
    assert service.http.post("/v1/checkpoints", json={"name": "net", "blobs": blobs}).status_code == 201


def test_the_client_sends_nothing_twice(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(chain())
    (folder / "config.json").write_bytes(b"{}")
    with Client(str(service.http.base_url)) as client:
        first = client.upload_checkpoint("net", folder)
        (folder / "notes.txt").write_bytes(b"new")
        sent: list[str] = []
        put = Client._put
        monkeypatch.setattr(Client, "_put", lambda self, *rest: sent.append(rest[2]) or put(self, *rest))  # type: ignore[func-returns-value]
        second = client.upload_checkpoint("net", folder)
    assert sent == ["notes.txt"]
    assert [file["path"] for file in second["files"]] == ["config.json", "model.safetensors", "notes.txt"]
    assert second["files"][:2] == first["files"]


@pytest.mark.parametrize("times", [1, 2])
def test_the_client_brings_after_all_what_is_collected_after_it_asked(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(chain())
    (folder / "config.json").write_bytes(b"{}")
    collector = Collector(service.context.database, service.context.blobs.storage, timedelta())
    has, asked = Client.has, 0

    def collected_after(client: Client, digest: str) -> bool:
        nonlocal asked
        there = has(client, digest)
        if digest == sha256(chain()) and asked < times:
            asked += 1
            for checkpoint in service.http.get("/v1/checkpoints").json()["items"]:
                assert service.http.delete(f"/v1/checkpoints/{checkpoint['id']}").status_code == 204
            assert collector.take(digest)
            if asked < times:  # another has brought it, and it will go the same way
                service.checkpoint("other", chain())
        return there

    with Client(str(service.http.base_url)) as client:
        client.upload_checkpoint("first", folder)
        monkeypatch.setattr(Client, "has", collected_after)
        if times == 1:
            made = client.upload_checkpoint("net", folder)
            assert [file["sha256"] for file in made["files"]] == [sha256(b"{}"), sha256(chain())]
        else:
            with pytest.raises(ServiceProblem, match=r"upload the file"):  # once more, and not for ever
                client.upload_checkpoint("net", folder)
    assert asked == times
