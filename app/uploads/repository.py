"""Every select and write on uploaded files."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, union_all
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from app.store.blobs import StoredBlob
from app.store.models import (
    Artifact,
    Checkpoint,
    CheckpointFile,
    Dataset,
    Fusion,
    UploadedFile,
    utc_now,
)
from app.store.ownership import Owner
from app.store.upserts import insert

_BATCH = 500


def put(session: Session, owner: Owner, kind: str, name: str, path: str, stored: StoredBlob) -> None:
    """Inserts or replaces; two uploads to one path may end at the same moment."""
    content = {"digest": stored.digest, "size": stored.size, "owner": owner.account, "created_at": utc_now()}
    statement = insert(session, UploadedFile).values(tenant=owner.tenant, kind=kind, name=name, path=path, **content)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[UploadedFile.tenant, UploadedFile.kind, UploadedFile.name, UploadedFile.path], set_=content
        )
    )


def get(session: Session, tenant: str, kind: str, name: str, path: str) -> UploadedFile | None:
    """The file uploaded under a name and path and not yet used."""
    return session.get(UploadedFile, (tenant, kind, name, path))


def of_name(session: Session, tenant: str, kind: str, name: str) -> Sequence[UploadedFile]:
    """The files uploaded under a name and not yet used, by path."""
    chosen = select(UploadedFile).where(
        UploadedFile.tenant == tenant, UploadedFile.kind == kind, UploadedFile.name == name
    )
    return session.scalars(chosen.order_by(UploadedFile.path)).all()


def sizes_of_held(session: Session, tenant: str, digests: Sequence[str]) -> dict[str, int]:
    """Which of the blobs the tenant has in any of its things, with their sizes."""
    found: dict[str, int] = {}
    for begin in range(0, len(digests), _BATCH):
        some = digests[begin : begin + _BATCH]
        of_checkpoints = select(CheckpointFile.digest, CheckpointFile.size).join(Checkpoint)
        of_fusions = select(Artifact.digest, Artifact.size).join(Fusion)
        everywhere = union_all(
            select(UploadedFile.digest, UploadedFile.size).where(
                UploadedFile.tenant == tenant, UploadedFile.digest.in_(some)
            ),
            of_checkpoints.where(Checkpoint.tenant == tenant, CheckpointFile.digest.in_(some)),
            select(Dataset.digest, Dataset.size).where(Dataset.tenant == tenant, Dataset.digest.in_(some)),
            of_fusions.where(Fusion.tenant == tenant, Artifact.digest.in_(some)),
        )
        found.update((digest, size) for digest, size in session.execute(everywhere))
    return found


def take(session: Session, file: UploadedFile) -> bool:
    """Removes the row, if it still stands for the same bytes; False when it was replaced or taken meanwhile."""
    result = session.execute(
        delete(UploadedFile).where(
            UploadedFile.tenant == file.tenant,
            UploadedFile.kind == file.kind,
            UploadedFile.name == file.name,
            UploadedFile.path == file.path,
            UploadedFile.digest == file.digest,
        )
    )
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
