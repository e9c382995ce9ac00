"""tus as a test speaks it: the headers, one request a call."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import httpx

from app.store.models import Upload
from tests.app.factories import Service

CHUNK_TYPE = "application/offset+octet-stream"
VERSION = {"Tus-Resumable": "1.0.0"}


def metadata(**pairs: str) -> str:
    """The header Upload-Metadata; of a dataset's file, if nothing else is said."""
    chosen = {"kind": "dataset", "name": "eval", "path": "data.safetensors"} | pairs
    return ",".join(f"{key} {_b64(value.encode())}" for key, value in chosen.items())


def checksum(content: bytes, algorithm: str = "sha256") -> dict[str, str]:
    """The header Upload-Checksum."""
    return {"Upload-Checksum": f"{algorithm} {_b64(hashlib.new(algorithm, content).digest())}"}


def repr_digest(content: bytes) -> str:
    """The header Repr-Digest of an answer."""
    return f"sha-256=:{_b64(hashlib.sha256(content).digest())}:"


@dataclass(frozen=True)
class Tus:
    """A client without a will of its own."""

    service: Service

    def post(
        self, length: int | str, header: str | None = None, content: bytes | Iterator[bytes] = b"", **more: str
    ) -> httpx.Response:
        """A creation, whatever comes of it."""
        headers = {"Upload-Length": str(length), "Upload-Metadata": header or metadata(), **VERSION}
        if content:
            headers["Content-Type"] = CHUNK_TYPE
        return self.service.http.post("/v1/uploads", content=content, headers=headers | _named(more))

    def create(self, length: int, header: str | None = None) -> str:
        """The address of a new upload."""
        answer = self.post(length, header)
        assert answer.status_code == 201, answer.text
        assert answer.headers["Tus-Resumable"] == "1.0.0"
        return answer.headers["Location"]

    def patch(
        self, url: str, offset: int | str, content: bytes | Iterator[bytes], headers: Mapping[str, str] = {}
    ) -> httpx.Response:
        """A chunk, whatever comes of it."""
        own = {"Upload-Offset": str(offset), "Content-Type": CHUNK_TYPE, **VERSION}
        return self.service.http.patch(url, content=content, headers=own | dict(headers))

    def head(self, url: str) -> httpx.Response:
        """How the upload stands."""
        return self.service.http.head(url, headers=VERSION)

    def offset(self, url: str) -> int:
        """How many bytes are kept."""
        answer = self.head(url)
        assert answer.status_code == 200
        return int(answer.headers["Upload-Offset"])

    def delete(self, url: str) -> httpx.Response:
        """A termination."""
        return self.service.http.delete(url, headers=VERSION)

    def expiry(self, url: str) -> datetime:
        """By the row: it moves when a request has the upload for itself. Asking for it by a PATCH would take it away."""
        with self.service.context.database.reading() as session:
            return session.get_one(Upload, url.rpartition("/")[2]).expires_at

    def staged(self) -> list[str]:
        """Names of the files of uploads under way."""
        return sorted(path.name for path in self.service.context.settings.uploads_dir.iterdir())


def _named(more: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in more.items()}


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()
