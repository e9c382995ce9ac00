"""Bytes that a tenant has already: they need not come again. What other tenants have is as if it weren't there."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from app.store.blobs import StoredBlob, hold
from app.store.ownership import Owner
from app.uploads import repository
from app.uploads.errors import BlobNotHeld
from app.uploads.names import path_problem
from app.uploads.schemas import PREFIX
from app.uploads.service import Kind
from cogram_core.errors import Problem


def size(session: Session, tenant: str, digest: str) -> int:
    """How many bytes the tenant's blob has; raises BlobNotHeld without one."""
    found = repository.sizes_of_held(session, tenant, [digest])
    if digest not in found:
        raise not_held(digest)
    return found[digest]


def not_held(digest: str) -> BlobNotHeld:
    """The error for bytes that have to come first."""
    return BlobNotHeld(f"You have no bytes with sha256 {digest} here; upload them.")


def bring(session: Session, owner: Owner, kind: Kind, name: str, wanted: Mapping[str, str]) -> list[Problem]:
    """Puts held bytes under paths, as if they were uploaded just now; what is wrong with any of them.

    The rows are held first and looked up second: from then on no collector can take what they stand for.
    """
    digests = {path: reference.removeprefix(PREFIX) for path, reference in wanted.items()}
    there = hold(session, digests.values())
    sizes = repository.sizes_of_held(session, owner.tenant, sorted(there))
    problems = []
    for path, digest in sorted(digests.items()):
        if fault := path_problem(path, "blobs"):
            problems.append(fault)
        elif digest not in sizes:
            message = f"{path!r}: you have no bytes with sha256 {digest} here; upload the file"
            problems.append(Problem("blobs", BlobNotHeld.code, message))
        else:
            repository.put(session, owner, kind, name, path, StoredBlob(digest, sizes[digest]))
    return problems
