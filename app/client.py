"""A client of the service: uploads with digests, jobs followed over broken connections, downloads checked.

```python
with Client("http://127.0.0.1:8765") as client:
    client.upload_checkpoint("clinic-a", Path("clinic-a"))
    fusion = client.submit(recipe)
    for event in client.follow(fusion["id"]):
        print(event.type, event.data)
    client.download(fusion["id"], Path("out"))
```
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from app.client_errors import ClientError, DamagedDownload, ServiceProblem, Unreachable, raise_for_problem
from app.client_uploads import ResumableUpload

__all__ = ["Client", "ClientError", "DamagedDownload", "Event", "ServiceProblem", "Unreachable", "parse_events"]

_log = logging.getLogger(__name__)

FINAL = frozenset({"succeeded", "failed", "cancelled"})
_TRACE_PAGE = 10_000  # decisions: a few megabytes
_CHUNK = 1 << 20
_RESUMABLE_FROM = 8 << 20  # smaller files are sent again faster than it is asked how much of them came
_LONGEST_WAIT = 30
_QUIET_SECONDS = 60.0  # the service speaks every 15 seconds at least; longer silence is a broken connection
_RECONNECT_SECONDS = 0.5
_MOST_RECONNECTS = 60
_MOST_RESENDS = 20
_NOT_HELD = "blob.not_held"
_PASSING = frozenset({502, 503, 504})  # a part of the service, or a proxy before it, is just away


@dataclass(frozen=True)
class Event:
    """One thing that happened to a fusion."""

    id: int
    type: str
    data: dict[str, Any]


class Client:
    """Talks to one service, with the key given or else that in COGRAM_API_KEY. Not made for several threads at once."""

    def __init__(self, address: str, timeout: float = 60.0, api_key: str | None = None) -> None:
        key = api_key or os.environ.get("COGRAM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=address.rstrip("/") + "/v1", timeout=timeout, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def upload_checkpoint(self, name: str, source: Path) -> dict[str, Any]:
        """Uploads a safetensors file, or every file of a folder, and makes a checkpoint of it.

        What the service has already is not sent again; large files go on where they were when the connection breaks.
        """
        return self._create("checkpoints", name, source)

    def upload_dataset(self, name: str, source: Path) -> dict[str, Any]:
        """Uploads a safetensors file and makes a dataset of it."""
        return self._create("datasets", name, source)

    def put_file(self, kind: str, name: str, path: str, source: Path) -> dict[str, Any]:
        """Uploads one file, with its digest, so that damage on the way is found. ``kind``: checkpoints or datasets."""
        return self._put(kind, name, path, source, _sha256(source))

    def has(self, sha256: str) -> bool:
        """Whether the service has these bytes already, in anything of the caller's tenant."""
        answer = self._request("HEAD", f"/blobs/sha256:{sha256}")
        if answer.status_code != httpx.codes.NOT_FOUND:
            raise_for_problem(answer)
        return answer.is_success

    def _put(self, kind: str, name: str, path: str, source: Path, sha256: str) -> dict[str, Any]:
        headers = {"Repr-Digest": _repr_digest(sha256), "Content-Length": str(source.stat().st_size)}
        with source.open("rb") as file:
            url = f"/{kind}/{quote(name)}/files/{quote(path)}"
            return self._json("PUT", url, content=iter(lambda: file.read(_CHUNK), b""), headers=headers)

    def validate(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Every check of a submission: ``ok``, ``errors``, ``estimates``."""
        return self._json("POST", "/fusions/validate", json=recipe)

    def submit(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Queues a fusion, and no more than one, however often the connection breaks."""
        return self._once("/fusions", json=recipe)

    def fusion(self, fusion_id: str) -> dict[str, Any]:
        """How a fusion stands."""
        return self._json("GET", f"/fusions/{fusion_id}")

    def cancel(self, fusion_id: str) -> dict[str, Any]:
        """Asks a fusion to stop."""
        return self._json("POST", f"/fusions/{fusion_id}/cancel")

    def retry(self, fusion_id: str) -> dict[str, Any]:
        """Queues a new fusion like one that failed or was cancelled."""
        return self._once(f"/fusions/{fusion_id}/retry")

    def wait(self, fusion_id: str, timeout: float) -> dict[str, Any]:
        """The fusion once it has ended; raises TimeoutError if it takes longer.

        What it waits for in vain, a worker of its queue, is a warning in the log as soon as the service tells of it.
        """
        warned = None
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            pause = max(0.0, min(left, _LONGEST_WAIT))
            fusion = self._json("GET", f"/fusions/{fusion_id}", params={"wait": pause}, timeout=pause + 30)
            if fusion["state"] in FINAL:
                return fusion
            lacking = fusion.get("waiting_for")
            if left <= 0:
                raise TimeoutError(f"{fusion_id} is {fusion['state']} after {timeout} seconds. {lacking or ''}".strip())
            if lacking and lacking != warned:
                _log.warning("%s is queued. %s", fusion_id, lacking)
                warned = lacking

    def follow(self, fusion_id: str, last_event_id: int = 0) -> Iterator[Event]:
        """Events up to the final one; goes on where it was when the connection breaks or the service restarts."""
        failures = 0
        while True:
            try:
                for event in self._events(fusion_id, last_event_id):
                    failures, last_event_id = 0, event.id
                    yield event
                    if event.type in FINAL:
                        return
            except httpx.TransportError as error:
                failures += 1
                if failures > _MOST_RECONNECTS:
                    raise Unreachable(f"{self._http.base_url} doesn't answer: {error}") from error
            except ServiceProblem as problem:
                failures += 1
                if problem.status not in _PASSING or failures > _MOST_RECONNECTS:
                    raise
            time.sleep(_RECONNECT_SECONDS)

    def trace(self, fusion_id: str, **filters: str) -> Iterator[dict[str, Any]]:
        """Every decision, in order; filters: layer, kind, action.

        It comes in pages: who takes long over a decision keeps no connection waiting.
        """
        query = httpx.QueryParams({**filters, "limit": _TRACE_PAGE})
        while True:
            answer = self._request("GET", f"/fusions/{fusion_id}/trace", params=query)
            raise_for_problem(answer)
            yield from map(json.loads, answer.content.splitlines())
            if "next" not in answer.links:
                return
            query = httpx.URL(answer.links["next"]["url"]).params

    def trace_summary(self, fusion_id: str) -> list[dict[str, Any]]:
        """The trace, layer by layer."""
        layers: list[dict[str, Any]] = self._json("GET", f"/fusions/{fusion_id}/trace/summary")["layers"]
        return layers

    def artifacts(self, fusion_id: str) -> list[dict[str, Any]]:
        """Paths, sizes and digests of what the fusion produced."""
        items: list[dict[str, Any]] = self._json("GET", f"/fusions/{fusion_id}/artifacts")["items"]
        return items

    def download(self, fusion_id: str, folder: Path) -> list[Path]:
        """Every artifact of a fusion into ``folder``, each checked against its digest."""
        return [self._download(fusion_id, entry, folder) for entry in self.artifacts(fusion_id)]

    def _download(self, fusion_id: str, entry: Mapping[str, Any], folder: Path) -> Path:
        target = folder / str(entry["path"])
        if not target.resolve().is_relative_to(folder.resolve()):
            raise DamagedDownload(f"{entry['path']!r} leads out of the folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        digest = hashlib.sha256()
        try:
            with self._http.stream(
                "GET", f"/fusions/{fusion_id}/artifacts/{quote(entry['path'])}", follow_redirects=True
            ) as answer:
                raise_for_problem(answer)
                with partial.open("wb") as file:
                    for piece in answer.iter_raw(_CHUNK):
                        digest.update(piece)
                        file.write(piece)
            if digest.hexdigest() != entry["sha256"]:
                raise DamagedDownload(f"{entry['path']}: sha256 {digest.hexdigest()}, announced {entry['sha256']}")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def _create(self, kind: str, name: str, source: Path) -> dict[str, Any]:
        files = {source.name: source} if source.is_file() else _files_below(source)
        digests = {path: _sha256(file) for path, file in files.items()}
        try:
            return self._once(f"/{kind}", json=self._bring(kind, name, files, digests))
        except ServiceProblem as problem:
            if all(error["code"] != _NOT_HELD for error in problem.errors):
                raise
        # What the service had was collected after it was asked: asked again, it lacks that, and gets it.
        return self._once(f"/{kind}", json=self._bring(kind, name, files, digests))

    def _bring(self, kind: str, name: str, files: Mapping[str, Path], digests: Mapping[str, str]) -> dict[str, Any]:
        """Uploads what the service lacks; the document that makes a checkpoint or dataset of all."""
        document: dict[str, Any] = {"name": name}
        for path, file in files.items():
            if self.has(digests[path]):
                document.setdefault("blobs", {})[path] = f"sha256:{digests[path]}"
                continue
            if file.stat().st_size > _RESUMABLE_FROM:
                ResumableUpload(self._http, kind.removesuffix("s"), name, path, file, digests[path]).run()
            else:
                self._put(kind, name, path, file, digests[path])
            document.setdefault("files", []).append(path)
        return document

    def _events(self, fusion_id: str, last_event_id: int) -> Iterator[Event]:
        headers = {"Last-Event-ID": str(last_event_id)} if last_event_id else {}
        timeout = httpx.Timeout(10.0, read=_QUIET_SECONDS)
        url = f"/fusions/{fusion_id}/events"
        with self._http.stream("GET", url, headers=headers, timeout=timeout) as answer:
            raise_for_problem(answer)
            yield from parse_events(answer.iter_lines())

    def _once(self, url: str, **options: Any) -> dict[str, Any]:
        """A POST that is sent again until it is answered: by its key the service knows it, and does it once."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        failures = 0
        while True:
            try:
                return self._json("POST", url, headers=headers, **options)
            except Unreachable:
                failures += 1
                if failures > _MOST_RESENDS:
                    raise
            except ServiceProblem as problem:
                failures += 1
                if problem.status not in _PASSING or failures > _MOST_RESENDS:
                    raise
            time.sleep(_RECONNECT_SECONDS)

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        answer = self._request(method, url, **options)
        raise_for_problem(answer)
        document: dict[str, Any] = answer.json()
        return document

    def _request(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, url, **options)
        except httpx.TransportError as error:
            raise Unreachable(f"{self._http.base_url} doesn't answer: {error}") from error


def parse_events(lines: Iterable[str]) -> Iterator[Event]:
    """The events in the lines of a stream; comments are heartbeats and say nothing."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        else:
            if "id" in fields and "data" in fields:
                yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


def _files_below(folder: Path) -> dict[str, Path]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if not found:
        raise ClientError(f"{folder} is no file, and no folder with files in it")
    return found


def _sha256(source: Path) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _repr_digest(sha256: str) -> str:
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
