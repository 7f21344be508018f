"""Scores of leak tests, of the sites that publish theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column; nobody published one before."""
    op.add_column("submissions", sa.Column("leakage_score", sa.Double))


def downgrade() -> None:
    """Drop it: what was published is forgotten here."""
    op.drop_column("submissions", "leakage_score")
