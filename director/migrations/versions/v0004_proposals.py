"""What a run's sites are asked to approve, and the changes to a run between its rounds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Runs from before have no proposal and no patches."""
    op.add_column("runs", sa.Column("proposal", sa.LargeBinary))
    op.add_column("runs", sa.Column("proposal_signature", sa.LargeBinary))
    op.add_column("runs", sa.Column("proposal_chain", sa.LargeBinary))
    op.add_column("rounds", sa.Column("patches", sa.Integer))
    op.create_table(
        "patches",
        sa.Column("run", sa.String(63), sa.ForeignKey("runs.id", name="fk_patches_run_runs"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("chain", sa.LargeBinary, nullable=False),
        sa.Column("taken_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run", "number", name="pk_patches"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("patches")
    op.drop_column("rounds", "patches")
    for name in ("proposal", "proposal_signature", "proposal_chain"):
        op.drop_column("runs", name)
