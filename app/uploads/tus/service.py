"""Rules about resumable uploads: how one begins, goes on, becomes an uploaded file, and ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from app.context import Context
from app.store.blobs import AnnouncedBlob, StoredBlob
from app.store.ids import new_upload_id
from app.store.models import Upload, utc_now
from app.store.ownership import Owner
from app.store.staging import Appender, NotStaged, UploadBusy
from app.uploads import service as uploads
from app.uploads.errors import DigestMismatch, UploadTooLarge
from app.uploads.full_disk import full_disk_told
from app.uploads.threads import in_thread
from app.uploads.tus import repository
from app.uploads.tus.appending import Chunk
from app.uploads.tus.errors import ChunkTooLarge, OffsetConflict, UploadExpired, UploadLocked, UploadNotFound
from app.uploads.tus.protocol import KINDS, Append, Creation, digest_in

_NONE_BEGUN = "no upload was begun"
_KEPT = "what came before is kept, and HEAD tells how much"
_SETTLING_SECONDS = 20.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Standing:
    """How an upload stands."""

    id: str
    offset: int
    length: int
    metadata_header: str
    expires_at: datetime
    digest: str | None


@dataclass(frozen=True)
class _Held:
    """An upload that this request may append to; none of its bytes are staged any more once it is complete."""

    upload: Upload
    target: Appender | None

    @property
    def offset(self) -> int:
        return self.upload.length if self.target is None else self.target.mark.kept

    def release(self) -> None:
        if self.target is not None:
            self.target.release()


async def create(ctx: Context, owner: Owner, wanted: Creation, body: AsyncIterator[bytes]) -> Standing:
    """A new upload, with the first chunk if there is one.

    Of one whose first chunk is refused or breaks off nothing remains: clients look for its address in an answer that is
    well only, and begin another.
    """
    if wanted.length > ctx.settings.max_upload_bytes:
        raise UploadTooLarge(
            f"One file has at most {ctx.settings.max_upload_bytes} bytes here (COGRAM_MAX_UPLOAD_BYTES); nothing was stored."
        )
    with full_disk_told(_NONE_BEGUN):
        held = await in_thread(_begin, ctx, owner, wanted)
    chunk = body if wanted.has_chunk else _nothing()
    return await _receive(ctx, held, Append(0, wanted.checksum), chunk, is_new=True)


async def append(
    ctx: Context, tenant: str, upload_id: str, wanted: Append, announced: int | None, body: AsyncIterator[bytes]
) -> Standing:
    """One more chunk; with the last one the upload becomes an uploaded file."""
    held = await in_thread(_hold, ctx, tenant, upload_id, True)
    try:
        _check_fit(held, wanted, announced)
        if announced != 0:
            await in_thread(ctx.quotas.check_disk, announced or 0, _KEPT)
    except BaseException:
        held.release()
        raise
    return await _receive(ctx, held, wanted, body)


async def stand(ctx: Context, tenant: str, upload_id: str) -> Standing:
    """How much is kept. All of it means that the file can be used, so the answer waits for that to be true."""
    deadline = time.monotonic() + _SETTLING_SECONDS
    while True:
        standing = await in_thread(_look, ctx, tenant, upload_id)
        if standing.digest is not None or standing.offset < standing.length:
            return standing
        try:
            held = await in_thread(_hold, ctx, tenant, upload_id)
        except UploadLocked:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_LOOK_SECONDS)
        else:  # the process that took the last byte died before it could end the upload
            await _receive(ctx, held, Append(held.offset, None), _nothing())


async def terminate(ctx: Context, tenant: str, upload_id: str) -> None:
    """Ends an upload and removes its bytes; a file that a complete one has become stays."""
    held = await in_thread(_hold, ctx, tenant, upload_id)
    await in_thread(_remove, ctx, held)


def lifetime(ctx: Context) -> timedelta:
    """How long an upload waits for its next byte."""
    return timedelta(hours=ctx.settings.upload_expiry_hours)


def _check_fit(held: _Held, wanted: Append, announced: int | None) -> None:
    if wanted.offset != held.offset:
        raise OffsetConflict(
            f"The upload has {held.offset} bytes, the chunk begins at {wanted.offset}. Go on from what HEAD tells.",
            headers={"Upload-Offset": str(held.offset)},
        )
    if announced is not None and announced > held.upload.length - held.offset:
        raise ChunkTooLarge(
            f"{held.offset} of {held.upload.length} bytes are there, and {announced} more are too many; nothing was kept."
        )


def _begin(ctx: Context, owner: Owner, wanted: Creation) -> _Held:
    """Files first, row second: who knows the id finds both, and files without a row are cleared away."""
    ctx.quotas.check_disk(wanted.length)
    upload = Upload(
        id=new_upload_id(),
        tenant=owner.tenant,
        owner=owner.account,
        kind=wanted.kind,
        name=wanted.name,
        path=wanted.path,
        length=wanted.length,
        metadata_header=wanted.metadata_header,
    )
    ctx.staging.create(upload.id)
    target = None
    try:
        target = ctx.staging.open(upload.id)
        with ctx.database.transaction() as session:
            repository.add(session, upload, lifetime(ctx))
            ctx.quotas.check_bytes(session, owner)
    except BaseException:
        if target is not None:  # it has files open, which a refusal must not leave so
            target.discard()
        else:
            ctx.staging.discard(upload.id)
        raise
    return _Held(upload, target)


def _hold(ctx: Context, tenant: str, upload_id: str, renew: bool = False) -> _Held:
    """The upload for oneself. Its row is read under the lock, as it may have ended just before."""
    _existing(ctx, tenant, upload_id)
    try:
        target = ctx.staging.open(upload_id)
    except UploadBusy as error:
        raise UploadLocked(
            "Another request appends to this upload. HEAD it and go on when that one has ended."
        ) from error
    except NotStaged:
        upload = _existing(ctx, tenant, upload_id)
        if upload.digest is None:
            raise _lost(upload_id) from None
        return _Held(upload, None)
    try:
        upload = _existing(ctx, tenant, upload_id)
        if renew:
            with ctx.database.transaction() as session:
                repository.renew(session, upload, lifetime(ctx))
    except BaseException:
        target.release()
        raise
    if upload.digest is not None:  # the process died between the row and the removal of the files
        target.discard()
        return _Held(upload, None)
    return _Held(upload, target)


def _existing(ctx: Context, tenant: str, upload_id: str) -> Upload:
    with ctx.database.reading() as session:
        found = repository.get(session, tenant, upload_id)
        if found is None:
            raise UploadNotFound(f"There is no upload {upload_id!r}. Begin one: POST /v1/uploads.")
        if repository.has_expired(session, found):
            raise UploadExpired(f"The upload expired at {found.expires_at:%Y-%m-%d %H:%M:%S} UTC. Begin a new one.")
    return found


def _look(ctx: Context, tenant: str, upload_id: str) -> Standing:
    upload = _existing(ctx, tenant, upload_id)
    if upload.digest is not None:
        return _standing(upload, upload.length)
    try:
        return _standing(upload, ctx.staging.kept(upload_id).kept)
    except NotStaged:
        upload = _existing(ctx, tenant, upload_id)
        if upload.digest is None:
            raise _lost(upload_id) from None
        return _standing(upload, upload.length)


async def _receive(
    ctx: Context, held: _Held, wanted: Append, body: AsyncIterator[bytes], is_new: bool = False
) -> Standing:
    target = held.target
    if target is None:
        async for piece in body:
            if piece:
                raise ChunkTooLarge("All bytes of this upload are there already.")
        return _standing(held.upload, held.offset)
    outcome = _NONE_BEGUN if is_new else _KEPT
    chunk = Chunk(
        target,
        held.upload.length - held.offset,
        wanted.checksum,
        go_on=lambda: _go_on(ctx, held.upload, outcome),
        give_up=partial(_remove, ctx, held) if is_new else None,
    )
    with full_disk_told(outcome):
        return await chunk.receive(body, lambda: _conclude(ctx, held.upload, target))


def _go_on(ctx: Context, upload: Upload, outcome: str) -> None:
    """What a chunk that takes days needs while it comes: it must not expire, and others use the disk meanwhile."""
    ctx.quotas.check_disk(outcome=outcome)
    if upload.expires_at - utc_now() < lifetime(ctx) * 0.9:
        with ctx.database.transaction() as session:  # not every sync is worth one
            repository.renew(session, upload, lifetime(ctx))


def _conclude(ctx: Context, upload: Upload, target: Appender) -> Standing:
    if target.mark.kept == upload.length:
        upload.digest = _complete(ctx, upload, target)
    return _standing(upload, target.mark.kept)


def _complete(ctx: Context, upload: Upload, target: Appender) -> str:
    """Makes the uploaded file of it. Every step can be repeated by whoever finds the upload half-way through this."""
    digest = target.mark.digest or target.whole_digest()
    _check_whole(ctx, upload, target, digest)
    target.note(digest)
    blob = _placed(ctx, upload, target, StoredBlob(digest, upload.length))
    with ctx.database.transaction() as session:
        owner = Owner(upload.owner, upload.tenant)
        uploads.note(session, owner, KINDS[upload.kind], upload.name, upload.path, blob)
        repository.complete(session, upload.id, digest)
        repository.renew(session, upload, lifetime(ctx))
    target.discard()
    return digest


def _check_whole(ctx: Context, upload: Upload, target: Appender, digest: str) -> None:
    expected = digest_in(upload.metadata_header)
    if expected in {None, digest}:
        return
    _remove(ctx, _Held(upload, target))
    raise DigestMismatch.single(
        "Upload-Metadata.sha256",
        f"it announces sha256 {expected}, the whole has {digest}; the upload was removed. Begin a new one.",
    )


def _placed(ctx: Context, upload: Upload, target: Appender, blob: StoredBlob) -> AnnouncedBlob:
    if not target.is_placed:
        return ctx.blobs.bring(target.part, blob)
    (announced,) = ctx.blobs.announce([blob])
    if not ctx.blobs.storage.has(blob):  # nobody asked for so long that the collector has taken it
        _remove(ctx, _Held(upload, target))
        raise _lost(upload.id)
    return announced


def _remove(ctx: Context, held: _Held) -> None:
    try:
        with ctx.database.transaction() as session:
            repository.delete(session, held.upload.id)
        if held.target is not None:
            held.target.discard()
    finally:
        held.release()


def _standing(upload: Upload, offset: int) -> Standing:
    return Standing(upload.id, offset, upload.length, upload.metadata_header, upload.expires_at, upload.digest)


def _lost(upload_id: str) -> UploadNotFound:
    return UploadNotFound(
        f"The bytes of upload {upload_id!r} are not on this machine. Begin a new one: POST /v1/uploads."
    )


async def _nothing() -> AsyncIterator[bytes]:
    yield b""
