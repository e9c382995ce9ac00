"""What happens to an upload when the line breaks, the sender falls silent, the disk is full, or the API is killed."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from app.store.blobs.incoming import Incoming
from app.store.models import Upload, UploadedFile
from app.store.staging import Appender, Staging
from app.uploads.tus import appending
from tests.app.conftest import running
from tests.app.factories import Service, sha256
from tests.app.tus.lines import half_sent, line, soon
from tests.app.tus.processes import api_process
from tests.app.tus.speaking import CHUNK_TYPE, VERSION, Tus, checksum, metadata, repr_digest

CONTENT = os.urandom(3_000_000)


def _finish(tus: Tus, url: str, content: bytes = CONTENT) -> None:
    offset = tus.offset(url)
    answer = tus.patch(url, offset, content[offset:])
    assert (answer.status_code, answer.headers["Repr-Digest"]) == (204, repr_digest(content)), answer.text
    assert tus.service.blob(sha256(content)).read_bytes() == content


def test_what_came_before_the_connection_broke_is_kept(tus: Tus) -> None:
    url = tus.create(len(CONTENT))
    before = tus.expiry(url)
    with half_sent(tus.service.http.base_url, url, 0, len(CONTENT), CONTENT[:100_000]) as connection:
        assert soon(lambda: tus.expiry(url) > before)
        connection.shutdown(socket.SHUT_WR)  # it still listens, and is told
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"tus-resumable: 1.0.0" in head.lower()
    assert "HEAD and go on" in json.loads(body)["detail"]
    assert soon(lambda: 0 < tus.offset(url) <= 100_000)
    _finish(tus, url)


def test_a_line_that_breaks_again_and_again_gets_all_across(tus: Tus) -> None:
    url = tus.create(len(CONTENT))
    headers = {"Content-Type": CHUNK_TYPE, **VERSION}
    with line(tus.service.http.base_url, 500_000, 1_200_000, 400_000) as bad:
        for _ in range(3):
            offset, before = tus.offset(url), tus.expiry(url)
            with pytest.raises(httpx.TransportError):
                httpx.patch(bad.url + url, content=CONTENT[offset:], headers=headers | {"Upload-Offset": str(offset)})
            assert soon(lambda: tus.expiry(url) > before)  # noqa: B023
            assert soon(lambda: tus.patch(url, len(CONTENT) + 1, b"").status_code == 409)  # not 423: it is free
            assert tus.offset(url) > offset
    assert bad.cuts == 3
    _finish(tus, url)


def test_a_chunk_that_was_to_be_checked_is_kept_whole_or_not_at_all(tus: Tus) -> None:
    url = tus.create(len(CONTENT))
    tus.patch(url, 0, CONTENT[:10])
    before = tus.expiry(url)
    wanted = "".join(f"{name}: {value}\r\n" for name, value in checksum(CONTENT[10:]).items())
    with half_sent(tus.service.http.base_url, url, 10, len(CONTENT) - 10, CONTENT[10:2_500_000], wanted):
        assert soon(lambda: tus.expiry(url) > before)
    assert soon(lambda: tus.patch(url, 11, b"").status_code == 409)
    assert tus.offset(url) == 10
    _finish(tus, url)


def test_a_second_request_for_a_busy_upload_is_refused_at_once(tus: Tus) -> None:
    url = tus.create(len(CONTENT))
    before = tus.expiry(url)
    with half_sent(tus.service.http.base_url, url, 0, len(CONTENT), CONTENT[:1000]):
        assert soon(lambda: tus.expiry(url) > before)
        for answer in (tus.patch(url, 0, CONTENT), tus.delete(url)):
            assert (answer.status_code, answer.json()["code"]) == (423, "upload.locked")
            assert answer.headers["Tus-Resumable"] == "1.0.0"
        assert tus.offset(url) == 0  # what is not synced is not told
    assert soon(lambda: tus.offset(url) == 1000)
    _finish(tus, url)


def test_a_sender_that_falls_silent_is_sent_away_and_what_came_is_kept(settings: Settings) -> None:
    with running(settings.model_copy(update={"body_idle_seconds": 0.3})) as service:
        tus = Tus(service)
        url = tus.create(len(CONTENT))
        with half_sent(service.http.base_url, url, 0, len(CONTENT), CONTENT[:1000]) as connection:
            head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert (json.loads(body)["code"], json.loads(body)["status"]) == ("upload.too_slow", 408)
        assert tus.offset(url) == 1000
        _finish(tus, url)
        with socket.create_connection((service.http.base_url.host, service.http.base_url.port or 80), 25) as connection:
            connection.sendall(
                b"PUT /v1/datasets/d/files/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
            )
            assert b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 408 ")
        assert service.incoming() == []


def test_a_sender_that_brings_drops_is_sent_away(settings: Settings) -> None:
    changes = {"body_idle_seconds": 0.5, "body_min_bytes_per_second": 1000}
    with running(settings.model_copy(update=changes)) as service:
        tus = Tus(service)
        url = tus.create(len(CONTENT))
        with half_sent(service.http.base_url, url, 0, len(CONTENT), b"") as connection:
            connection.settimeout(0.05)
            answer = b""
            while not answer:
                try:
                    connection.sendall(b"x")
                    answer = connection.recv(65536)
                except TimeoutError:
                    continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 0 < tus.offset(url) < 1000


def test_slow_senders_hold_no_thread(sqlite_tus: Tus) -> None:
    """There are 16 threads for the disk and 40 for everything else; so many senders wait here in the middle of a chunk."""
    tus, base = sqlite_tus, sqlite_tus.service.http.base_url
    urls = [tus.create(1000) for _ in range(45)]
    before = {url: tus.expiry(url) for url in urls}
    with ExitStack() as lines:
        for url in urls:
            lines.enter_context(half_sent(base, url, 0, 1000, b"x" * 10))
        assert soon(lambda: all(tus.expiry(url) > before[url] for url in urls))
        assert tus.service.http.get("/v1/checkpoints").status_code == 200
        _finish(tus, tus.create(len(CONTENT)))
    assert soon(lambda: all(tus.offset(url) == 10 for url in urls))


@contextmanager
def _full_disk() -> Iterator[None]:
    """No file of this process grows beyond a megabyte; the system refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_upload_goes_on_when_there_is_room(settings: Settings) -> None:
    """A service of its own: the database of one that many tests wrote to is larger than the limit."""
    with running(settings) as service:
        tus = Tus(service)
        url = tus.create(len(CONTENT))
        with _full_disk():
            answer = tus.patch(url, 0, CONTENT)
            assert (answer.status_code, answer.json()["code"]) == (507, "upload.disk_full"), answer.text
            assert answer.headers["Tus-Resumable"] == "1.0.0"
            assert "what came before is kept" in answer.json()["detail"]
            assert tus.offset(url) == 2**20  # to the last byte that the disk took
            assert tus.patch(url, 2**20, CONTENT[2**20 :]).status_code == 507
        _finish(tus, url)


