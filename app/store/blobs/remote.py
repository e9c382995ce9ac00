"""Blobs in object storage: ``{prefix}/sha256/ab/abcd…`` in a bucket that ``BLOB_URL`` names.

Options of the provider (keys, region, endpoint) come from its own environment variables, as obstore reads them. What
is wanted as a file comes through a cache on the local disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from app.store.blobs.cache import Cache, copy_pieces, file_pieces
from app.store.blobs.content import CHUNK, BlobGone, FoundBlob, StorageError, StoredBlob
from app.store.blobs.storage import Beat, unheard

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, ObjectStore, RetryConfig, S3Store

_PIECE = 8 * CHUNK
_MOST_PARTS = 9_000  # of one upload; providers allow 10,000
_PARTS_AT_ONCE = 2  # what is in memory while a blob goes out
_BEAT_SECONDS = 60.0
_HEADER_BYTES = 16 * CHUNK + 8  # the largest that a safetensors file may have here, with its length
_SMALL = 32 * CHUNK  # indexes and descriptions, which are read whole; nothing larger is
_FIRST_LOOK = 256 * 1024
# Long enough for one piece on a slow line; a whole blob is never one request.
_PATIENT: ClientConfig = {"timeout": timedelta(minutes=5), "connect_timeout": timedelta(seconds=5)}
# Where a row is held, or somebody waits for an answer that may be no.
_QUICK: ClientConfig = {"timeout": timedelta(seconds=5), "connect_timeout": timedelta(seconds=2)}
_ONCE: RetryConfig = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}


class RemoteStorage:
    """Objects of a bucket below a prefix, and copies of some of them here."""

    def __init__(self, url: str, cache: Cache, patience: timedelta) -> None:
        self._cache = cache
        self._store = _opened(url, _PATIENT, {"retry_timeout": patience})
        self._signing = cast("S3Store | GCSStore | AzureStore", self._store)
        self._quick = _opened(url, _QUICK, _ONCE)

    def place(self, file: Path, blob: StoredBlob, beat: Beat) -> None:
        """Uploads the file, in parts if it is large, and keeps it as a copy."""
        part = max(_PIECE, -(-blob.size // _MOST_PARTS))
        with _errors_told("upload"), file.open("rb", buffering=0) as opened:
            pieces = file_pieces(opened, blob.size or 1, beat, _BEAT_SECONDS)
            parted = blob.size > _PIECE
            content = pieces if parted else b"".join(pieces)
            obstore.put(
                self._store,
                _key(blob.digest),
                content,
                use_multipart=parted,
                chunk_size=part,
                max_concurrency=_PARTS_AT_ONCE,
            )
            there = obstore.head(self._store, _key(blob.digest))["size"]
        if there != blob.size:
            raise StorageError(f"blob {blob.digest} has {there} bytes there and {blob.size} here")
        self._cache.keep(file, blob)

    def remove(self, digest: str) -> None:
        """Removes the object; a copy here goes when its time comes."""
        with _errors_told("removal"), suppress(FileNotFoundError):
            obstore.delete(self._quick, _key(digest))

    def has(self, blob: StoredBlob) -> bool:
        """Whether the object is there and has its size."""
        with _errors_told("look-up"):
            try:
                return obstore.head(self._store, _key(blob.digest))["size"] == blob.size
            except FileNotFoundError:
                return False

    def found(self) -> Iterator[FoundBlob]:
        """Every object below the prefix."""
        with _errors_told("listing"):
            for some in obstore.list(self._store, "sha256"):
                for one in some:
                    yield FoundBlob(one["path"].rpartition("/")[2], one["size"], one["last_modified"])

    @contextmanager
    def headers(self, files: Mapping[str, StoredBlob]) -> Iterator[Mapping[str, Path]]:
        """Files of the right size of which only what a reader of headers asks for came over the line."""
        with self._cache.room() as room:
            paths = {name: room / str(number) for number, name in enumerate(files)}
            for name, blob in files.items():
                if name.endswith(".safetensors"):
                    self._cache.header(blob, paths[name], "headers", partial(self._begin_tensors, blob))
                else:
                    self._cache.header(blob, paths[name], "documents", partial(self._begin_document, blob))
            yield paths

    @contextmanager
    def whole(self, blob: StoredBlob) -> Iterator[Path]:
        """A copy."""
        with self._cache.room() as room:
            self.lay(blob, room / "blob")
            yield room / "blob"

    def lay(self, blob: StoredBlob, target: Path, beat: Beat = unheard) -> None:
        """A hard link to a copy."""
        if not target.exists():  # one checkpoint may be referred to more than once
            self._cache.whole(
                blob, target, lambda file: copy_pieces(self._pieces(blob, 0, blob.size), file, beat), beat
            )

    async def stream(self, blob: StoredBlob, begin: int, end: int) -> AsyncIterator[bytes]:
        """Piece by piece; the next one is on its way while the caller takes one."""
        starts = iter(range(begin, end, _PIECE))

        def ask() -> asyncio.Future[bytes] | None:
            start = next(starts, None)
            return None if start is None else asyncio.ensure_future(self._ranged(blob, start, min(start + _PIECE, end)))

        coming = ask()
        try:
            while coming is not None:
                piece = await coming
                coming = ask()
                yield piece
        finally:
            if coming is not None:
                coming.cancel()

    def address(self, blob: StoredBlob, lasting: timedelta) -> str | None:
        """A link that anybody may follow for that long."""
        with _errors_told("signing"):
            return obstore.sign(self._signing, "GET", _key(blob.digest), lasting)

    def check(self) -> None:
        """Asks the bucket for a listing of nothing."""
        with _errors_told("bucket"):
            obstore.list_with_delimiter(self._quick, "none")

    async def _ranged(self, blob: StoredBlob, begin: int, end: int) -> bytes:
        with _fetching(blob):
            return bytes(await obstore.get_range_async(self._store, _key(blob.digest), start=begin, end=end))

    def _pieces(self, blob: StoredBlob, begin: int, end: int) -> Iterator[bytes]:
        for start in range(begin, end, _PIECE):
            with _fetching(blob):
                yield bytes(
                    obstore.get_range(self._store, _key(blob.digest), start=start, end=min(start + _PIECE, end))
                )

    def _begin_document(self, blob: StoredBlob, file: IO[bytes]) -> None:
        """Fetches all of a small one; of anything larger there is nothing but the size."""
        file.seek(0)
        if blob.size <= _SMALL:
            copy_pieces(self._pieces(blob, 0, blob.size), file)

    def _begin_tensors(self, blob: StoredBlob, file: IO[bytes]) -> None:
        """Fetches what readers of headers read."""
        file.seek(0)
        start = b"".join(self._pieces(blob, 0, min(_FIRST_LOOK, blob.size)))
        file.write(start)
        wanted = min(8 + int.from_bytes(start[:8], "little"), _HEADER_BYTES, blob.size)
        copy_pieces(self._pieces(blob, len(start), wanted), file)


def _opened(url: str, client: ClientConfig, retry: RetryConfig) -> ObjectStore:
    # Client options given here hide those of the environment; this one decides whether a server in-house can be used.
    plain = any(os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() == "true" for cloud in ("AWS", "AZURE", "GOOGLE"))
    options: ClientConfig = {**client, "allow_http": plain}
    with _errors_told("address"):
        return from_url(url, client_options=options, retry_config=retry)


def _key(digest: str) -> str:
    return f"sha256/{digest[:2]}/{digest}"


@contextmanager
def _fetching(blob: StoredBlob) -> Iterator[None]:
    with _errors_told("download"):
        try:
            yield
        except FileNotFoundError as error:
            raise BlobGone(blob) from error


@contextmanager
def _errors_told(what: str) -> Iterator[None]:
    """The provider's messages may hold addresses and names of keys: they stay in the log, as the cause."""
    try:
        yield
    except (BaseError, TimeoutError, ConnectionError) as error:
        raise StorageError(
            f"the storage of blobs does not answer as it should ({what}: {type(error).__name__})"
        ) from error
