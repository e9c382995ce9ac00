"""Takes the bytes of one file from the wire to a blob, and notes under which name they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Literal

from sqlalchemy.orm import Session
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from app.store.blobs import CHUNK, AnnouncedBlob, BlobCollected, BlobStore, BlobWriter, record_blob
from app.store.ownership import Owner
from app.uploads import repository
from app.uploads.digests import expected_digests
from app.uploads.errors import DigestMismatch, NotARawBody, StoringTookTooLong, Truncated, UploadTooLarge
from app.uploads.full_disk import full_disk_told
from app.uploads.names import check_name, check_path
from app.uploads.threads import in_placing_thread, in_thread

Kind = Literal["checkpoint", "dataset"]


def check_request(name: str, path: str, headers: Headers, limit: int) -> None:
    """Refuses what can be refused before the first byte of the body is read."""
    check_name(name)
    check_path(path)
    expected_digests(headers)
    if headers.get("Content-Type", "").lower().startswith("multipart/"):
        raise NotARawBody("Send the file itself as the body (curl -T FILE URL), not a form.")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise NotARawBody("Send the file's own bytes, without Content-Encoding.")
    announced = announced_length(headers)
    if announced is not None and announced > limit:
        raise _too_large(limit)


def announced_length(headers: Headers) -> int | None:
    """How many bytes the request says will come."""
    announced = headers.get("Content-Length", "")
    return int(announced) if announced.isdecimal() else None


def replaced_bytes(session: Session, owner: Owner, kind: Kind, name: str, path: str) -> int:
    """How much of what the account stores goes when it stores another file under this name and path."""
    before = repository.get(session, owner.tenant, kind, name, path)
    return before.size if before is not None and before.owner == owner.account else 0


async def receive(blobs: BlobStore, body: AsyncIterator[bytes], headers: Headers, limit: int) -> AnnouncedBlob:
    """Stores the body as a blob, if it is complete and is what it was announced to be; else nothing remains."""
    with full_disk_told("nothing was stored"):
        writer = await in_thread(blobs.writer)
        try:
            await _write_all(writer, body, limit)
            _check_complete(writer, headers)
            return await in_placing_thread(writer.publish)
        except ClientDisconnect as error:
            raise Truncated(f"The connection ended after {writer.size} bytes; nothing was stored.") from error
        finally:
            # In a thread, as unlinking gigabytes takes its time; it is done even if a cancelled request can't wait for it.
            await asyncio.shield(in_thread(writer.discard))


def note(session: Session, owner: Owner, kind: Kind, name: str, path: str, stored: AnnouncedBlob) -> None:
    """Puts the blob under its name and path; what was there before is replaced."""
    try:
        record_blob(session, stored)
    except BlobCollected as error:
        raise StoringTookTooLong(
            "The bytes took so long to store that they were cleared away; send them again."
        ) from error
    repository.put(session, owner, kind, name, path, stored)


async def _write_all(writer: BlobWriter, body: AsyncIterator[bytes], limit: int) -> None:
    """Gathers the network's small pieces, so that a thread is asked once a megabyte; the event loop never writes.

    While a thread hashes and writes one megabyte, the next comes in; no more than two are in memory.
    """
    gathered = bytearray()
    received = 0
    writing: asyncio.Future[None] | None = None
    try:
        async for piece in body:
            received += len(piece)
            if received > limit:
                raise _too_large(limit)
            gathered += piece
            if len(gathered) >= CHUNK:
                if writing is not None:
                    await writing
                writing, gathered = in_thread(writer.write, gathered), bytearray()
    finally:
        if writing is not None:  # it is waited for even when the body failed: what it writes to is about to be closed
            await asyncio.wait([writing])
    if writing is not None:
        writing.result()
    if gathered:
        await in_thread(writer.write, gathered)


def _check_complete(writer: BlobWriter, headers: Headers) -> None:
    announced = announced_length(headers)
    if announced is not None and announced != writer.size:
        raise Truncated(f"{announced} bytes were announced and {writer.size} came; nothing was stored.")
    _check_digests(expected_digests(headers), writer.digest)


def _check_digests(expected: Mapping[str, str], found: str) -> None:
    for header, digest in expected.items():
        if digest != found:
            raise DigestMismatch.single(
                header,
                f"{header} announces sha256 {digest}, the bytes have {found}; nothing was stored. Send it again.",
            )


def _too_large(limit: int) -> UploadTooLarge:
    return UploadTooLarge(f"One file has at most {limit} bytes here (COGRAM_MAX_UPLOAD_BYTES); nothing was stored.")
