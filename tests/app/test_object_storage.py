"""The service over blobs that lie in a real S3-compatible server, which may go away and come back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.client import Client
from app.settings import Settings
from app.store.models import Blob, UploadedFile
from tests import services
from tests.app.conftest import running, small
from tests.app.factories import Service, examples, sha256
from tests.app.test_artifacts import CONTENT, SIZE

FILE = "/v1/checkpoints/net/files/model.safetensors"


def _far(folder: Path, database_url: str, broker_url: str, blob_url: str, **changes: object) -> Settings:
    changes = {"blob_url": blob_url, "blob_patience_seconds": 0.3, **changes}
    return small(folder, database_url, broker_url).model_copy(update=changes)


@pytest.fixture
def far(tmp_path: Path, sqlite_url: str, broker_server: str, blob_url: str) -> Iterator[Service]:
    """The service over the object storage of all tests."""
    with running(_far(tmp_path, sqlite_url, broker_server, blob_url)) as service:
        yield service


def forget_copies(service: Service) -> None:
    """What other machines have to begin with."""
    shutil.rmtree(service.context.settings.blob_cache_dir, ignore_errors=True)


def _copied(service: Service, kind: str) -> set[str]:
    return {path.name for path in service.context.settings.blob_cache_dir.glob(f"{kind}/*/*")}


def test_a_recipe_is_checked_on_another_machine_by_headers_alone(far: Service) -> None:
    document = far.recipe()
    checkpoint = far.checkpoint("a")
    forget_copies(far)
    assert far.http.get(f"/v1/checkpoints/{checkpoint['id']}/tensors").json()["items"][0]["name"] == "fc1.bias"
    answer = far.http.post("/v1/fusions/validate", json=document)
    assert answer.json()["ok"], answer.text
    assert _copied(far, "headers") == {checkpoint["files"][0]["sha256"]}
    assert _copied(far, "whole") == set()
    far.upload("datasets", "more", "data.safetensors", examples(8))
    forget_copies(far)
    assert far.http.post("/v1/datasets", json={"name": "more"}).json()["examples"] == 8
    assert _copied(far, "whole") == {sha256(examples(8))}
    assert not far.incoming()


def test_downloads_are_the_same_as_from_the_local_disk(far: Service, sqlite_service: Service) -> None:
    files = {"model.safetensors": CONTENT, "empty": b""}
    urls = []
    for service in (far, sqlite_service):
        fusion_id = service.fusion()
        service.succeed(fusion_id, files)
        urls.append(f"/v1/fusions/{fusion_id}/artifacts")
    forget_copies(far)
    tag, other = f'"{sha256(CONTENT)}"', '"other"'
    asked: list[dict[str, str]] = [
        {},
        {"Range": "bytes=4-4"},  # this server takes the end 0 for none
        {"Range": "bytes=5-2000000"},
        {"Range": "bytes=-7"},
        {"Range": f"bytes={SIZE}-"},
        {"Range": "bytes=1-2,4-5"},
        {"Range": "bytes=1-2", "If-Range": tag},
        {"Range": "bytes=1-2", "If-Range": f"W/{tag}"},
        {"Range": "bytes=1-2", "If-Range": other},
        {"If-None-Match": tag},
        {"If-None-Match": f"{other}, W/{tag}", "Range": "bytes=1-2"},
        {"If-None-Match": other},
        {"If-None-Match": "*"},
    ]
    for method in ("GET", "HEAD"):
        for path, content in files.items():
            for headers in asked:
                answers = [
                    service.http.request(method, f"{url}/{path}", headers=headers)
                    for service, url in zip((far, sqlite_service), urls, strict=True)
                ]
                first, second = map(_told, answers)
                assert first == second, (method, path, headers)
                if method == "HEAD" and "If-None-Match" not in headers:
                    # A Range is for GET alone.
                    assert (answers[0].status_code, answers[0].headers["Content-Length"]) == (
                        200,
                        str(len(content)),
                    )
    assert _copied(far, "whole") == set()  # pieces went through, and nothing was kept


def _told(answer: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    own = {"date", "x-request-id"}
    headers = {name: value for name, value in answer.headers.items() if name not in own}
    problem = "problem" in answer.headers.get("Content-Type", "")
    if problem:
        headers.pop("content-length", None)
    return answer.status_code, b"" if problem else answer.content, headers


def test_downloads_go_to_the_storage_itself_where_that_is_wanted(
    tmp_path: Path, sqlite_url: str, broker_server: str, blob_url: str
) -> None:
    settings = _far(tmp_path, sqlite_url, broker_server, blob_url, presigned_seconds=60)
    with running(settings) as service:
        fusion_id = service.fusion()
        service.succeed(fusion_id, {"model.safetensors": CONTENT})
        url = f"/v1/fusions/{fusion_id}/artifacts/model.safetensors"
        sent = service.http.get(url)
        assert (sent.status_code, sent.headers["Cache-Control"]) == (307, "no-store")
        with httpx.Client() as anybody:
            part = anybody.get(sent.headers["Location"], headers={"Range": "bytes=3-9"})
            assert (part.status_code, part.content) == (206, CONTENT[3:10])
        assert service.http.head(url).status_code == 200
        with Client(str(service.http.base_url), api_key="kept for the service") as client:
            (file,) = client.download(fusion_id, tmp_path / "got")
        assert file.read_bytes() == CONTENT


def test_conditions_hold_where_downloads_go_to_the_storage_itself(
    tmp_path: Path, sqlite_url: str, broker_server: str, blob_url: str
) -> None:
    """The storage's entity tags are others than ours, and whoever follows a redirection sends its conditions on."""
    with running(_far(tmp_path, sqlite_url, broker_server, blob_url, presigned_seconds=60)) as service:
        fusion_id = service.fusion()
        service.succeed(fusion_id, {"model.safetensors": CONTENT})
        url = f"/v1/fusions/{fusion_id}/artifacts/model.safetensors"
        ours, stale = service.http.head(url).headers["ETag"], f'"{sha256(b"another")}"'
        theirs = httpx.get(service.http.get(url).headers["Location"]).headers["ETag"]
        part, whole = (206, CONTENT[3:10]), (200, CONTENT)
        asked: list[tuple[dict[str, str], tuple[int, bytes]]] = [
            ({"If-Match": ours, "Range": "bytes=3-9"}, part),
            ({"If-Range": ours, "Range": "bytes=3-9"}, part),
            ({"If-Range": stale, "Range": "bytes=3-9"}, whole),
            ({"If-None-Match": f'"x", {ours}'}, (304, b"")),
            ({"If-None-Match": stale}, whole),
            ({"If-Match": ours}, whole),
        ]
        for headers, expected in asked:
            answer = service.http.get(url, headers=headers)
            assert (answer.status_code, answer.content) == expected, headers
            assert answer.headers["ETag"] == ours
        assert service.http.get(url, headers={"If-Match": stale}).json()["code"] == "artifact.is_another"
        for name, expected in (("If-Match", whole), ("If-None-Match", (304, b""))):
            sent = service.http.get(url, headers={name: theirs})
            assert sent.status_code == 307
            answer = httpx.get(sent.headers["Location"], headers={name: theirs})
            assert (answer.status_code, answer.content) == expected, name


