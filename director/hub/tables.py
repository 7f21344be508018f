"""What the hub keeps: organizations, users, what they agreed to, and what became of their models.

All times are seconds since 1970. ``version`` goes up with each change of a row; who changes one says which they saw.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from ..tables import METADATA


def _id() -> Column[str]:
    return Column("id", String(32), primary_key=True)


def _version() -> Column[int]:
    return Column("version", Integer, nullable=False)


ORGANIZATIONS = Table(
    "hub_organizations",
    METADATA,
    _id(),
    Column("name", String(200), nullable=False, unique=True),
    Column("contact", Text, nullable=False),
    Column("data_protection_officer", Text, nullable=False),
    Column("endpoint", Text, nullable=False),  # "" for those that only call out
    Column("encryption_key", LargeBinary),  # X25519 public key
    Column("status", String(16), nullable=False),  # pending, active, suspended
    Column("created_at", Double, nullable=False),
    _version(),
)

ENVOYS = Table(
    "hub_envoys",
    METADATA,
    Column("name", String(63), primary_key=True),  # as in its certificate
    Column("organization", String(32), ForeignKey("hub_organizations.id"), nullable=False, index=True),
    Column("added_at", Double, nullable=False),
)

SITE_WORDS = Table(
    "hub_site_words",
    METADATA,
    Column("envoy", String(63), ForeignKey("hub_envoys.name"), primary_key=True),
    Column("approved", JSON, nullable=False),  # digests of proposals
    Column("until", Double, nullable=False),  # the site answers until then, without a line
    Column("said_at", Double, nullable=False),
)

COLLABORATIONS = Table(
    "hub_collaborations",
    METADATA,
    _id(),
    Column("name", String(200), nullable=False, unique=True),
    Column("permit_number", String(200), nullable=False),
    Column("permit_authority", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("starts_at", Double, nullable=False),
    Column("ends_at", Double, nullable=False),
    Column("datasets", JSON, nullable=False),  # sorted names
    Column("organizations", JSON, nullable=False),  # sorted ids; the next table too, to be looked up by
    Column("reviews_needed", Integer, nullable=False),  # organizations whose reviewers approve a plan first
    Column("created_at", Double, nullable=False),
    _version(),
)

PARTIES = Table(
    "hub_collaboration_parties",
    METADATA,
    Column("collaboration", String(32), ForeignKey("hub_collaborations.id"), primary_key=True),
    Column("organization", String(32), ForeignKey("hub_organizations.id"), primary_key=True, index=True),
)

AGREEMENTS = Table(
    "hub_agreements",
    METADATA,
    _id(),
    Column("kind", String(32), nullable=False),
    Column("number", Integer, nullable=False),  # the agreement's own version
    Column("document", String(64), nullable=False),  # SHA-256
    Column("parties", JSON, nullable=False),  # sorted ids of organizations
    Column("collaboration", String(32), ForeignKey("hub_collaborations.id"), index=True),
    Column("valid_from", Double, nullable=False),
    Column("valid_until", Double),
    Column("may_start_tasks", JSON, nullable=False),
    Column("may_publish", JSON, nullable=False),
    Column("intellectual_property", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

SIGNATURES = Table(
    "hub_agreement_signatures",
    METADATA,
    Column("agreement", String(32), ForeignKey("hub_agreements.id"), primary_key=True),
    Column("organization", String(32), ForeignKey("hub_organizations.id"), primary_key=True),
    Column("by", String(32), ForeignKey("hub_users.id"), nullable=False),
    Column("at", Double, nullable=False),
)

USERS = Table(
    "hub_users",
    METADATA,
    _id(),
    Column("name", String(63), nullable=False, unique=True),
    Column("full_name", Text, nullable=False),
    Column("organization", String(32), ForeignKey("hub_organizations.id"), nullable=False, index=True),
    Column("password", Text, nullable=False),  # argon2id; "" where none is set
    Column("totp_secret", LargeBinary),
    Column("totp_step", BigInteger, nullable=False),  # of the last code that was accepted; -1: none
    Column("subject", Text, unique=True),  # issuer and subject of an OpenID provider
    Column("failures", Integer, nullable=False),
    Column("failed_at", Double, nullable=False),
    Column("disabled_at", Double),
    Column("created_at", Double, nullable=False),
    _version(),
)

ROLES = Table(
    "hub_roles",
    METADATA,
    _id(),
    Column("name", String(63), nullable=False),
    Column("organization", String(32), ForeignKey("hub_organizations.id"), nullable=False),
    Column("rules", JSON, nullable=False),  # sorted texts
    _version(),
    UniqueConstraint("organization", "name"),
)

USER_ROLES = Table(
    "hub_user_roles",
    METADATA,
    Column("user", String(32), ForeignKey("hub_users.id"), primary_key=True),
    Column("role", String(63), primary_key=True),  # a preset's name, or the id of one of the organization's own
)

SESSIONS = Table(
    "hub_sessions",
    METADATA,
    Column("sha256", String(64), primary_key=True),  # of the token
    Column("user", String(32), ForeignKey("hub_users.id"), nullable=False, index=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

STRANGERS = Table(
    "hub_strangers",  # names that nobody has, and that somebody tried to sign in with
    METADATA,
    Column("name_sha256", String(64), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("failed_at", Double, nullable=False, index=True),
)

API_KEYS = Table(
    "hub_api_keys",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("user", String(32), ForeignKey("hub_users.id"), nullable=False, index=True),
    Column("label", Text, nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("rules", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
)

DATASETS = Table(
    "hub_datasets",
    METADATA,
    _id(),
    Column("name", String(63), nullable=False),  # as at the site
    Column("organization", String(32), ForeignKey("hub_organizations.id"), nullable=False, index=True),
    Column("envoy", String(63), ForeignKey("hub_envoys.name"), nullable=False),
    Column("description", Text, nullable=False),
    Column("modality", String(63), nullable=False),
    Column("columns", JSON, nullable=False),
    Column("examples", String(32), nullable=False),  # a range that the site chose, never a count
    Column("digest", String(64), nullable=False),  # of what the site has, by its own word
    Column("withdrawn_at", Double),
    Column("withdrawn_why", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    _version(),
    UniqueConstraint("envoy", "name"),
)

TASKS = Table(
    "hub_tasks",
    METADATA,
    Column("run", String(63), ForeignKey("runs.id"), primary_key=True),
    Column("collaboration", String(32), ForeignKey("hub_collaborations.id"), nullable=False, index=True),
    Column("organization", String(32), ForeignKey("hub_organizations.id"), nullable=False),
    Column("user", String(32), ForeignKey("hub_users.id"), nullable=False),
    Column("processing", String(32), ForeignKey("hub_agreements.id"), nullable=False),  # which of the two applies
    Column("dataset", Text),  # that its plan reads, by name; null: none
    Column("created_at", Double, nullable=False),
)

PLANS = Table(
    "hub_plans",
    METADATA,
    Column("plan", String(64), primary_key=True),  # SHA-256 of its manifest
    Column("user", String(32), ForeignKey("hub_users.id"), primary_key=True),  # who brought it; several may
    Column("organization", String(32), ForeignKey("hub_organizations.id"), nullable=False),
    Column("created_at", Double, nullable=False),
)

SHOWN_PLANS = Table(
    "hub_shown_plans",
    METADATA,
    Column("plan", String(64), primary_key=True),
    Column("collaboration", String(32), ForeignKey("hub_collaborations.id"), primary_key=True),
    Column("shown_at", Double, nullable=False),
)

REMARKS = Table(
    "hub_remarks",
    METADATA,
    Column("subject", String(8), primary_key=True),  # plan or task
    Column("about", String(64), primary_key=True),  # a plan's digest, a task's run
    Column("number", Integer, primary_key=True, autoincrement=False),  # in its thread, from 0
    Column("user", String(32), ForeignKey("hub_users.id"), nullable=False),
    Column("organization", String(32), ForeignKey("hub_organizations.id"), nullable=False),
    Column("text", Text, nullable=False),
    Column("verdict", String(16)),  # of a reviewer
    Column("answers", Integer),  # the number of an earlier one
    Column("created_at", Double, nullable=False),
    Index("ix_hub_remarks_verdict", "subject", "about", "verdict", "user", "number"),  # verdicts, without long texts
)

MODELS = Table(
    "hub_models",
    METADATA,
    _id(),
    Column("name", String(63), nullable=False),
    Column("semver", String(32), nullable=False),
    Column("digest", String(64), nullable=False, index=True),  # SHA-256 of the file
    Column("run", String(63), ForeignKey("runs.id"), nullable=False, index=True),
    Column("round", Integer, nullable=False),
    Column("plan", String(64), nullable=False),
    Column("collaboration", String(32), ForeignKey("hub_collaborations.id"), nullable=False, index=True),
    Column("card", JSON, nullable=False),
    Column("key", LargeBinary, nullable=False),  # public, of the director's log, that signed the card's canonical text
    Column("signature", LargeBinary, nullable=False),
    Column("organization", String(32), ForeignKey("hub_organizations.id"), nullable=False),
    Column("user", String(32), ForeignKey("hub_users.id"), nullable=False),
    Column("is_published", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    _version(),
    UniqueConstraint("name", "semver"),
)

MODEL_DATASETS = Table(
    "hub_model_datasets",
    METADATA,
    Column("model", String(32), ForeignKey("hub_models.id"), primary_key=True),
    Column("dataset", String(32), ForeignKey("hub_datasets.id"), primary_key=True, index=True),
)

IDEMPOTENCY = Table(
    "hub_idempotency",
    METADATA,
    Column("user", String(32), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request", String(64), nullable=False),  # SHA-256 of method, path and body
    Column("status", Integer, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
)