def test_of_a_creation_that_a_full_disk_ends_nothing_remains(settings: Settings) -> None:
    with running(settings) as service:
        tus = Tus(service)
        with _full_disk():
            answer = tus.post(len(CONTENT), content=CONTENT)
            assert (answer.status_code, answer.json()["code"]) == (507, "upload.disk_full"), answer.text
            assert "no upload was begun" in answer.json()["detail"]
        assert _nothing_begun(tus)


@pytest.mark.parametrize("ending", ["silent", "half closed", "cut"])
def test_of_a_creation_whose_bytes_stop_coming_nothing_remains(settings: Settings, ending: str) -> None:
    seconds = 0.5 if ending == "silent" else 60.0
    with running(settings.model_copy(update={"body_idle_seconds": seconds})) as service:
        tus, base = Tus(service), service.http.base_url
        head = f"POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Type: {CHUNK_TYPE}\r\nTus-Resumable: 1.0.0\r\n"
        sizes = f"Upload-Length: {len(CONTENT)}\r\nContent-Length: {len(CONTENT)}\r\n"
        with socket.create_connection((base.host, base.port or 80), 25) as connection:
            connection.sendall(f"{head}{sizes}Upload-Metadata: {metadata()}\r\n\r\n".encode() + CONTENT[:2_000_000])
            assert soon(lambda: len(tus.staged()) == 2)
            if ending == "half closed":
                connection.shutdown(socket.SHUT_WR)
            told = b"" if ending == "cut" else b"".join(iter(lambda: connection.recv(65536), b""))
        assert soon(lambda: _nothing_begun(tus))
        statuses = {"silent": b"HTTP/1.1 408 ", "half closed": b"HTTP/1.1 400 ", "cut": b""}
        assert told.startswith(statuses[ending])
        assert b"is kept" not in told


def _nothing_begun(tus: Tus) -> bool:
    with tus.service.context.database.reading() as session:
        return not tus.staged() and session.query(Upload).count() == 0


