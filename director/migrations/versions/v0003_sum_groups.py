"""The groups of sites whose secure sums a run makes apart."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One column more; runs from before have no groups."""
    op.add_column("runs", sa.Column("sum_groups", sa.JSON))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("runs", "sum_groups")
