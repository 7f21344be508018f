"""Organizations, users, collaborations, agreements, models: what the hub keeps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tables of their own; what there was stays as it was."""
    op.create_table(
        "fairness",
        sa.Column("run", sa.String(length=63), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("envoy", sa.String(length=63), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run", "round", "attempt"],
            ["rounds.run", "rounds.number", "rounds.attempt"],
            name=op.f("fk_fairness_run_rounds"),
        ),
        sa.PrimaryKeyConstraint("run", "round", "attempt", "envoy", name=op.f("pk_fairness")),
    )
    op.create_table(
        "hub_collaborations",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("permit_number", sa.String(length=200), nullable=False),
        sa.Column("permit_authority", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.Double(), nullable=False),
        sa.Column("ends_at", sa.Double(), nullable=False),
        sa.Column("datasets", sa.JSON(), nullable=False),
        sa.Column("organizations", sa.JSON(), nullable=False),
        sa.Column("reviews_needed", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_collaborations")),
        sa.UniqueConstraint("name", name=op.f("uq_hub_collaborations_name")),
    )
    op.create_table(
        "hub_strangers",
        sa.Column("name_sha256", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name_sha256", name=op.f("pk_hub_strangers")),
    )
    op.create_index(op.f("ix_hub_strangers_failed_at"), "hub_strangers", ["failed_at"], unique=False)
    op.create_table(
        "hub_idempotency",
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("user", "key", name=op.f("pk_hub_idempotency")),
    )
    op.create_table(
        "hub_organizations",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("contact", sa.Text(), nullable=False),
        sa.Column("data_protection_officer", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("encryption_key", sa.LargeBinary(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_organizations")),
        sa.UniqueConstraint("name", name=op.f("uq_hub_organizations_name")),
    )
    op.create_table(
        "hub_agreements",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("document", sa.String(length=64), nullable=False),
        sa.Column("parties", sa.JSON(), nullable=False),
        sa.Column("collaboration", sa.String(length=32), nullable=True),
        sa.Column("valid_from", sa.Double(), nullable=False),
        sa.Column("valid_until", sa.Double(), nullable=True),
        sa.Column("may_start_tasks", sa.JSON(), nullable=False),
        sa.Column("may_publish", sa.JSON(), nullable=False),
        sa.Column("intellectual_property", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collaboration"],
            ["hub_collaborations.id"],
            name=op.f("fk_hub_agreements_collaboration_hub_collaborations"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_agreements")),
    )
    op.create_index(op.f("ix_hub_agreements_collaboration"), "hub_agreements", ["collaboration"], unique=False)
    op.create_table(
        "hub_collaboration_parties",
        sa.Column("collaboration", sa.String(length=32), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["collaboration"],
            ["hub_collaborations.id"],
            name=op.f("fk_hub_collaboration_parties_collaboration_hub_collaborations"),
        ),
        sa.ForeignKeyConstraint(
            ["organization"],
            ["hub_organizations.id"],
            name=op.f("fk_hub_collaboration_parties_organization_hub_organizations"),
        ),
        sa.PrimaryKeyConstraint("collaboration", "organization", name=op.f("pk_hub_collaboration_parties")),
    )
    op.create_index(
        op.f("ix_hub_collaboration_parties_organization"), "hub_collaboration_parties", ["organization"], unique=False
    )
    op.create_table(
        "hub_envoys",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("added_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization"], ["hub_organizations.id"], name=op.f("fk_hub_envoys_organization_hub_organizations")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hub_envoys")),
    )
    op.create_index(op.f("ix_hub_envoys_organization"), "hub_envoys", ["organization"], unique=False)
    op.create_table(
        "hub_site_words",
        sa.Column("envoy", sa.String(length=63), nullable=False),
        sa.Column("approved", sa.JSON(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("said_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["envoy"], ["hub_envoys.name"], name=op.f("fk_hub_site_words_envoy_hub_envoys")),
        sa.PrimaryKeyConstraint("envoy", name=op.f("pk_hub_site_words")),
    )
    op.create_table(
        "hub_roles",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization"], ["hub_organizations.id"], name=op.f("fk_hub_roles_organization_hub_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_roles")),
        sa.UniqueConstraint("organization", "name", name=op.f("uq_hub_roles_organization")),
    )
    op.create_table(
        "hub_users",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("full_name", sa.Text(), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("totp_secret", sa.LargeBinary(), nullable=True),
        sa.Column("totp_step", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failed_at", sa.Double(), nullable=False),
        sa.Column("disabled_at", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization"], ["hub_organizations.id"], name=op.f("fk_hub_users_organization_hub_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_users")),
        sa.UniqueConstraint("name", name=op.f("uq_hub_users_name")),
        sa.UniqueConstraint("subject", name=op.f("uq_hub_users_subject")),
    )
    op.create_index(op.f("ix_hub_users_organization"), "hub_users", ["organization"], unique=False)
    op.create_table(
        "hub_agreement_signatures",
        sa.Column("agreement", sa.String(length=32), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("by", sa.String(length=32), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agreement"], ["hub_agreements.id"], name=op.f("fk_hub_agreement_signatures_agreement_hub_agreements")
        ),
        sa.ForeignKeyConstraint(["by"], ["hub_users.id"], name=op.f("fk_hub_agreement_signatures_by_hub_users")),
        sa.ForeignKeyConstraint(
            ["organization"],
            ["hub_organizations.id"],
            name=op.f("fk_hub_agreement_signatures_organization_hub_organizations"),
        ),
        sa.PrimaryKeyConstraint("agreement", "organization", name=op.f("pk_hub_agreement_signatures")),
    )
    op.create_table(
        "hub_api_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["user"], ["hub_users.id"], name=op.f("fk_hub_api_keys_user_hub_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_api_keys")),
    )
    op.create_index(op.f("ix_hub_api_keys_user"), "hub_api_keys", ["user"], unique=False)
    op.create_table(
        "hub_datasets",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("envoy", sa.String(length=63), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("modality", sa.String(length=63), nullable=False),
        sa.Column("columns", sa.JSON(), nullable=False),
        sa.Column("examples", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("withdrawn_at", sa.Double(), nullable=True),
        sa.Column("withdrawn_why", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["envoy"], ["hub_envoys.name"], name=op.f("fk_hub_datasets_envoy_hub_envoys")),
        sa.ForeignKeyConstraint(
            ["organization"], ["hub_organizations.id"], name=op.f("fk_hub_datasets_organization_hub_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_datasets")),
        sa.UniqueConstraint("envoy", "name", name=op.f("uq_hub_datasets_envoy")),
    )
    op.create_index(op.f("ix_hub_datasets_organization"), "hub_datasets", ["organization"], unique=False)
    op.create_table(
        "hub_models",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("semver", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("run", sa.String(length=63), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("collaboration", sa.String(length=32), nullable=False),
        sa.Column("card", sa.JSON(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("is_published", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collaboration"], ["hub_collaborations.id"], name=op.f("fk_hub_models_collaboration_hub_collaborations")
        ),
        sa.ForeignKeyConstraint(
            ["organization"], ["hub_organizations.id"], name=op.f("fk_hub_models_organization_hub_organizations")
        ),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_hub_models_run_runs")),
        sa.ForeignKeyConstraint(["user"], ["hub_users.id"], name=op.f("fk_hub_models_user_hub_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_models")),
        sa.UniqueConstraint("name", "semver", name=op.f("uq_hub_models_name")),
    )
    op.create_index(op.f("ix_hub_models_collaboration"), "hub_models", ["collaboration"], unique=False)
    op.create_index(op.f("ix_hub_models_digest"), "hub_models", ["digest"], unique=False)
    op.create_index(op.f("ix_hub_models_run"), "hub_models", ["run"], unique=False)
    op.create_table(
        "hub_sessions",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["hub_users.id"], name=op.f("fk_hub_sessions_user_hub_users")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_hub_sessions")),
    )
    op.create_index(op.f("ix_hub_sessions_user"), "hub_sessions", ["user"], unique=False)
    op.create_table(
        "hub_tasks",
        sa.Column("run", sa.String(length=63), nullable=False),
        sa.Column("collaboration", sa.String(length=32), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("processing", sa.String(length=32), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collaboration"], ["hub_collaborations.id"], name=op.f("fk_hub_tasks_collaboration_hub_collaborations")
        ),
        sa.ForeignKeyConstraint(
            ["organization"], ["hub_organizations.id"], name=op.f("fk_hub_tasks_organization_hub_organizations")
        ),
        sa.ForeignKeyConstraint(
            ["processing"], ["hub_agreements.id"], name=op.f("fk_hub_tasks_processing_hub_agreements")
        ),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_hub_tasks_run_runs")),
        sa.ForeignKeyConstraint(["user"], ["hub_users.id"], name=op.f("fk_hub_tasks_user_hub_users")),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_hub_tasks")),
    )
    op.create_index(op.f("ix_hub_tasks_collaboration"), "hub_tasks", ["collaboration"], unique=False)
    op.create_table(
        "hub_plans",
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization"], ["hub_organizations.id"], name=op.f("fk_hub_plans_organization_hub_organizations")
        ),
        sa.ForeignKeyConstraint(["user"], ["hub_users.id"], name=op.f("fk_hub_plans_user_hub_users")),
        sa.PrimaryKeyConstraint("plan", "user", name=op.f("pk_hub_plans")),
    )
    op.create_table(
        "hub_shown_plans",
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("collaboration", sa.String(length=32), nullable=False),
        sa.Column("shown_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collaboration"],
            ["hub_collaborations.id"],
            name=op.f("fk_hub_shown_plans_collaboration_hub_collaborations"),
        ),
        sa.PrimaryKeyConstraint("plan", "collaboration", name=op.f("pk_hub_shown_plans")),
    )
    op.create_table(
        "hub_remarks",
        sa.Column("subject", sa.String(length=8), nullable=False),
        sa.Column("about", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("organization", sa.String(length=32), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("answers", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization"], ["hub_organizations.id"], name=op.f("fk_hub_remarks_organization_hub_organizations")
        ),
        sa.ForeignKeyConstraint(["user"], ["hub_users.id"], name=op.f("fk_hub_remarks_user_hub_users")),
        sa.PrimaryKeyConstraint("subject", "about", "number", name=op.f("pk_hub_remarks")),
    )
    op.create_index(
        "ix_hub_remarks_verdict", "hub_remarks", ["subject", "about", "verdict", "user", "number"], unique=False
    )
    op.create_table(
        "hub_user_roles",
        sa.Column("user", sa.String(length=32), nullable=False),
        sa.Column("role", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["hub_users.id"], name=op.f("fk_hub_user_roles_user_hub_users")),
        sa.PrimaryKeyConstraint("user", "role", name=op.f("pk_hub_user_roles")),
    )
    op.create_table(
        "hub_model_datasets",
        sa.Column("model", sa.String(length=32), nullable=False),
        sa.Column("dataset", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset"], ["hub_datasets.id"], name=op.f("fk_hub_model_datasets_dataset_hub_datasets")
        ),
        sa.ForeignKeyConstraint(["model"], ["hub_models.id"], name=op.f("fk_hub_model_datasets_model_hub_models")),
        sa.PrimaryKeyConstraint("model", "dataset", name=op.f("pk_hub_model_datasets")),
    )
    op.create_index(op.f("ix_hub_model_datasets_dataset"), "hub_model_datasets", ["dataset"], unique=False)


def downgrade() -> None:
    """Drop them: organizations, users and models' versions are forgotten."""
    op.drop_index(op.f("ix_hub_model_datasets_dataset"), table_name="hub_model_datasets")
    op.drop_table("hub_model_datasets")
    op.drop_table("hub_user_roles")
    op.drop_index("ix_hub_remarks_verdict", table_name="hub_remarks")
    op.drop_table("hub_remarks")
    op.drop_table("hub_shown_plans")
    op.drop_table("hub_plans")
    op.drop_index(op.f("ix_hub_tasks_collaboration"), table_name="hub_tasks")
    op.drop_table("hub_tasks")
    op.drop_index(op.f("ix_hub_strangers_failed_at"), table_name="hub_strangers")
    op.drop_table("hub_strangers")
    op.drop_index(op.f("ix_hub_sessions_user"), table_name="hub_sessions")
    op.drop_table("hub_sessions")
    op.drop_index(op.f("ix_hub_models_run"), table_name="hub_models")
    op.drop_index(op.f("ix_hub_models_digest"), table_name="hub_models")
    op.drop_index(op.f("ix_hub_models_collaboration"), table_name="hub_models")
    op.drop_table("hub_models")
    op.drop_index(op.f("ix_hub_datasets_organization"), table_name="hub_datasets")
    op.drop_table("hub_datasets")
    op.drop_index(op.f("ix_hub_api_keys_user"), table_name="hub_api_keys")
    op.drop_table("hub_api_keys")
    op.drop_table("hub_agreement_signatures")
    op.drop_index(op.f("ix_hub_users_organization"), table_name="hub_users")
    op.drop_table("hub_users")
    op.drop_table("hub_roles")
    op.drop_table("hub_site_words")
    op.drop_index(op.f("ix_hub_envoys_organization"), table_name="hub_envoys")
    op.drop_table("hub_envoys")
    op.drop_index(op.f("ix_hub_collaboration_parties_organization"), table_name="hub_collaboration_parties")
    op.drop_table("hub_collaboration_parties")
    op.drop_index(op.f("ix_hub_agreements_collaboration"), table_name="hub_agreements")
    op.drop_table("hub_agreements")
    op.drop_table("hub_organizations")
    op.drop_table("hub_idempotency")
    op.drop_table("hub_collaborations")
    op.drop_table("fairness")
