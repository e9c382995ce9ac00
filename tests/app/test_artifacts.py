"""Downloads: whole, in parts, not again, and always with their digest."""

from __future__ import annotations

import pytest

from app.uploads.digests import repr_digest
from tests.app.factories import Service, sha256

CONTENT = bytes(range(256)) * 10_000  # more than two pieces
SIZE = len(CONTENT)


@pytest.fixture
def url(service: Service) -> str:
    """One artifact among others."""
    fusion_id = service.fusion()
    service.succeed(fusion_id, {"model.safetensors": CONTENT, "report.json": b"{}", "empty": b"", "a b/ü.html": b"<p>"})
    return f"/v1/fusions/{fusion_id}/artifacts"


def test_artifacts_are_listed_with_sizes_digests_and_links_that_work(service: Service, url: str) -> None:
    items = service.http.get(url).json()["items"]
    assert [item["path"] for item in items] == ["a b/ü.html", "empty", "model.safetensors", "report.json"]
    for item in items:
        answer = service.http.get(item["link"])
        assert (len(answer.content), sha256(answer.content)) == (item["size"], item["sha256"])


def test_a_download_names_its_bytes(service: Service, url: str) -> None:
    answer = service.http.get(f"{url}/model.safetensors")
    assert answer.content == CONTENT
    assert answer.headers["ETag"] == f'"{sha256(CONTENT)}"'
    assert answer.headers["Repr-Digest"] == repr_digest(sha256(CONTENT))
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Length"] == str(SIZE)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert service.http.get(f"{url}/report.json").headers["Content-Type"] == "application/json"


def test_head_is_get_without_the_bytes(service: Service, url: str) -> None:
    got, looked = (service.http.request(method, f"{url}/model.safetensors") for method in ("GET", "HEAD"))
    own = {"date", "x-request-id"}
    assert {k: v for k, v in got.headers.items() if k not in own} == {
        k: v for k, v in looked.headers.items() if k not in own
    }
    assert (looked.status_code, looked.content) == (200, b"")
    assert service.http.head(f"{url}/none").status_code == 404


def test_a_range_is_answered_with_that_part(service: Service, url: str) -> None:
    for header, begin, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=2559990-", 2_559_990, SIZE),
        ("bytes=0-99999999", 0, SIZE),
        ("bytes=-10", SIZE - 10, SIZE),
        ("bytes=-99999999", 0, SIZE),
        ("BYTES= 1-1100000", 1, 1_100_001),
    ]:
        answer = service.http.get(f"{url}/model.safetensors", headers={"Range": header})
        assert answer.status_code == 206, header
        assert answer.content == CONTENT[begin:end]
        assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{SIZE}"
        assert answer.headers["Repr-Digest"] == repr_digest(sha256(CONTENT))


def test_a_range_that_makes_no_sense_means_the_whole_file(service: Service, url: str) -> None:
    for header in (
        "bytes=9-5",
        "bytes=0-1,3-4",
        "lines=0-1",
        "bytes=a-b",
        "bytes=-",
        "bytes=",
        "bytes=" + "9" * 5000 + "-",
    ):
        answer = service.http.get(f"{url}/model.safetensors", headers={"Range": header})
        assert (answer.status_code, len(answer.content)) == (200, SIZE), header


def test_a_range_behind_the_end_is_a_416_that_names_the_size(service: Service, url: str) -> None:
    for path, header, size in [
        ("model.safetensors", f"bytes={SIZE}-", SIZE),
        ("model.safetensors", "bytes=-0", SIZE),
        ("empty", "bytes=0-", 0),
    ]:
        answer = service.http.get(f"{url}/{path}", headers={"Range": header})
        assert (answer.status_code, answer.json()["code"]) == (416, "artifact.range")
        assert answer.headers["Content-Range"] == f"bytes */{size}"
    assert service.http.get(f"{url}/empty").content == b""


def test_if_range_decides_between_the_part_and_the_whole(service: Service, url: str) -> None:
    tag = f'"{sha256(CONTENT)}"'
    for if_range, status in [(tag, 206), ('"other"', 200), (f"W/{tag}", 200), ("Sat, 21 Nov 2026 00:00:00 GMT", 200)]:
        headers = {"Range": "bytes=0-9", "If-Range": if_range}
        assert service.http.get(f"{url}/model.safetensors", headers=headers).status_code == status, if_range


def test_who_wants_other_bytes_gets_none(service: Service, url: str) -> None:
    tag = f'"{sha256(CONTENT)}"'
    for header, status in [(tag, 200), (f'"x", {tag}', 200), ("*", 200), ('"x"', 412), (f"W/{tag}", 412), ("", 412)]:
        for method in ("GET", "HEAD"):
            answer = service.http.request(method, f"{url}/model.safetensors", headers={"If-Match": header})
            assert answer.status_code == status, header
    both = {"If-Match": '"x"', "If-None-Match": tag, "Range": "bytes=0-1"}
    refused = service.http.get(f"{url}/model.safetensors", headers=both)
    assert (refused.status_code, refused.json()["code"]) == (412, "artifact.is_another")
    assert tag in refused.json()["detail"]


def test_what_the_caller_has_is_not_sent_again(service: Service, url: str) -> None:
    tag = f'"{sha256(CONTENT)}"'
    for header, status in [(tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200)]:
        for method in ("GET", "HEAD"):
            answer = service.http.request(method, f"{url}/model.safetensors", headers={"If-None-Match": header})
            assert answer.status_code == status, header
            assert answer.headers["ETag"] == tag
    both = {"If-None-Match": tag, "Range": "bytes=0-1"}
    assert service.http.get(f"{url}/model.safetensors", headers=both).status_code == 304


def test_a_path_that_leads_elsewhere_is_a_404(service: Service, url: str) -> None:
    for path in ("none", "../../x", "%2e%2e/%2e%2e/cogram.sqlite3", "/etc/passwd", "model.safetensors/"):
        status, problem = service.raw("GET", f"{url}/{path}")
        assert (status, problem["code"]) == (404, "artifact.not_found"), path
