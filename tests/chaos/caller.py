"""A caller with patience: it asks again when a line breaks or the service is not ready, and counts how often."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from app.client import FINAL, Event, parse_events
from tests.chaos.tally import Tally

_PAUSE = 0.5
_TIMEOUT = httpx.Timeout(20.0, read=40.0)
_LATER = frozenset({423, 429, 502, 503, 504, 507})  # come back later
_PIECE = 16 * 1024
_MOST_TEXT = 400  # of an answer, in notes and findings
_FILE = "model.safetensors"
_TUS = {"Tus-Resumable": "1.0.0"}
_CHUNK = "application/offset+octet-stream"
_IN_FLIGHT = "idempotency.in_progress"


class Impatient(Exception):
    """No useful answer within the time that there was."""


class Cut(Exception):
    """Raised in the middle of a body, so that the connection is closed there."""


class Caller:
    """One connection of one thread."""

    def __init__(self, address: str, tally: Tally, deadline: float) -> None:
        self._http = httpx.Client(base_url=f"{address}/v1", timeout=_TIMEOUT)
        self._tally = tally
        self._deadline = deadline

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The first answer that isn't "come back later"."""
        while True:
            answer = self.try_once(method, path, **options)
            if answer is not None:
                return answer
            self._pause(f"{method} {path}")

    def try_once(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        """None if the line broke or the service asks to come back later."""
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            self._broken(error)
            return None
        if answer.status_code in _LATER or answer.status_code >= 500 or _code(answer) == _IN_FLIGHT:
            self._turned_away(method, path, answer)
            return None
        return answer

    def put(self, kind: str, name: str, file: Path, cuts: tuple[float, ...]) -> str:
        """Uploads a file, its line cut where ``cuts`` say; the digest that the service acknowledged."""
        path = f"/{kind}s/{quote(name)}/files/{_FILE}"
        content, pending = file.read_bytes(), list(cuts)
        digest = hashlib.sha256(content).digest()
        headers = {
            "Repr-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
            "Content-Length": str(len(content)),
        }
        while True:
            body = _cut_body(content, pending.pop(0)) if pending else content
            try:
                answer = self.try_once("PUT", path, content=body, headers=headers)
            except Cut:
                self._tally.count("uploads cut")
                continue
            if answer is not None:
                answer.raise_for_status()
                self._tally.count("uploads sent again from the start", len(cuts) - len(pending))
                self._tally.check(answer.json()["sha256"] == digest.hex(), f"{name}: acknowledged with another digest")
                return digest.hex()
            self._pause(f"PUT {path}")

    def put_resumably(self, kind: str, name: str, file: Path, cuts: tuple[float, ...]) -> str:
        """The same by tus: what came before a cut is kept, and the rest goes on from there."""
        content, pending = file.read_bytes(), list(cuts)
        digest = hashlib.sha256(content)
        place, offset = self._begin_upload(kind, name, content, digest.hexdigest()), 0
        while offset < len(content):
            rest = content[offset:]
            body = _cut_body(rest, pending.pop(0)) if pending else rest
            headers = {**_TUS, "Upload-Offset": str(offset), "Content-Length": str(len(rest)), "Content-Type": _CHUNK}
            try:
                answer = self.try_once("PATCH", place, content=body, headers=headers)
            except Cut:
                answer = None
                self._tally.count("uploads cut")
            if answer is None or answer.status_code == 409:  # a lost answer: the bytes may be there already
                answer = self.ask("HEAD", place, headers=_TUS)
            if answer.status_code in {404, 410}:
                self._tally.count("uploads begun anew, as they had expired")
                place, offset = self._begin_upload(kind, name, content, digest.hexdigest()), 0
                continue
            answer.raise_for_status()
            kept = int(answer.headers["Upload-Offset"])
            self._tally.check(kept >= offset, f"{name}: {offset} bytes were kept, and now {kept}")
            self._tally.count("uploads resumed behind their first byte", 0 < kept < len(content))
            self._tally.count("bytes not sent again after a cut", kept - offset if kept < len(content) else 0)
            offset = kept
        return digest.hexdigest()

    def _begin_upload(self, kind: str, name: str, content: bytes, digest: str) -> str:
        metadata = {"kind": kind, "name": name, "path": _FILE, "sha256": digest}
        pairs = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items())
        headers = {**_TUS, "Upload-Length": str(len(content)), "Upload-Metadata": pairs}
        answer = self.ask("POST", "/uploads", headers=headers)
        answer.raise_for_status()
        return str(answer.headers["Location"]).removeprefix("/v1")

    def follow(self, fusion_id: str, leaves_after: int) -> list[Event]:
        """All events until the final one, read over as many connections as it takes; leaves once of its own accord."""
        events: list[Event] = []
        while not events or events[-1].type not in FINAL:
            try:
                for event in self._stream(fusion_id, events[-1].id if events else 0):
                    last = events[-1].id if events else 0
                    self._tally.check(event.id > last, f"{fusion_id}: event {event.id} came after {last}")
                    events.append(event)
                    if len(events) == leaves_after:
                        self._tally.count("event streams left and resumed")
                        break
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                self._tally.count("event streams broken and resumed")
                self._broken(error)
                self._pause(f"events of {fusion_id}")
        return events

    def wait(self, fusion_id: str) -> dict[str, Any]:
        """The fusion in its final state, by long polls."""
        while True:
            answer = self.ask("GET", f"/fusions/{fusion_id}", params={"wait": 10})
            answer.raise_for_status()
            fusion: dict[str, Any] = answer.json()
            if fusion["state"] in FINAL:
                return fusion
            self._check_time(f"{fusion_id}, which is {fusion['state']} at attempt {fusion['attempt']},")

    def download(self, link: str, size: int, pieces: int) -> bytes:
        """A file in so many ranges, each asked for again where the line breaks."""
        content = bytearray()
        tag = ""
        step = max(1, -(-size // pieces))
        while len(content) < size:
            headers = {"Range": f"bytes={len(content)}-{min(len(content) + step, size) - 1}"} if pieces > 1 else {}
            if headers and tag:
                headers["If-Range"] = tag
            answer = self.ask("GET", link.removeprefix("/v1"), headers=headers)
            answer.raise_for_status()
            self._tally.check(answer.status_code == (206 if headers else 200), f"{link}: {answer.status_code}")
            self._tally.count("ranges downloaded", bool(headers))
            tag = answer.headers["ETag"]
            content += answer.content
        self._tally.count("bytes downloaded", len(content))
        return bytes(content)

    def _stream(self, fusion_id: str, last_id: int) -> Iterator[Event]:
        headers = {"Last-Event-ID": str(last_id)} if last_id else {}
        with self._http.stream("GET", f"/fusions/{fusion_id}/events", headers=headers) as answer:
            answer.raise_for_status()
            yield from parse_events(answer.iter_lines())

    def _pause(self, what: str) -> None:
        self._check_time(what)
        time.sleep(_PAUSE)

    def _check_time(self, what: str) -> None:
        if time.monotonic() > self._deadline:
            raise Impatient(f"{what} had no useful answer before the time was over")

    def _broken(self, error: Exception) -> None:
        self._tally.count("lines broken")
        self._tally.note(f"line broken: {type(error).__name__}: {error}")

    def _turned_away(self, method: str, path: str, answer: httpx.Response) -> None:
        self._tally.count(f"answers {answer.status_code} {_code(answer)}")
        self._tally.note(f"{method} {path}: {answer.status_code} {answer.text[:_MOST_TEXT]}")


def problem(answer: httpx.Response) -> str:
    """What a refusal says, in one line."""
    return f"{answer.status_code} {answer.text[:_MOST_TEXT]}"


def _code(answer: httpx.Response) -> str:
    if answer.headers.get("Content-Type") != "application/problem+json" or not answer.content:  # none with HEAD
        return ""
    return str(answer.json().get("code", ""))


def _cut_body(content: bytes, share: float) -> Iterator[bytes]:
    """The body up to a share of it, at most all but its last byte; then the line is cut."""
    end = min(int(len(content) * share), len(content) - 1)
    for start in range(0, end, _PIECE):
        yield content[start : min(start + _PIECE, end)]
    raise Cut
