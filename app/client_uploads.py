"""Sends one file by tus: goes on where it was when the connection breaks or the service restarts."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from app.client_errors import ServiceProblem, Unreachable, raise_for_problem

_CHUNK = 1 << 20
_VERSION = {"Tus-Resumable": "1.0.0"}
_CHUNK_TYPE = {"Content-Type": "application/offset+octet-stream"}
_PAUSE_SECONDS = 0.5
_MOST_FAILURES = 60  # in a row, with nothing got across in between
_PASSING = frozenset({408, 409, 423, 429, 500, 502, 503, 504})  # another try may find it otherwise
_GONE = frozenset({404, 410})


class ResumableUpload:
    """One file on its way; ``kind`` is checkpoint or dataset, ``sha256`` lets the service check the whole."""

    def __init__(self, http: httpx.Client, kind: str, name: str, path: str, source: Path, sha256: str) -> None:
        self._http = http
        self._source = source
        self._size = source.stat().st_size
        pairs = {"kind": kind, "name": name, "path": path, "sha256": sha256}
        self._metadata = ",".join(f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in pairs.items())
        self._url: str | None = None

    def run(self) -> None:
        """Until the service has all of it.

        Raises:
            ServiceProblem: when the service refuses for a reason that stays.
            Unreachable: when many tries in a row got nothing across.
        """
        failures, reached = 0, 0
        while True:
            try:
                offset = self._stand() if self._url else self._begin()
                if offset > reached:
                    failures, reached = 0, offset
                if offset == self._size or self._send(offset):
                    return
            except httpx.TransportError as error:
                failures += 1
                if failures > _MOST_FAILURES:
                    raise Unreachable(f"{self._http.base_url} doesn't take the upload: {error}") from error
            except ServiceProblem as problem:
                failures += 1
                is_gone = problem.status in _GONE and self._url is not None
                if failures > _MOST_FAILURES or not (is_gone or problem.status in _PASSING):
                    raise
                if is_gone:  # it begins anew
                    self._url, reached = None, 0
            if failures:
                time.sleep(_PAUSE_SECONDS)

    def _begin(self) -> int:
        headers = {**_VERSION, "Upload-Length": str(self._size), "Upload-Metadata": self._metadata}
        answer = self._http.post("/uploads", headers=headers)
        raise_for_problem(answer)
        # Its last part only: a proxy may serve the whole under another path.
        self._url = "/uploads/" + answer.headers["Location"].rpartition("/")[2]
        return 0

    def _stand(self) -> int:
        answer = self._http.head(str(self._url), headers=_VERSION)
        raise_for_problem(answer)
        return int(answer.headers["Upload-Offset"])

    def _send(self, offset: int) -> bool:
        """Sends the rest; whether the service has all now."""
        length = {"Content-Length": str(self._size - offset)}
        headers = {**_VERSION, **_CHUNK_TYPE, **length, "Upload-Offset": str(offset)}
        answer = self._http.patch(str(self._url), headers=headers, content=self._rest(offset))
        raise_for_problem(answer)
        return int(answer.headers["Upload-Offset"]) == self._size

    def _rest(self, offset: int) -> Iterator[bytes]:
        with self._source.open("rb") as file:
            file.seek(offset)
            yield from iter(lambda: file.read(_CHUNK), b"")
