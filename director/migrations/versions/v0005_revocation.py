"""Certificates that were issued, and members that were revoked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two tables and a column. Certificates issued before are not known, which matters to revoked names alone."""
    op.create_table(
        "certificates",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("issued_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
        sa.PrimaryKeyConstraint("sha256", name="pk_certificates"),
    )
    op.create_index("ix_certificates_name", "certificates", ["name"])
    op.create_table(
        "revocations",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("revoked_at", sa.Double, nullable=False),
        sa.Column("lifted_at", sa.Double),
        sa.PrimaryKeyConstraint("number", name="pk_revocations"),
    )
    op.create_index("ix_revocations_name", "revocations", ["name"])
    op.add_column("invitations", sa.Column("revoked_at", sa.Double))


def downgrade() -> None:
    """Drop them: whoever was revoked is good again."""
    op.drop_column("invitations", "revoked_at")
    op.drop_table("revocations")
    op.drop_table("certificates")
