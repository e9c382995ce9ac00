"""The headers of tus 1.0, read: everything that is wrong with them is found at once."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from app.uploads.names import name_problem, path_problem
from app.uploads.service import Kind
from app.uploads.tus.errors import HeadersRefused, NotAChunk, VersionUnsupported
from cogram_core.errors import Problem

if TYPE_CHECKING:
    from hashlib import _Hash

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
ALGORITHMS = {"sha256": 32, "sha1": 20}  # tus asks every server with checksums for sha1
CHUNK_TYPE = "application/offset+octet-stream"
KINDS: dict[str, Kind] = {"checkpoint": "checkpoint", "dataset": "dataset"}
_NUMBER = re.compile(r"[0-9]{1,18}")
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # printable ASCII without space and comma
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_MOST_METADATA = 4096


@dataclass(frozen=True)
class Checksum:
    """What a chunk has to be."""

    algorithm: str
    digest: bytes

    def begun(self) -> _Hash:
        """A digest of nothing yet."""
        return hashlib.new(self.algorithm, usedforsecurity=False)


@dataclass(frozen=True)
class Creation:
    """A new upload, as it was asked for."""

    kind: Kind
    name: str
    path: str
    length: int
    metadata_header: str
    has_chunk: bool
    checksum: Checksum | None


@dataclass(frozen=True)
class Append:
    """A chunk, as it was announced."""

    offset: int
    checksum: Checksum | None


def check_version(headers: Headers) -> None:
    """Raises unless the client speaks our version."""
    found = headers.get("Tus-Resumable")
    if found != VERSION:
        said = f"this is version {found[:40]!r}" if found else "the header is missing"
        raise VersionUnsupported(f"Send Tus-Resumable: {VERSION}; {said}.", headers={"Tus-Version": VERSION})


def read_creation(headers: Headers) -> Creation:
    """The upload that a POST asks for.

    Raises:
        HeadersRefused: listing everything that is wrong.
        NotAChunk: for a body of another type.
    """
    problems: list[Problem] = []
    length = _number(headers, "Upload-Length", problems)
    if "Upload-Defer-Length" in headers:
        problems.append(_wrong("Upload-Defer-Length", "is not taken here: say the length in Upload-Length at once"))
    if "Upload-Concat" in headers:
        problems.append(_wrong("Upload-Concat", "is not taken here: send the file as one upload"))
    header = headers.get("Upload-Metadata", "")
    metadata = _metadata(header, problems)
    kind, name, path = _place(metadata, problems)
    expected_digest(metadata, problems)
    checksum = _checksum(headers, problems)
    if problems:
        raise HeadersRefused.listing(problems)
    has_chunk = headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers
    if has_chunk:
        check_type(headers)
    return Creation(kind, name, path, length, header, has_chunk, checksum)


def read_append(headers: Headers) -> Append:
    """The chunk that a PATCH announces; raises as ``read_creation`` does."""
    check_type(headers)
    problems: list[Problem] = []
    offset = _number(headers, "Upload-Offset", problems)
    checksum = _checksum(headers, problems)
    if problems:
        raise HeadersRefused.listing(problems)
    return Append(offset, checksum)


def check_type(headers: Headers) -> None:
    """Raises unless the body is declared as tus wants it."""
    found = headers.get("Content-Type", "")
    if found.split(";")[0].strip().lower() != CHUNK_TYPE:
        raise NotAChunk(f"Send the bytes as Content-Type: {CHUNK_TYPE}, not {found[:80]!r}.")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise NotAChunk("Send the file's own bytes, without Content-Encoding.")


def expected_digest(metadata: dict[str, str], problems: list[Problem]) -> str | None:
    """The sha256 that the whole file is announced to have."""
    found = metadata.get("sha256")
    if found is None:
        return None
    if not _SHA256.fullmatch(found):
        problems.append(
            _wrong("Upload-Metadata.sha256", "write it as 64 hexadecimal digits, then in base64 as all values")
        )
    return found.lower()


def digest_in(metadata_header: str) -> str | None:
    """The same, of a header that was found good when the upload was created."""
    return expected_digest(_metadata(metadata_header, []), [])


def _place(metadata: dict[str, str], problems: list[Problem]) -> tuple[Kind, str, str]:
    """Of which checkpoint or dataset to be the file is, and under which path."""
    kind = metadata.get("kind", "")
    if kind not in KINDS:
        problems.append(_wrong("Upload-Metadata.kind", "is checkpoint or dataset, in base64"))
    name = metadata.get("name")
    if name is None:
        problems.append(
            _wrong("Upload-Metadata.name", "is required: the name of the checkpoint or dataset to be, in base64")
        )
    elif problem := name_problem(name):
        problems.append(Problem("Upload-Metadata.name", problem.code, problem.message))
    key = "path" if "path" in metadata else "filename"
    path = metadata.get(key)
    if path is None:
        problems.append(_wrong("Upload-Metadata.path", "is required, or filename: the file's path in it, in base64"))
    elif problem := path_problem(path, f"Upload-Metadata.{key}"):
        problems.append(problem)
    return KINDS.get(kind, "checkpoint"), name or "", path or ""


def _metadata(header: str, problems: list[Problem]) -> dict[str, str]:
    if len(header) > _MOST_METADATA:
        problems.append(_wrong("Upload-Metadata", f"has at most {_MOST_METADATA} characters"))
        return {}
    found: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else []:
        key, _, value = pair.strip(" ").partition(" ")
        place = f"Upload-Metadata.{key[:40]}"
        if not _KEY.fullmatch(key):
            problems.append(_wrong("Upload-Metadata", f"{pair[:80]!r}: write KEY BASE64, pairs parted by commas"))
        elif key in found:
            problems.append(_wrong(place, "stands there twice"))
        else:
            found[key] = _text(value, place, problems)
    return found


def _text(value: str, place: str, problems: list[Problem]) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except ValueError:  # of any kind: no base64, no ASCII, no UTF-8
        problems.append(_wrong(place, f"{value[:80]!r} is not the base64 of a text in UTF-8"))
        return ""


def _checksum(headers: Headers, problems: list[Problem]) -> Checksum | None:
    header = headers.get("Upload-Checksum")
    if header is None:
        return None
    algorithm, _, encoded = header.partition(" ")
    if algorithm not in ALGORITHMS:
        problems.append(_wrong("Upload-Checksum", f"{algorithm[:40]!r} is none of {', '.join(ALGORITHMS)}"))
        return None
    try:
        digest = base64.b64decode(encoded, validate=True)
    except ValueError:
        digest = b""
    if len(digest) != ALGORITHMS[algorithm]:
        problems.append(_wrong("Upload-Checksum", f"write {algorithm}, a space, and the base64 of the chunk's digest"))
    return Checksum(algorithm, digest)


def _number(headers: Headers, header: str, problems: list[Problem]) -> int:
    found = headers.get(header)
    if found is None:
        problems.append(_wrong(header, "is required; add it"))
    elif not _NUMBER.fullmatch(found):
        problems.append(_wrong(header, f"{found[:40]!r} is not a number of bytes"))
    else:
        return int(found)
    return 0


def _wrong(location: str, message: str) -> Problem:
    return Problem(location, HeadersRefused.code, message)
