"""tus 1.0 as its text has it: core, creation, checksum, expiration, termination."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx
import pytest

from app.store.ids import new_upload_id
from app.store.models import Upload, UploadedFile, utc_now
from tests.app.factories import Service, sha256
from tests.app.tus.speaking import VERSION, Tus, checksum, metadata, repr_digest

CONTENT = bytes(range(256)) * 9000  # more than two pieces


def _problem(answer: httpx.Response, status: int, code: str) -> dict[str, str]:
    """The messages of all problems by their places; every refusal is told in the service's way and in that of tus."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"]
    return {error["location"]: error["message"] for error in answer.json()["errors"]}


def _files(service: Service) -> list[tuple[str, str, str, str]]:
    with service.context.database.reading() as session:
        return [(file.kind, file.name, file.path, file.digest) for file in session.query(UploadedFile)]


def _change(service: Service, url: str, **columns: object) -> None:
    with service.context.database.transaction() as session:
        upload = session.get(Upload, url.rpartition("/")[2])
        for name, value in columns.items():
            setattr(upload, name, value)


def test_the_service_tells_what_of_tus_it_speaks(sqlite_service: Service) -> None:
    answer = sqlite_service.http.options("/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Max-Size"] == str(4 * 2**20)
    assert answer.headers["Tus-Extension"] == "creation,creation-with-upload,checksum,expiration,termination"
    assert answer.headers["Tus-Checksum-Algorithm"] == "sha256,sha1"


def test_an_upload_in_pieces_becomes_an_uploaded_file(tus: Tus) -> None:
    header = metadata(kind="checkpoint", name="net", path="sub/model.safetensors")
    url = tus.create(len(CONTENT), header)
    assert tus.offset(url) == 0
    first = tus.patch(url, 0, CONTENT[:1_000_000])
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, "1000000")
    assert "Repr-Digest" not in first.headers
    assert _files(tus.service) == []
    last = tus.patch(url, 1_000_000, CONTENT[1_000_000:])
    assert (last.status_code, last.headers["Upload-Offset"]) == (204, str(len(CONTENT)))
    assert last.headers["Repr-Digest"] == repr_digest(CONTENT)
    assert _files(tus.service) == [("checkpoint", "net", "sub/model.safetensors", sha256(CONTENT))]
    assert tus.service.blob(sha256(CONTENT)).read_bytes() == CONTENT
    assert tus.staged() == []


def test_a_client_that_never_got_the_last_answer_can_see_that_all_is_there(tus: Tus) -> None:
    url = tus.create(5)
    tus.patch(url, 0, b"hello")
    answer = tus.head(url)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Upload-Offset"] == answer.headers["Upload-Length"] == "5"
    assert answer.headers["Upload-Metadata"] == metadata()
    assert answer.headers["Repr-Digest"] == repr_digest(b"hello")
    again = tus.patch(url, 5, b"")
    assert (again.status_code, again.headers["Upload-Offset"]) == (204, "5")
    assert len(_files(tus.service)) == 1
    _problem(tus.patch(url, 5, b"more"), 413, "upload.too_large")
    _problem(tus.patch(url, 0, b"hello"), 409, "upload.offset")


def test_a_file_name_will_do_for_a_path(tus: Tus) -> None:
    header = metadata().replace("path ", "filename ")
    tus.patch(tus.create(2, header), 0, b"hi")
    assert [path for _, _, path, _ in _files(tus.service)] == ["data.safetensors"]