def test_below_the_least_free_space_no_chunk_is_taken_in_and_what_came_is_kept(settings: Settings) -> None:
    with running(settings) as service:
        url = Tus(service).create(len(CONTENT))
        assert Tus(service).patch(url, 0, CONTENT[:1000]).status_code == 204
    with running(settings.model_copy(update={"min_free_bytes": 2**62})) as service:
        _is_refused_for_room(Tus(service).patch(url, 1000, CONTENT[1000:]))
        _is_refused_for_room(Tus(service).patch(url, 1000, iter([CONTENT[1000:]])))
        assert Tus(service).offset(url) == 1000
        assert Tus(service).patch(url, 1000, b"").status_code == 204  # needs no room
    with running(settings) as service:
        _finish(Tus(service), url)


@dataclass(frozen=True)
class SharedDisk:
    """10 MiB, less what others put there; 4 MiB stay free. The real one has room that nobody can foretell."""

    others: Path
    uploads: Path

    def free_bytes(self) -> int:
        return 10 * 2**20 - self.others.stat().st_size

    def fill_when_staged(self, size: int) -> None:
        """Waits for so many bytes of the only upload, then others come."""
        assert soon(lambda: [part.stat().st_size for part in self.uploads.glob("*.part")] == [size])
        self.others.write_bytes(bytes(7 * 2**20))


@pytest.fixture
def shared(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Tus, SharedDisk]]:
    """A service on a disk that others use, looked at after whatever was written."""
    disk = SharedDisk(tmp_path / "others", settings.uploads_dir)
    disk.others.touch()
    monkeypatch.setattr(appending, "_SPAN_SECONDS", 0.0)
    monkeypatch.setattr(Incoming, "free_bytes", lambda _: disk.free_bytes())
    with running(settings.model_copy(update={"min_free_bytes": 4 * 2**20})) as service:
        yield Tus(service), disk


@pytest.mark.parametrize(("headers", "kept"), [({}, 1000), (checksum(CONTENT), 0)], ids=["plain", "checksum"])
def test_a_disk_that_others_fill_while_a_chunk_comes_ends_the_chunk_and_what_came_is_kept(
    shared: tuple[Tus, SharedDisk], headers: dict[str, str], kept: int
) -> None:
    tus, disk = shared
    url = tus.create(len(CONTENT))

    def body() -> Iterator[bytes]:
        yield CONTENT[:1000]
        disk.fill_when_staged(1000)
        yield CONTENT[1000:]

    _is_refused_for_room(tus.patch(url, 0, body(), headers))
    assert tus.offset(url) == kept  # what was to be checked is kept whole or not at all
    disk.others.write_bytes(b"")
    _finish(tus, url)


@pytest.mark.parametrize("way", ["creation", "append"])
def test_a_disk_that_others_fill_once_all_bytes_are_there_refuses_nothing(
    shared: tuple[Tus, SharedDisk], way: str
) -> None:
    tus, disk = shared

    def body() -> Iterator[bytes]:
        yield CONTENT[:1000]
        disk.fill_when_staged(1000)

    answer = tus.post(1000, content=body()) if way == "creation" else tus.patch(tus.create(1000), 0, body())
    assert answer.is_success, answer.text
    assert tus.service.blob(sha256(CONTENT[:1000])).read_bytes() == CONTENT[:1000]


