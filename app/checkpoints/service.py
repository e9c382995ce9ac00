"""Rules about checkpoints: what makes one, and when it may go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sqlalchemy.orm import Session
from starlette.requests import Request

from app.checkpoints import repository
from app.checkpoints.errors import CheckpointInUse, CheckpointNotFound, FilesChanged, FilesMissing, PathsConflict
from app.checkpoints.schemas import CheckpointIn
from app.errors import summary
from app.examining.examiners import CheckpointFacts, Examiners, TensorFacts
from app.fetching import fetched
from app.storage_away import log_gone
from app.store.blobs import BlobGone, BlobStore, StoredBlob
from app.store.ids import new_checkpoint_id
from app.store.models import Checkpoint, CheckpointFile, UploadedFile
from app.store.ownership import Owner
from app.uploads import held
from app.uploads import repository as uploads
from cogram_core.errors import Problem


@dataclass(frozen=True)
class Candidate:
    """Uploaded files that may become a checkpoint."""

    name: str
    files: tuple[UploadedFile, ...]


def gather(session: Session, owner: Owner, wanted: CheckpointIn) -> Candidate:
    """The uploaded files that the request names; bytes that are here already become some.

    Raises:
        FilesMissing: listing every file that is not there.
        PathsConflict: when a path is a file and a folder at once, which no worker could lay out.
    """
    blobs = wanted.blobs or {}
    problems = held.bring(session, owner, "checkpoint", wanted.name, blobs)
    uploaded = {file.path: file for file in uploads.of_name(session, owner.tenant, "checkpoint", wanted.name)}
    all_uploaded = wanted.files is None and wanted.blobs is None
    paths = sorted(uploaded) if all_uploaded else sorted({*(wanted.files or ()), *blobs})
    if not paths:
        remedy = f"PUT /v1/checkpoints/{wanted.name}/files/model.safetensors first"
        raise FilesMissing.single("name", f"no file was uploaded under the name {wanted.name!r}; {remedy}")
    problems += [
        Problem("blobs", FilesMissing.code, f"{path!r} is in files and in blobs; name it in one of them")
        for path in sorted(set(wanted.files or ()) & set(blobs))
    ]
    problems += [
        Problem("files", FilesMissing.code, f"{path!r} was not uploaded under the name {wanted.name!r}; PUT it first")
        for path in paths
        if path not in uploaded and path not in blobs
    ]
    if problems:
        raise FilesMissing(summary(problems), errors=problems)
    _check_folders(paths)
    return Candidate(wanted.name, tuple(uploaded[path] for path in paths))


def _check_folders(paths: Sequence[str]) -> None:
    folders = {str(folder): path for path in paths for folder in PurePosixPath(path).parents}
    both = [
        Problem(
            "files",
            PathsConflict.code,
            f"{path!r} is a file and a folder at once, as there is {folders[path]!r}; list the ones you want in files",
        )
        for path in paths
        if path in folders
    ]
    if both:
        raise PathsConflict(str(both[0]), errors=both)


async def examine(candidate: Candidate, blobs: BlobStore, examiners: Examiners, request: Request) -> CheckpointFacts:
    """Has the headers read.

    Raises:
        CheckpointError: the core's, with all that is wrong.
        FilesMissing: when a file's bytes are no longer in the storage.
    """
    try:
        async with fetched(blobs.storage.headers(contents(candidate.files))) as paths:
            return await examiners.checkpoint(paths, request)
    except BlobGone as error:
        log_gone(error)
        lost = ", ".join(repr(file.path) for file in candidate.files if file.digest == error.blob.digest)
        raise FilesMissing.single("files", f"the stored bytes of {lost} are gone; upload them again") from error


def create(session: Session, owner: Owner, candidate: Candidate, facts: CheckpointFacts) -> Checkpoint:
    """The new checkpoint; its files are no longer loose uploads.

    Raises:
        FilesChanged: when a file was replaced since it was examined.
    """
    for file in candidate.files:
        if not uploads.take(session, file):
            raise FilesChanged(f"{file.path!r} was replaced or used while its header was read; ask again.")
    checkpoint = Checkpoint(
        id=new_checkpoint_id(),
        tenant=owner.tenant,
        owner=owner.account,
        name=candidate.name,
        sha256=combined_digest({file.path: file.digest for file in candidate.files}),
        tensors=facts.tensors,
        parameters=facts.parameters,
        dtypes=facts.dtypes,
        network_kind=facts.network_kind,
        files=[CheckpointFile(path=file.path, digest=file.digest, size=file.size) for file in candidate.files],
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint


def combined_digest(files: Mapping[str, str]) -> str:
    """One sha256 for a set of files: over lines as ``sha256sum`` prints them, sorted by path."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def contents(files: Iterable[UploadedFile | CheckpointFile]) -> dict[str, StoredBlob]:
    """The blob of each file, by the file's path in the checkpoint."""
    return {file.path: StoredBlob(file.digest, file.size) for file in files}


def get(session: Session, tenant: str, checkpoint_id: str) -> Checkpoint:
    """Raises CheckpointNotFound without one."""
    return _existing(repository.get(session, tenant, checkpoint_id), checkpoint_id)


def page(session: Session, tenant: str, name: str | None, before: str | None, limit: int) -> Sequence[Checkpoint]:
    """Newest first."""
    return repository.page(session, tenant, name, before, limit)


async def tensors(
    checkpoint: Checkpoint, blobs: BlobStore, examiners: Examiners, start: int, limit: int, request: Request
) -> Sequence[TensorFacts]:
    """Tensors by name from place ``start``."""
    async with fetched(blobs.storage.headers(contents(checkpoint.files))) as paths:
        return await examiners.tensors(paths, start, limit, request)


def delete(session: Session, tenant: str, checkpoint_id: str) -> None:
    """Raises CheckpointInUse while a fusion uses it."""
    checkpoint = _existing(repository.get_locked(session, tenant, checkpoint_id), checkpoint_id)
    users = repository.users(session, checkpoint_id)
    if users:
        raise CheckpointInUse(f"Used by {', '.join(users)}; delete the fusions first.")
    repository.delete(session, checkpoint)


def _existing(found: Checkpoint | None, checkpoint_id: str) -> Checkpoint:
    if found is None:
        raise CheckpointNotFound(f"There is no checkpoint {checkpoint_id!r}. GET /v1/checkpoints lists them.")
    return found
