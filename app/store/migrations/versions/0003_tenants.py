"""Accounts and tenants, resumable uploads, idempotent calls, webhooks; what was there before is the local caller's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_OWNED = ("checkpoints", "datasets", "fusions")
_LOCAL = {"tenant": "default", "owner": "local"}
_REFERRING = ("uploaded_files", "checkpoint_files", "datasets", "artifacts")


def upgrade() -> None:
    for table in _OWNED:
        _add_owner(table)
    _index_owners()
    _own_uploaded_files()
    with op.batch_alter_table("blobs") as blobs:
        blobs.add_column(sa.Column("touched_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE blobs SET touched_at = created_at")
    with op.batch_alter_table("blobs") as blobs:
        blobs.alter_column("touched_at", existing_type=sa.DateTime(timezone=True), nullable=False)
    with op.batch_alter_table("fusions") as fusions:
        fusions.add_column(sa.Column("retry_of", sa.String(length=40), nullable=True))
        fusions.add_column(sa.Column("request_id", sa.String(length=128), nullable=True))
        fusions.add_column(sa.Column("traceparent", sa.String(length=64), nullable=True))
    for table in _REFERRING:
        op.create_index(f"ix_{table}_digest", table, ["digest"])
    _uploads()
    _access()
    _webhooks()


def downgrade() -> None:
    for table in ("deliveries", "webhooks", "idempotent_calls", "accounts", "uploads"):
        op.drop_table(table)
    for table in _REFERRING:
        op.drop_index(f"ix_{table}_digest", table)
    with op.batch_alter_table("fusions") as fusions:
        for column in ("traceparent", "request_id", "retry_of"):
            fusions.drop_column(column)
    with op.batch_alter_table("blobs") as blobs:
        blobs.drop_column("touched_at")
    op.drop_index("ix_uploaded_files_owner", "uploaded_files")
    op.execute("DELETE FROM uploaded_files WHERE tenant <> 'default'")  # the older key has no room for tenants
    with op.batch_alter_table("uploaded_files") as files:
        files.drop_constraint("pk_uploaded_files", type_="primary")
        files.drop_column("owner")
        files.drop_column("tenant")
        files.create_primary_key("pk_uploaded_files", ["kind", "name", "path"])
    op.drop_index("ix_fusions_tenant_id", "fusions")
    op.drop_index("ix_fusions_owner_state", "fusions")
    for table in ("checkpoints", "datasets"):
        op.drop_index(f"ix_{table}_owner", table)
        op.drop_index(f"ix_{table}_tenant_name", table)
        op.create_index(f"ix_{table}_name", table, ["name"])
    for table in _OWNED:
        with op.batch_alter_table(table) as owned:
            owned.drop_column("owner")
            owned.drop_column("tenant")


def _add_owner(table: str) -> None:
    with op.batch_alter_table(table) as owned:
        for column, value in _LOCAL.items():
            owned.add_column(sa.Column(column, sa.String(length=64), nullable=False, server_default=value))
    with op.batch_alter_table(table) as owned:
        for column in _LOCAL:
            owned.alter_column(column, existing_type=sa.String(length=64), server_default=None)


def _index_owners() -> None:
    for table in ("checkpoints", "datasets"):
        op.drop_index(f"ix_{table}_name", table)
        op.create_index(f"ix_{table}_tenant_name", table, ["tenant", "name"])
        op.create_index(f"ix_{table}_owner", table, ["owner"])
    op.create_index("ix_fusions_tenant_id", "fusions", ["tenant", "id"])
    op.create_index("ix_fusions_owner_state", "fusions", ["owner", "state"])


def _own_uploaded_files() -> None:
    _add_owner("uploaded_files")
    with op.batch_alter_table("uploaded_files") as files:
        files.drop_constraint("pk_uploaded_files", type_="primary")
        files.create_primary_key("pk_uploaded_files", ["tenant", "kind", "name", "path"])
    op.create_index("ix_uploaded_files_owner", "uploaded_files", ["owner"])


def _uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("metadata_header", sa.String(length=4096), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])
    op.create_index("ix_uploads_owner", "uploads", ["owner"])


def _access() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=True),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("quota_bytes", sa.BigInteger(), nullable=True),
        sa.Column("quota_jobs", sa.Integer(), nullable=True),
        sa.Column("quota_concurrent", sa.Integer(), nullable=True),
        sa.Column("requests_per_second", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
        sa.UniqueConstraint("secret_hash", name="uq_accounts_secret_hash"),
    )
    op.create_index("ix_accounts_tenant", "accounts", ["tenant"])
    op.create_table(
        "idempotent_calls",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("call", sa.String(length=255), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name="pk_idempotent_calls"),
    )
    op.create_index("ix_idempotent_calls_created_at", "idempotent_calls", ["created_at"])


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("secret", sa.String(length=128), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("previous_secret", sa.String(length=128), nullable=True),
        sa.Column("previous_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.String(length=16), nullable=True),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
    )
    op.create_index("ix_webhooks_tenant_id", "webhooks", ["tenant", "id"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("webhook_id", sa.String(length=40), nullable=False),
        sa.Column("fusion_id", sa.String(length=40), nullable=True),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("round_began", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.String(length=512), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name="fk_deliveries_webhook_id_webhooks"),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
    )
    op.create_index("ix_deliveries_fusion_id", "deliveries", ["fusion_id"])
    op.create_index("ix_deliveries_webhook_id_id", "deliveries", ["webhook_id", "id"])
    op.create_index("ix_deliveries_state_due_at", "deliveries", ["state", "due_at"])
