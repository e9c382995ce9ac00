"""Datasets of values and of tokens, beside those of classes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        table.alter_column("target_min", existing_type=sa.BigInteger(), nullable=True)
        table.alter_column("target_max", existing_type=sa.BigInteger(), nullable=True)
        # What was there before are classes.
        table.add_column(sa.Column("loss", sa.String(length=32), nullable=False, server_default="cross_entropy"))
        table.add_column(sa.Column("target_shape", sa.JSON(), nullable=False, server_default="[]"))
        table.add_column(sa.Column("token_min", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("token_max", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("datasets") as table:
        table.alter_column("loss", existing_type=sa.String(length=32), server_default=None)
        table.alter_column("target_shape", existing_type=sa.JSON(), server_default=None)


def downgrade() -> None:
    op.execute("DELETE FROM datasets WHERE loss <> 'cross_entropy'")  # which the older tables can't hold
    with op.batch_alter_table("datasets") as table:
        for column in ("token_max", "token_min", "target_shape", "loss"):
            table.drop_column(column)
        table.alter_column("target_max", existing_type=sa.BigInteger(), nullable=False)
        table.alter_column("target_min", existing_type=sa.BigInteger(), nullable=False)