def test_a_creation_can_bring_the_first_bytes_or_all_of_them(tus: Tus) -> None:
    part = tus.post(5, content=b"hel")
    assert (part.status_code, part.headers["Upload-Offset"]) == (201, "3")
    done = tus.patch(part.headers["Location"], 3, b"lo")
    assert done.headers["Repr-Digest"] == repr_digest(b"hello")
    whole = tus.post(2, metadata(path="other"), content=b"hi")
    assert (whole.headers["Upload-Offset"], whole.headers["Repr-Digest"]) == ("2", repr_digest(b"hi"))
    empty = tus.post(0, metadata(path="empty"))
    assert (empty.headers["Upload-Offset"], empty.headers["Repr-Digest"]) == ("0", repr_digest(b""))
    assert {(path, digest) for _, _, path, digest in _files(tus.service)} == {
        ("data.safetensors", sha256(b"hello")),
        ("other", sha256(b"hi")),
        ("empty", sha256(b"")),
    }


def test_another_version_is_refused_wherever_it_comes(sqlite_tus: Tus) -> None:
    url = sqlite_tus.create(5)
    http = sqlite_tus.service.http
    for headers in ({}, {"Tus-Resumable": "0.2.2"}):
        for method, target in (("POST", "/v1/uploads"), ("PATCH", url), ("DELETE", url)):
            answer = http.request(method, target, headers=headers)
            _problem(answer, 412, "upload.version")
            assert answer.headers["Tus-Version"] == "1.0.0"
        assert http.head(url, headers=headers).status_code == 412
    assert sqlite_tus.offset(url) == 0


def test_everything_that_is_wrong_with_a_creation_is_told_at_once(sqlite_tus: Tus) -> None:
    header = "kind bW9kZWw=,name !!,path Li4veA==,sha256 eA==,name eA==,two words here,"
    answer = sqlite_tus.post("many", header, **{"Upload-Checksum": "crc32 AAAA", "Upload-Defer-Length": "1"})
    problems = _problem(answer, 400, "upload.headers")
    assert problems.keys() == {
        "Upload-Length", "Upload-Defer-Length", "Upload-Checksum", "Upload-Metadata", "Upload-Metadata.kind",
        "Upload-Metadata.name", "Upload-Metadata.path", "Upload-Metadata.sha256", "Upload-Metadata.two",
    }  # fmt: skip
    missing = _problem(sqlite_tus.post(1, "other eA=="), 400, "upload.headers")
    assert missing.keys() == {"Upload-Metadata.kind", "Upload-Metadata.name", "Upload-Metadata.path"}
    bare = sqlite_tus.service.http.post("/v1/uploads", headers=VERSION)
    assert _problem(bare, 400, "upload.headers").keys() == {"Upload-Length", *missing}
    pickled = _problem(sqlite_tus.post(1, metadata(path="model.pkl")), 400, "upload.headers")
    assert "safetensors" in pickled["Upload-Metadata.path"]
    _problem(sqlite_tus.post(1, metadata(path="x" * 4000)), 400, "upload.headers")
    _problem(sqlite_tus.post(1, **{"Upload-Concat": "partial"}), 400, "upload.headers")
    for length in ("-1", "1.0", "", "²", "9" * 30):
        headers = {"Upload-Length": length.encode(), "Upload-Metadata": metadata().encode(), b"Tus-Resumable": b"1.0.0"}
        _problem(sqlite_tus.service.http.post("/v1/uploads", headers=headers), 400, "upload.headers")  # type: ignore[arg-type]
    for other in (b"name \xe9", b"n\xe9 eA==", b"name /w=="):
        headers = {"Upload-Length": b"1", "Upload-Metadata": other, "Tus-Resumable": b"1.0.0"}
        _problem(sqlite_tus.service.http.post("/v1/uploads", headers=headers), 400, "upload.headers")
    assert sqlite_tus.staged() == []


def test_more_than_the_service_takes_is_refused_at_the_creation(tus: Tus) -> None:
    _problem(tus.post(4 * 2**20 + 1), 413, "upload.too_large")
    assert tus.staged() == []


