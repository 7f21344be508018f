"""What the director keeps of runs, rounds and members: the tables, and not what they mean.

Written by ``history``, ``identity_store`` and ``revocations`` alone. The organizations' own are in ``hub/tables``. All
of them and the scripts in ``migrations`` are held equal by a test.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

RUNS = Table(
    "runs",
    METADATA,
    Column("number", Integer, primary_key=True),  # order of submission
    Column("id", String(63), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("settings", Text, nullable=False),
    Column("plan", String(64), nullable=False),
    Column("layout", String(64), nullable=False),
    Column("seed", LargeBinary, nullable=False),
    Column("submitted_at", Double, nullable=False),  # all times: seconds since 1970
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("reason", Text, nullable=False),
    Column("model", String(64), nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    Column("bytes_down", BigInteger, nullable=False),
    Column("expelled", JSON(none_as_null=True)),  # envoys that are not asked again in this run, and why
    Column("sum_groups", JSON(none_as_null=True)),  # lists of envoys that are summed with each other
    Column("proposal", LargeBinary),  # what sites are asked to approve: canonical JSON, signature, PEM
    Column("proposal_signature", LargeBinary),
    Column("proposal_chain", LargeBinary),
)

ROUNDS = Table(
    "rounds",
    METADATA,
    Column("run", String(63), ForeignKey("runs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("plan", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("since", Double, nullable=False),
    Column("cohort", JSON, nullable=False),  # sets of envoys: sorted lists of names
    Column("received", JSON, nullable=False),
    Column("declined", JSON, nullable=False),
    Column("lost", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("model_in", String(64), nullable=False),
    Column("model_out", String(64)),
    Column("optimizer_state", String(64)),
    Column("metrics", JSON, nullable=False),  # sums over sites
    Column("num_examples", BigInteger, nullable=False),  # a sum over sites
    Column("opened_at", Double),
    Column("closed_at", Double),
    Column("secure_sum", JSON(none_as_null=True)),  # who is in it, under which transcript, the next clip bounds
    Column("patches", Integer),  # how many of the run's patches it was opened with
)

PATCHES = Table(
    "patches",
    METADATA,
    Column("run", String(63), ForeignKey("runs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),  # canonical JSON
    Column("signature", LargeBinary, nullable=False),
    Column("chain", LargeBinary, nullable=False),  # PEM
    Column("taken_at", Double, nullable=False),
)

SUBMISSIONS = Table(
    "submissions",
    METADATA,
    Column("run", String(63), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("envoy", String(63), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("num_examples", BigInteger),  # of one site: null once the round is over
    Column("metrics", JSON(none_as_null=True)),  # as num_examples
    Column("spool", Text, nullable=False),
    Column("privacy", JSON(none_as_null=True)),  # what the site published of its privacy ledger
    Column("leakage_score", Double),  # of the site's leak test, where the site publishes it
    ForeignKeyConstraint(["run", "round", "attempt"], ["rounds.run", "rounds.number", "rounds.attempt"]),
)

FAIRNESS = Table(
    "fairness",
    METADATA,
    Column("run", String(63), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("envoy", String(63), primary_key=True),
    Column("content", LargeBinary, nullable=False),  # what a site publishes by subgroups: canonical JSON
    Column("signature", LargeBinary, nullable=False),  # by the site's identity key
    ForeignKeyConstraint(["run", "round", "attempt"], ["rounds.run", "rounds.number", "rounds.attempt"]),
)

INVITATIONS = Table(
    "invitations",
    METADATA,
    Column("number", Integer, primary_key=True),  # order of invitation
    Column("id", String(64), nullable=False, unique=True),
    Column("name", String(63), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("organization", Text, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_by", String(64), nullable=False),  # SHA-256 of the signing request, or ""
    Column("revoked_at", Double),
)

IDENTITIES = Table(
    "identities",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("organization", Text, nullable=False),
    Column("certificate_sha256", String(64), nullable=False),
    Column("identity_key", LargeBinary, nullable=False),
    Column("joined_at", Double, nullable=False),
)

CERTIFICATES = Table(
    "certificates",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(63), nullable=False, index=True),
    Column("role", String(16), nullable=False),  # in the certificate: envoy, operator or renew
    Column("issued_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("revoked_at", Double),
)

REVOCATIONS = Table(
    "revocations",
    METADATA,
    Column("number", Integer, primary_key=True),  # order of revocation
    Column("name", String(63), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("revoked_at", Double, nullable=False),
    Column("lifted_at", Double),  # the name joined again; its earlier certificates stay bad
)