def test_a_storage_that_is_away_is_told_and_nothing_is_lost(
    tmp_path: Path, database_url: str, broker_server: str, mortal: services.ObjectStorage
) -> None:
    with running(_far(tmp_path, database_url, broker_server, mortal.prefix())) as service:
        http = service.http
        document = service.recipe()
        fusion_id = service.fusion()
        service.succeed(fusion_id, {"model.safetensors": CONTENT})
        url = f"/v1/fusions/{fusion_id}/artifacts/model.safetensors"
        assert http.get("/v1/healthz/ready").status_code == 200
        forget_copies(service)

        mortal.kill()
        assert [problem["location"] for problem in http.get("/v1/healthz/ready").json()["errors"]] == ["blobs"]
        for answer in (
            http.put(FILE, content=b"x" * 1000),
            http.get(url),
            http.get(url, headers={"Range": "bytes=1-2"}),
            http.post("/v1/fusions/validate", json=document),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "storage.away"), answer.text
            assert answer.headers["Retry-After"] == "10"
            assert "127.0.0.1" not in answer.text
        assert not service.incoming()
        with service.context.database.reading() as session:
            assert session.query(UploadedFile).filter_by(name="net").count() == 0

        mortal.start()
        assert http.get("/v1/healthz/ready").status_code == 200
        assert http.get(url).content == CONTENT
        assert http.post("/v1/fusions/validate", json=document).json()["ok"]
        assert http.put(FILE, content=b"x" * 1000).status_code == 201
        with service.context.database.reading() as session:
            assert session.get(Blob, sha256(b"x" * 1000)) is not None
