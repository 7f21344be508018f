"""What a secure sum leaves in the record of its round, whom a run expelled, what sites publish of privacy ledgers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Three columns more; rows from before have nothing in them."""
    op.add_column("runs", sa.Column("expelled", sa.JSON))
    op.add_column("rounds", sa.Column("secure_sum", sa.JSON))
    op.add_column("submissions", sa.Column("privacy", sa.JSON))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("submissions", "privacy")
    op.drop_column("rounds", "secure_sum")
    op.drop_column("runs", "expelled")