def test_what_comes_steadily_is_kept_every_few_seconds(sqlite_tus: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the time since the last write: of a sender of a megabyte a second no minute may be lost."""
    monkeypatch.setattr(appending, "_SPAN_SECONDS", 0.3)
    monkeypatch.setattr(appending, "CHUNK", 1000)
    url = sqlite_tus.create(40_000)
    kept = []

    def body() -> Iterator[bytes]:
        for begin in range(0, 40_000, 1000):
            kept.append(sqlite_tus.service.context.staging.kept(url.rpartition("/")[2]).kept)
            time.sleep(0.05)
            yield CONTENT[begin : begin + 1000]

    assert sqlite_tus.patch(url, 0, body()).status_code == 204
    assert 0 < kept[-1] < 40_000


def _is_refused_for_room(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (507, "storage.low"), answer.text
    assert answer.headers["Retry-After"] == "60"
    assert "what came before is kept" in answer.json()["detail"]


def test_a_killed_api_loses_nothing_that_was_told(settings: Settings, tmp_path: Path) -> None:
    """Two processes serve one upload; the one that appends is killed in the middle, and a new one goes on."""
    content = CONTENT * 3
    with (
        running(settings.model_copy(update={"max_upload_bytes": 2**30})) as other,
        api_process(settings, tmp_path) as api,
    ):
        tus = Tus(other)
        url = tus.create(len(content))
        assert tus.patch(url, 0, content[:1_000_000]).status_code == 204
        part = other.context.staging.part(url.rpartition("/")[2])
        with half_sent(httpx.URL(api.url), url, 1_000_000, len(content) - 1_000_000, content[1_000_000:7_000_000]):
            assert soon(lambda: part.stat().st_size > 2_000_000)  # in the page cache, not yet kept
            assert tus.patch(url, 1_000_000, b"x").status_code == 423  # the lock holds between processes
            assert tus.offset(url) == 1_000_000
            api.kill()
        assert tus.offset(url) == 1_000_000
        answer = tus.patch(url, 1_000_000, content[1_000_000:2_000_000])
        assert (answer.status_code, part.stat().st_size) == (204, 2_000_000)  # what was not kept is cut off
        api.start()
        headers = {"Content-Type": CHUNK_TYPE, "Upload-Offset": "2000000", **VERSION}
        last = httpx.patch(api.url + url, content=content[2_000_000:], headers=headers, timeout=60)
        # The new process has not seen the beginning: it reads it from the disk.
        assert (last.status_code, last.headers["Repr-Digest"]) == (204, repr_digest(content))
        assert other.blob(sha256(content)).read_bytes() == content


@pytest.mark.parametrize("moment", ["before the digest is noted", "before placing", "before the row", "after the row"])
def test_an_upload_whose_end_was_interrupted_is_ended_by_whoever_looks(
    tus: Tus, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A process that dies at any moment of the end leaves what it had done; here it stops there by an exception."""

    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    service, url = tus.service, tus.create(5)
    match moment:
        case "before the digest is noted":
            monkeypatch.setattr(Appender, "note", die)
        case "before placing":
            monkeypatch.setattr(service.context.blobs.storage, "place", die)
        case "before the row":
            monkeypatch.setattr("app.uploads.service.repository.put", die)
        case "after the row":
            monkeypatch.setattr(Appender, "discard", die)
    try:
        answer = tus.patch(url, 0, b"hello")
        assert answer.status_code == 500
    except httpx.TransportError:
        pass
    monkeypatch.undo()
    assert tus.offset(url) == 5
    assert tus.head(url).headers["Repr-Digest"] == repr_digest(b"hello")
    with service.context.database.reading() as session:
        assert [file.digest for file in session.query(UploadedFile)] == [sha256(b"hello")]
        assert session.query(Upload).one().digest == sha256(b"hello")
    assert service.blob(sha256(b"hello")).read_bytes() == b"hello"
    tus.patch(url, 5, b"")
    assert tus.staged() == []


def test_bytes_that_another_machine_has_are_not_here(tus: Tus) -> None:
    url = tus.create(5)
    for path in tus.service.context.settings.uploads_dir.iterdir():
        path.unlink()
    for answer in (tus.patch(url, 0, b"hello"), tus.delete(url)):
        assert (answer.status_code, answer.json()["code"]) == (404, "upload.not_found")
        assert "not on this machine" in answer.json()["detail"]
    assert tus.head(url).status_code == 404


def test_uploads_of_the_same_bytes_by_two_tenants_are_answered_alike(tus: Tus) -> None:
    """What another tenant has must not shorten anything."""
    answers = []
    for tenant in ("other", "another"):
        url = tus.create(5, metadata(sha256=sha256(b"hello")))
        first = tus.patch(url, 0, b"hel")
        last = tus.patch(url, 3, b"lo")
        answers.append([(one.status_code, sorted(one.headers.keys())) for one in (first, last)])
        with tus.service.context.database.transaction() as session:
            for row in [*session.query(UploadedFile).filter_by(tenant="default"), *session.query(Upload)]:
                row.tenant = tenant
    assert answers[0] == answers[1]


def test_staging_is_where_no_sweep_of_half_written_blobs_goes(sqlite_service: Service) -> None:
    settings = sqlite_service.context.settings
    Staging(settings.uploads_dir).create("upl_x")
    sqlite_service.context.blobs.incoming.sweep()
    assert sorted(path.name for path in settings.uploads_dir.iterdir()) == ["upl_x.mark", "upl_x.part"]
    assert settings.uploads_dir.stat().st_dev == settings.blob_dir.stat().st_dev