def test_more_than_was_announced_is_refused_and_what_fits_stays(tus: Tus) -> None:
    def endless() -> Iterator[bytes]:
        yield b"lo, and much more"

    url = tus.create(5)
    _problem(tus.patch(url, 0, b"hello!"), 413, "upload.too_large")
    assert tus.offset(url) == 0
    tus.patch(url, 0, b"hel")
    _problem(tus.patch(url, 3, endless()), 413, "upload.too_large")
    assert tus.offset(url) == 3
    assert tus.patch(url, 3, b"lo").headers["Repr-Digest"] == repr_digest(b"hello")


def test_a_chunk_that_begins_elsewhere_is_refused(tus: Tus) -> None:
    url = tus.create(5)
    tus.patch(url, 0, b"hel")
    for offset in (0, 2, 4, 5, 99):
        answer = tus.patch(url, offset, b"l" if offset < 99 else b"")
        _problem(answer, 409, "upload.offset")
        assert answer.headers["Upload-Offset"] == "3"
    for offset in ("-1", "x", ""):
        _problem(tus.patch(url, offset, b"l"), 400, "upload.headers")
    assert tus.offset(url) == 3


def test_a_body_of_another_type_is_refused(tus: Tus) -> None:
    url = tus.create(5)
    for content_type in ("application/octet-stream", "", "multipart/form-data; boundary=x"):
        _problem(tus.patch(url, 0, b"hello", {"Content-Type": content_type}), 415, "upload.not_a_chunk")
    _problem(tus.patch(url, 0, b"hello", {"Content-Encoding": "gzip"}), 415, "upload.not_a_chunk")
    _problem(tus.post(5, content=b"hello", **{"Content-Type": "text/plain"}), 415, "upload.not_a_chunk")
    assert tus.offset(url) == 0


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_chunk_that_is_not_what_its_checksum_says_is_not_kept(tus: Tus, algorithm: str) -> None:
    url = tus.create(len(CONTENT))
    good, bad = CONTENT[:1_200_000], b"x" + CONTENT[1_200_001:]
    assert tus.patch(url, 0, good, checksum(good, algorithm)).status_code == 204
    wanted = checksum(CONTENT[1_200_000:], algorithm)
    _problem(tus.patch(url, 1_200_000, bad, wanted), 460, "upload.checksum_mismatch")
    assert tus.offset(url) == 1_200_000
    last = tus.patch(url, 1_200_000, CONTENT[1_200_000:], wanted)
    assert (last.status_code, last.headers["Repr-Digest"]) == (204, repr_digest(CONTENT))


def test_of_a_creation_whose_first_chunk_is_refused_nothing_remains(tus: Tus) -> None:
    """No client would find it again: tuspy and tus-js-client read Location in an answer that is 2xx, and no other."""
    refused = [
        (tus.post(5, content=b"jello", **checksum(b"hello")), 460, "upload.checksum_mismatch"),
        (tus.post(5, content=b"hello and more"), 413, "upload.too_large"),
        (tus.post(5, metadata(sha256=sha256(b"hello")), content=b"jello"), 422, "upload.digest_mismatch"),
        (tus.post(0, metadata(sha256=sha256(b"hello"))), 422, "upload.digest_mismatch"),
    ]
    for answer, status, code in refused:
        _problem(answer, status, code)
        assert "Location" not in answer.headers
    assert tus.staged() == []
    with tus.service.context.database.reading() as session:
        assert session.query(Upload).count() == 0
    assert _files(tus.service) == []


def test_a_checksum_that_can_not_be_read_is_refused(sqlite_tus: Tus) -> None:
    url = sqlite_tus.create(5)
    for value in ("md5 XUFAKrxLKna5cZ2REBfFkg==", "sha256", "sha256 abc", "sha1 !!", "", "sha256 AAAA"):
        problems = _problem(sqlite_tus.patch(url, 0, b"hello", {"Upload-Checksum": value}), 400, "upload.headers")
        assert problems.keys() == {"Upload-Checksum"}
    assert sqlite_tus.offset(url) == 0


