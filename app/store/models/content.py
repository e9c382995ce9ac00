"""Bytes, and what is made of them: blobs, files on their way in, checkpoints, datasets."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.store.models.base import Base, Owned, utc_now
from cogram_core.preflight import LossKind


class Blob(Base):
    """One stored content, by its sha256 in hex."""

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    touched_at: Mapped[datetime] = mapped_column(default=utc_now)  # last announced; the collector leaves young ones


class Upload(Owned, Base):
    """A resumable upload (tus) under way, or one that has ended and become an uploaded file."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_owner", "owner"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))  # checkpoint | dataset
    name: Mapped[str] = mapped_column(String(128))
    path: Mapped[str] = mapped_column(String(512))
    length: Mapped[int] = mapped_column(BigInteger)  # bytes announced
    metadata_header: Mapped[str] = mapped_column(String(4096))  # as it came, for HEAD
    digest: Mapped[str | None] = mapped_column(String(64))  # sha256 in hex, once all bytes are there
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class UploadedFile(Owned, Base):
    """A file uploaded under a name, not yet part of a checkpoint or dataset; a second one replaces it."""

    __tablename__ = "uploaded_files"
    __table_args__ = (Index("ix_uploaded_files_owner", "owner"),)

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # checkpoint | dataset
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Checkpoint(Owned, Base):
    """The tensors of one trained network, one or more safetensors files, with its config."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_tenant_name", "tenant", "name"), Index("ix_checkpoints_owner", "owner"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(String(64))  # over the sorted lines "digest  path"
    tensors: Mapped[int] = mapped_column(BigInteger)
    parameters: Mapped[int] = mapped_column(BigInteger)
    dtypes: Mapped[list[str]]
    network_kind: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    files: Mapped[list[CheckpointFile]] = relationship(lazy="selectin", order_by="CheckpointFile.path")


class CheckpointFile(Base):
    """One file of a checkpoint."""

    __tablename__ = "checkpoint_files"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    size: Mapped[int] = mapped_column(BigInteger)


class Dataset(Owned, Base):
    """Data of any use: one safetensors file with inputs and targets, or with tokens and labels."""

    __tablename__ = "datasets"
    __table_args__ = (Index("ix_datasets_tenant_name", "tenant", "name"), Index("ix_datasets_owner", "owner"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    path: Mapped[str] = mapped_column(String(512))
    size: Mapped[int] = mapped_column(BigInteger)
    examples: Mapped[int] = mapped_column(BigInteger)
    input_shape: Mapped[list[int]]  # of one example
    target_min: Mapped[int | None] = mapped_column(BigInteger)  # none for values
    target_max: Mapped[int | None] = mapped_column(BigInteger)
    loss: Mapped[LossKind] = mapped_column(String(32))
    target_shape: Mapped[list[int]]  # of one example
    token_min: Mapped[int | None] = mapped_column(BigInteger)  # none for inputs that are no token ids
    token_max: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
