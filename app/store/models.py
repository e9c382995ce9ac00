"""The tables. The database is the truth about every fusion; the queue carries only its id."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, ForeignKey, Index, Integer, MetaData, String, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from app.store.states import FusionState
from cogram_core.preflight import LossKind


def utc_now() -> datetime:
    """The present, with its zone."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets zones, so they are taken off on the way in and put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Zone-less UTC for SQLite, untouched elsewhere."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Always with a zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class StateName(TypeDecorator[FusionState]):
    """A fusion's state: a string in the table, a ``FusionState`` in Python."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: FusionState | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Its plain name."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> FusionState | None:  # noqa: ARG002
        """The member; an unknown name is an error."""
        return None if value is None else FusionState(value)


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can drop it again."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime(),
        FusionState: StateName(),
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(),
        list[int]: JSON(),
    }


# SQLite gives rising row ids only to a column of type INTEGER.
_RowId = BigInteger().with_variant(Integer(), "sqlite")


class Blob(Base):
    """One stored content, by its sha256 in hex."""

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class UploadedFile(Base):
    """A file uploaded under a name, not yet part of a checkpoint or dataset; a second PUT replaces it."""

    __tablename__ = "uploaded_files"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # checkpoint | dataset
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"))
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Checkpoint(Base):
    """The tensors of one trained network, one or more safetensors files, with its config."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), index=True)
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
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"))
    size: Mapped[int] = mapped_column(BigInteger)


class Dataset(Base):
    """Data of any use: one safetensors file with inputs and targets, or with tokens and labels."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), index=True)
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"))
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


class Fusion(Base):
    """One fusion job. ``attempt`` is the fencing token of the worker that holds the lease."""

    __tablename__ = "fusions"
    __table_args__ = (Index("ix_fusions_state_lease", "state", "lease_until"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    state: Mapped[FusionState] = mapped_column(default=FusionState.QUEUED)
    recipe: Mapped[dict[str, Any]]  # as posted, defaults filled in, references resolved to ids
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    losses: Mapped[int] = mapped_column(Integer, default=0)  # attempts whose worker fell silent; not graceful stops
    worker: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]
    verdict: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]  # {"code", "detail", "errors": [{"location", "code", "message"}]}
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]  # of the first attempt
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)
    artifacts: Mapped[list[Artifact]] = relationship(lazy="selectin", order_by="Artifact.path")


class FusionInput(Base):
    """A checkpoint or dataset that a fusion uses: what may not be deleted while the fusion is there."""

    __tablename__ = "fusion_inputs"

    fusion_id: Mapped[str] = mapped_column(ForeignKey("fusions.id"), primary_key=True)
    reference: Mapped[str] = mapped_column(String(40), primary_key=True)  # ckpt_… or data_…


class Artifact(Base):
    """A file that a fusion produced."""

    __tablename__ = "artifacts"

    fusion_id: Mapped[str] = mapped_column(ForeignKey("fusions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"))
    size: Mapped[int] = mapped_column(BigInteger)


class Event(Base):
    """One thing that happened to a fusion, in order; what the event stream reads."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_fusion_id_id", "fusion_id", "id"),)

    id: Mapped[int] = mapped_column(_RowId, primary_key=True, autoincrement=True)
    fusion_id: Mapped[str] = mapped_column(ForeignKey("fusions.id"))
    attempt: Mapped[int] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class OutboxMessage(Base):
    """A job id to publish, written in the transaction that made the job claimable, gone once it is not."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(_RowId, primary_key=True, autoincrement=True)
    fusion_id: Mapped[str] = mapped_column(ForeignKey("fusions.id"), index=True)
    queue: Mapped[str] = mapped_column(String(32))
    published_at: Mapped[datetime | None] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