def test_the_whole_is_checked_in_the_end_and_given_up_if_it_is_something_else(tus: Tus) -> None:
    right = tus.create(5, metadata(sha256=sha256(b"hello").upper()))
    assert tus.patch(right, 0, b"hello").status_code == 204
    wrong = tus.create(5, metadata(path="other", sha256=sha256(b"hello")))
    problems = _problem(tus.patch(wrong, 0, b"jello"), 422, "upload.digest_mismatch")
    assert sha256(b"jello") in problems["Upload-Metadata.sha256"]
    assert tus.head(wrong).status_code == 404
    assert [path for _, _, path, _ in _files(tus.service)] == ["data.safetensors"]
    assert tus.staged() == []


def test_an_upload_expires_and_each_chunk_gives_it_new_time(tus: Tus) -> None:
    url = tus.create(5)
    _change(tus.service, url, expires_at=utc_now() + timedelta(minutes=1))
    before = parsedate_to_datetime(tus.head(url).headers["Upload-Expires"])
    assert before < datetime.now(UTC) + timedelta(minutes=2)
    after = parsedate_to_datetime(tus.patch(url, 0, b"h").headers["Upload-Expires"])
    assert after > datetime.now(UTC) + timedelta(hours=23)
    _change(tus.service, url, expires_at=utc_now() - timedelta(seconds=1))
    _problem(tus.patch(url, 1, b"ello"), 410, "upload.expired")
    _problem(tus.delete(url), 410, "upload.expired")
    assert tus.head(url).status_code == 410


def test_a_client_can_give_an_upload_up(tus: Tus) -> None:
    url = tus.create(5)
    tus.patch(url, 0, b"hel")
    answer = tus.delete(url)
    assert (answer.status_code, answer.content) == (204, b"")
    assert tus.staged() == []
    _problem(tus.patch(url, 3, b"lo"), 404, "upload.not_found")
    _problem(tus.delete(url), 404, "upload.not_found")
    complete = tus.create(2)
    tus.patch(complete, 0, b"hi")
    assert tus.delete(complete).status_code == 204
    assert len(_files(tus.service)) == 1  # the file that it has become stays


def test_what_lets_only_post_pass_is_no_hindrance(tus: Tus) -> None:
    url = tus.create(5)

    def post(method: str, content: bytes = b"", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return tus.service.http.post(url, content=content, headers=VERSION | named | {"X-HTTP-Method-Override": method})

    chunk = {"Upload_Offset": "0", "Content_Type": "application/offset+octet-stream"}
    assert post("PATCH", b"hel", **chunk).headers["Upload-Offset"] == "3"
    seen = post("HEAD")
    assert (seen.status_code, seen.headers["Upload-Offset"]) == (200, "3")
    assert post("DELETE").status_code == 204
    _problem(post("HEAD_"), 405, "http.method_not_allowed")


def test_nobody_sees_another_tenants_upload(tus: Tus) -> None:
    url = tus.create(5)
    _change(tus.service, url, tenant="other")
    _problem(tus.patch(url, 0, b"hello"), 404, "upload.not_found")
    _problem(tus.delete(url), 404, "upload.not_found")
    assert tus.head(url).status_code == 404
    assert len(tus.staged()) == 2
    for unknown in ("x", "%00", new_upload_id(), "upl_" + "0" * 300):
        _problem(tus.delete(f"/v1/uploads/{unknown}"), 404, "upload.not_found")


def test_whatever_is_refused_below_the_address_of_tus_says_the_version(sqlite_tus: Tus) -> None:
    http = sqlite_tus.service.http
    _problem(http.get("/v1/uploads"), 405, "http.method_not_allowed")
    _problem(http.get("/v1/uploads/a/b"), 404, "http.not_found")
    _problem(http.get("/v1/uploads", headers={"Host": "evil.example"}), 421, "request.host")
    assert "Tus-Resumable" not in http.get("/v1/fusions").headers
