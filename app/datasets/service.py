"""Rules about datasets: what makes one, and when it may go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.orm import Session
from starlette.requests import Request

from app.datasets import repository
from app.datasets.errors import DatasetInUse, DatasetNotFound, FileChanged, FileMissing
from app.datasets.schemas import DatasetIn
from app.errors import summary
from app.examining.examiners import Examiners
from app.fetching import fetched
from app.storage_away import log_gone
from app.store.blobs import BlobGone, BlobStore, StoredBlob
from app.store.ids import new_dataset_id
from app.store.models import Dataset, UploadedFile
from app.store.ownership import Owner
from app.uploads import held
from app.uploads import repository as uploads
from cogram_core.errors import InvalidInput, Problem
from cogram_core.preflight import DatasetFacts


def gather(session: Session, owner: Owner, wanted: DatasetIn) -> UploadedFile:
    """The uploaded file that the request means; bytes that are here already become one."""
    blobs = wanted.blobs or {}
    problems = held.bring(session, owner, "dataset", wanted.name, blobs)
    if blobs and wanted.files:
        problems.append(Problem("files", FileMissing.code, "a dataset is one file; leave out files, or blobs"))
    if problems:
        raise FileMissing(summary(problems), errors=problems)
    uploaded = uploads.of_name(session, owner.tenant, "dataset", wanted.name)
    named = wanted.files or list(blobs)
    chosen = [file for file in uploaded if not named or file.path in named]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        paths = ", ".join(file.path for file in chosen)
        raise FileMissing.single("files", f"a dataset is one file, and there are several: {paths}; name one in files")
    missing = wanted.files[0] if wanted.files else "data.safetensors"
    raise FileMissing.single("files", f"not uploaded; PUT /v1/datasets/{wanted.name}/files/{missing} first")


async def examine(file: UploadedFile, blobs: BlobStore, examiners: Examiners, request: Request) -> DatasetFacts:
    """Has the dataset looked through.

    Raises:
        DatasetError: the core's, with all that is wrong, under the file's own path.
        FileMissing: when its bytes are no longer in the storage.
    """
    try:
        async with fetched(blobs.storage.whole(StoredBlob(file.digest, file.size))) as path:
            return await _facts(path, file, examiners, request)
    except BlobGone as error:
        log_gone(error)
        raise FileMissing.single("files", f"the stored bytes of {file.path!r} are gone; upload it again") from error


async def _facts(path: Path, file: UploadedFile, examiners: Examiners, request: Request) -> DatasetFacts:
    try:
        return await examiners.dataset(path, file.size, request)
    except InvalidInput as error:

        def renamed(text: str) -> str:
            # Where the blob lies is no name that the caller knows.
            return text.replace(str(path), file.path).replace(path.name, file.path)

        raise type(error)(Problem(renamed(p.location), p.code, renamed(p.message)) for p in error.problems) from error


def create(session: Session, owner: Owner, file: UploadedFile, facts: DatasetFacts) -> Dataset:
    """The new dataset; its file is no longer a loose upload."""
    if not uploads.take(session, file):
        raise FileChanged(f"{file.path!r} was replaced or used while it was read; ask again.")
    dataset = Dataset(
        id=new_dataset_id(),
        tenant=owner.tenant,
        owner=owner.account,
        name=file.name,
        digest=file.digest,
        path=file.path,
        size=file.size,
        examples=facts.examples,
        input_shape=list(facts.input_shape),
        target_min=facts.target_min,
        target_max=facts.target_max,
        loss=facts.loss,
        target_shape=list(facts.target_shape),
        token_min=facts.token_min,
        token_max=facts.token_max,
    )
    session.add(dataset)
    session.flush()
    return dataset


def get(session: Session, tenant: str, dataset_id: str) -> Dataset:
    """Raises DatasetNotFound without one."""
    return _existing(repository.get(session, tenant, dataset_id), dataset_id)


def page(session: Session, tenant: str, name: str | None, before: str | None, limit: int) -> Sequence[Dataset]:
    """Newest first."""
    return repository.page(session, tenant, name, before, limit)


def delete(session: Session, tenant: str, dataset_id: str) -> None:
    """Raises DatasetInUse while a fusion uses it."""
    dataset = _existing(repository.get_locked(session, tenant, dataset_id), dataset_id)
    users = repository.users(session, dataset_id)
    if users:
        raise DatasetInUse(f"Used by {', '.join(users)}; delete the fusions first.")
    session.delete(dataset)


def _existing(found: Dataset | None, dataset_id: str) -> Dataset:
    if found is None:
        raise DatasetNotFound(f"There is no dataset {dataset_id!r}. GET /v1/datasets lists them.")
    return found
