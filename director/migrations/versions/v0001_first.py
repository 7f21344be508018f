"""Runs, rounds, submissions, invitations, identities."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of fedveil 0.1."""
    _runs()
    _rounds()
    _submissions()
    _people()


def downgrade() -> None:
    """Drop everything."""
    for table in ("identities", "invitations", "submissions", "rounds", "runs"):
        op.drop_table(table)


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(63), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("plan", sa.String(64), nullable=False),
        sa.Column("layout", sa.String(64), nullable=False),
        sa.Column("seed", sa.LargeBinary, nullable=False),
        sa.Column("submitted_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("bytes_up", sa.BigInteger, nullable=False),
        sa.Column("bytes_down", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_runs"),
        sa.UniqueConstraint("id", name="uq_runs_id"),
    )


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("run", sa.String(63), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("plan", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("cohort", sa.JSON, nullable=False),
        sa.Column("received", sa.JSON, nullable=False),
        sa.Column("declined", sa.JSON, nullable=False),
        sa.Column("lost", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("model_in", sa.String(64), nullable=False),
        sa.Column("model_out", sa.String(64)),
        sa.Column("optimizer_state", sa.String(64)),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("num_examples", sa.BigInteger, nullable=False),
        sa.Column("opened_at", sa.Double),
        sa.Column("closed_at", sa.Double),
        sa.PrimaryKeyConstraint("run", "number", "attempt", name="pk_rounds"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_rounds_run_runs"),
    )


def _submissions() -> None:
    op.create_table(
        "submissions",
        sa.Column("run", sa.String(63), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("envoy", sa.String(63), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("num_examples", sa.BigInteger),
        sa.Column("metrics", sa.JSON),
        sa.Column("spool", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run", "round", "attempt", "envoy", name="pk_submissions"),
        sa.ForeignKeyConstraint(
            ["run", "round", "attempt"],
            ["rounds.run", "rounds.number", "rounds.attempt"],
            name="fk_submissions_run_rounds",
        ),
    )


def _people() -> None:
    op.create_table(
        "invitations",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("used_by", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_invitations"),
        sa.UniqueConstraint("id", name="uq_invitations_id"),
    )
    op.create_index("ix_invitations_name", "invitations", ["name"])
    op.create_table(
        "identities",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("certificate_sha256", sa.String(64), nullable=False),
        sa.Column("identity_key", sa.LargeBinary, nullable=False),
        sa.Column("joined_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_identities"),
    )
