"""Uploads: streamed, checked, whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import httpx
import pytest

from app.store.blobs import BlobWriter, incoming
from app.store.models import Blob, UploadedFile
from tests.app.factories import Service, sha256

URL = "/v1/checkpoints/net/files/model.safetensors"


def _b64(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def _nothing_stored(service: Service) -> bool:
    with service.context.database.reading() as session:
        rows = session.query(Blob).count() + session.query(UploadedFile).count()
    return not rows and not service.blobs() and not service.incoming()


def _soon(condition: object, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("kind", ["checkpoints", "datasets"])
def test_an_upload_is_stored_under_its_digest(service: Service, kind: str) -> None:
    content = bytes(range(256)) * 9000  # more than two pieces
    answer = service.http.put(f"/v1/{kind}/net/files/sub/model.safetensors", content=content)
    assert answer.status_code == 201
    assert answer.json() == {"path": "sub/model.safetensors", "size": len(content), "sha256": sha256(content)}
    assert answer.headers["Repr-Digest"] == f"sha-256=:{_b64(content)}:"
    assert service.blob(sha256(content)).read_bytes() == content
    assert not service.incoming()


def test_an_empty_file_and_a_chunked_body_can_be_uploaded(service: Service) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 9999

    assert service.http.put(URL, content=b"").json()["size"] == 0
    answer = service.http.put(URL, content=pieces())
    assert answer.json() == {"path": "model.safetensors", "size": 2_999_700, "sha256": sha256(b"x" * 2_999_700)}


def test_a_second_put_replaces_the_first(service: Service) -> None:
    service.http.put(URL, content=b"first")
    service.http.put(URL, content=b"second")
    with service.context.database.reading() as session:
        assert [(file.path, file.digest) for file in session.query(UploadedFile)] == [
            ("model.safetensors", sha256(b"second"))
        ]


def test_a_right_digest_is_accepted(http: httpx.Client) -> None:
    for header, value in [
        ("Repr-Digest", f"sha-256=:{_b64(b'hello')}:"),
        ("Content-Digest", f"sha-512=:AAAA:, sha-256=:{_b64(b'hello')}:"),
        ("X-Content-SHA256", sha256(b"hello").upper()),
        ("Repr-Digest", "md5=:AAAA:"),
    ]:
        assert http.put(URL, content=b"hello", headers={header: value}).status_code == 201


def test_a_wrong_digest_stores_nothing(service: Service) -> None:
    for header, value in [
        ("Repr-Digest", f"sha-256=:{_b64(b'other')}:"),
        ("Content-Digest", f"sha-256=:{_b64(b'other')}:"),
        ("X-Content-SHA256", sha256(b"other")),
    ]:
        answer = service.http.put(URL, content=b"hello", headers={header: value})
        assert answer.status_code == 422
        problem = answer.json()
        assert problem["code"] == "upload.digest_mismatch"
        assert problem["errors"][0]["location"] == header
        assert sha256(b"hello") in problem["detail"]
    assert _nothing_stored(service)


def test_a_digest_that_can_not_be_read_is_refused(service: Service) -> None:
    for header, value in [
        ("Repr-Digest", "sha-256=abc"),
        ("Content-Digest", "sha-256=:!!:"),
        ("Content-Digest", "sha-256=:é:"),
        ("X-Content-SHA256", "123"),
    ]:
        answer = service.http.put(URL, content=b"hello", headers={header: value.encode("latin-1")})
        assert (answer.status_code, answer.json()["code"]) == (422, "upload.digest_header")
    assert _nothing_stored(service)


@pytest.mark.parametrize("digest", [{}, {"X-Content-SHA256": "0" * 64}], ids=["stored", "refused"])
def test_a_file_is_removed_and_brought_in_threads_that_nothing_else_needs(
    service: Service, monkeypatch: pytest.MonkeyPatch, digest: dict[str, str]
) -> None:
    where = set()

    def told(name: str) -> None:
        step = getattr(BlobWriter, name)

        def tell(writer: BlobWriter, *arguments: object) -> object:
            where.add((name, threading.current_thread().name.rpartition("_")[0]))
            return step(writer, *arguments)

        monkeypatch.setattr(BlobWriter, name, tell)

    for name in ("write", "publish", "discard"):
        told(name)
    status = service.http.put(URL, content=b"hello", headers=digest).status_code
    assert status == (422 if digest else 201)
    expected = {("write", "upload"), ("discard", "upload")}
    brought = {("publish", "upload-place"), ("discard", "upload-place")}
    assert where == (expected if digest else expected | brought)


def test_a_connection_that_ends_early_stores_nothing(service: Service, raw: socket.socket) -> None:
    raw.sendall(f"PUT {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n".encode() + b"x" * 2_000_000)
    assert _soon(service.incoming)
    raw.close()
    assert _soon(lambda: not service.incoming())
    assert _nothing_stored(service)


@pytest.mark.parametrize("start", ["Content-Length: 1000\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"])
def test_a_sender_that_stops_in_the_middle_but_still_listens_is_told(
    service: Service, raw: socket.socket, start: str
) -> None:
    raw.sendall(f"PUT {URL} HTTP/1.1\r\nHost: localhost\r\n{start}".encode())
    assert _soon(service.incoming)
    raw.shutdown(socket.SHUT_WR)
    head, _, body = b"".join(iter(lambda: raw.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert (json.loads(body)["code"], json.loads(body)["status"]) == ("request.malformed", 400)
    assert _soon(lambda: not service.incoming())
    assert _nothing_stored(service)


def test_a_chunked_body_that_ends_early_stores_nothing(service: Service, raw: socket.socket) -> None:
    raw.sendall(f"PUT {URL} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".encode())
    assert _soon(service.incoming)
    raw.close()
    assert _soon(lambda: not service.incoming())
    assert _nothing_stored(service)


def test_an_upload_announced_as_too_large_is_refused_before_it_is_sent(service: Service, raw: socket.socket) -> None:
    raw.sendall(
        f"PUT {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4194305\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert _nothing_stored(service)


def test_a_chunked_upload_that_grows_too_large_is_refused(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 65536

    try:
        answer = service.http.put(URL, content=endless())
        assert (answer.status_code, answer.json()["code"]) == (413, "upload.too_large")
    except httpx.WriteError:  # the server has hung up before the client looked for an answer
        pass
    assert _nothing_stored(service)


_TRICKS = [
    "../x", "a/../x", "a/..", ".", "./x", "/etc/passwd", "a//b", "a/", "%2e%2e/x", "..%2fx", "%2Fetc%2Fpasswd",
    "a%5cb", "a\\b", "a%00b", "a%0db", "%7f", "x" * 513, "x" * 300, "a%E2%80%8Eb",
]  # fmt: skip


def test_a_path_that_is_not_plain_is_refused(service: Service) -> None:
    for path in _TRICKS:
        status, problem = service.raw("PUT", f"/v1/datasets/d/files/{path}", b"hi")
        assert (status, problem["code"]) == (422, "upload.path"), path
    status, problem = service.raw("PUT", "/v1/datasets/d/files/a%0ab", b"hi")
    assert (status, problem["code"]) == (404, "http.not_found")  # no route takes a line break
    assert _nothing_stored(service)


def test_a_name_that_is_not_plain_is_refused(service: Service) -> None:
    for name in ["..", ".", "a%20b", "x" * 129, "%00", "n%C3%A9t"]:
        status, problem = service.raw("PUT", f"/v1/checkpoints/{name}/files/a", b"hi")
        assert (status, problem["code"]) == (422, "upload.path"), name
    status, problem = service.raw("PUT", "/v1/checkpoints/a%2Fb/files/a", b"hi")
    assert (status, problem["code"]) == (404, "http.not_found")
    assert _nothing_stored(service)


def test_a_pickle_is_refused_with_the_way_to_convert_it(service: Service) -> None:
    for path in ["model.bin", "a/model.PT", "x.ckpt", "x.pth", "x.pkl", "x.pickle"]:
        answer = service.http.put(f"/v1/checkpoints/net/files/{path}", content=b"hi")
        assert (answer.status_code, answer.json()["code"]) == (422, "upload.pickle")
        assert "safetensors" in answer.json()["detail"]
    assert _nothing_stored(service)


def test_a_form_or_an_encoded_body_is_refused(service: Service) -> None:
    for headers in ({"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Encoding": "gzip"}):
        answer = service.http.put(URL, content=b"hi", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "upload.not_raw")
    assert _nothing_stored(service)


def test_uploads_to_one_path_at_once_leave_one_whole_file(service: Service) -> None:
    contents = [bytes([number]) * 500_000 for number in range(8)]
    answers = []

    def upload(content: bytes) -> None:
        with httpx.Client(base_url=service.http.base_url, timeout=20) as client:
            answers.append(client.put(URL, content=content).status_code)

    threads = [threading.Thread(target=upload, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [201] * 8
    with service.context.database.reading() as session:
        file = session.query(UploadedFile).one()
    assert service.blob(file.digest).read_bytes() in contents


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """No file of this process grows beyond a megabyte; the system refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of a blob goes to the device that is always full."""

    def opened(descriptor: int, mode: str, buffering: int) -> IO[bytes]:
        os.close(descriptor)
        return Path("/dev/full").open(mode, buffering)

    monkeypatch.setattr(incoming, "os", SimpleNamespace(**{**vars(os), "fdopen": opened}))


@pytest.mark.parametrize("disk", ["no_large_files", "full_disk"])
def test_a_full_disk_is_told_and_nothing_is_stored(service: Service, request: pytest.FixtureRequest, disk: str) -> None:
    request.getfixturevalue(disk)
    answer = service.http.put(URL, content=b"x" * 3 * 2**20)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (507, "upload.disk_full")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "nothing was stored. Make room" in problem["detail"]
    assert _nothing_stored(service)
