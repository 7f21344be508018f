"""Who was invited, and who joined: the registrar's memory.

Keeps no keys and no certificates, only what tells them apart. Issues nothing: that is the registrar's work.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from sqlalchemy import Engine, RowMapping, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from ..utils.errors import JoinFileError
from .database import IDENTITIES, INVITATIONS, reading, transaction


@dataclass(frozen=True, slots=True)
class Invitation:
    """One join file that was handed out."""

    id: str  # as in the bootstrap certificate: spiffe://FEDERATION/join/ID
    name: str
    role: str
    organization: str
    expires_at: float  # seconds since 1970
    used_by: str = ""  # SHA-256 of the signing request that used it, or ""


@dataclass(frozen=True, slots=True)
class Identity:
    """One member that joined."""

    name: str
    role: str
    organization: str
    certificate_sha256: str
    identity_key: bytes  # Ed25519 public key
    joined_at: float  # seconds since 1970


_USE = (
    update(INVITATIONS)
    .where(INVITATIONS.c.id == bindparam("invitation"), INVITATIONS.c.used_by == "")
    .where(INVITATIONS.c.expires_at > bindparam("now"))
    .values(used_by=bindparam("signing_request"))
)


class IdentityStore:
    """Invitations and identities in the director's database; safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_invitation(self, invitation: Invitation) -> None:
        """Remember a join file before it is handed out.

        Raises:
            JoinFileError: an invitation with this id was made before.
        """
        try:
            with transaction(self._engine) as connection:
                connection.execute(insert(INVITATIONS), asdict(invitation))
        except IntegrityError as error:
            raise JoinFileError(f"the invitation for {invitation.name} has the id of an earlier one") from error

    def use_invitation(self, invitation_id: str, csr_digest: str, now: float) -> Invitation:
        """Use an invitation up, in favour of one signing request.

        Of several requests at the same time one alone succeeds. The same request may come again, for instance
        because the answer to the first was lost.

        Raises:
            JoinFileError: unknown, expired, or used by another signing request.
        """
        if not csr_digest:
            raise ValueError("the digest of a signing request is not empty")
        with transaction(self._engine) as connection:
            connection.execute(_USE, {"invitation": invitation_id, "now": now, "signing_request": csr_digest})
            row = (
                connection.execute(select(INVITATIONS).where(INVITATIONS.c.id == invitation_id))
                .mappings()
                .one_or_none()
            )
        if row is None:
            raise JoinFileError("this director did not make that join file; ask its operator for one")
        invitation = _invitation(row)
        if invitation.used_by == csr_digest:
            return invitation
        if invitation.used_by:
            raise JoinFileError(
                f"the join file for {invitation.name} was used before, by another key; if that was not you, "
                "tell the director's operator; else ask for a new one"
            )
        late = math.ceil((now - invitation.expires_at) / 60)
        raise JoinFileError(f"the join file for {invitation.name} expired {late} min ago; ask for a new one")

    def add_identity(self, identity: Identity) -> None:
        """Remember a member; one of the same name is replaced."""
        values = asdict(identity)
        with transaction(self._engine) as connection:
            changed = connection.execute(update(IDENTITIES).where(IDENTITIES.c.name == identity.name).values(values))
            if not changed.rowcount:
                connection.execute(insert(IDENTITIES), values)

    def identity(self, name: str) -> Identity | None:
        """The member of that name."""
        with reading(self._engine) as connection:
            row = connection.execute(select(IDENTITIES).where(IDENTITIES.c.name == name)).mappings().one_or_none()
        return None if row is None else Identity(**row)

    def identities(self) -> tuple[Identity, ...]:
        """All members, by name."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(IDENTITIES)).mappings().all()
        return tuple(sorted((Identity(**row) for row in rows), key=lambda identity: identity.name))


def _invitation(row: RowMapping) -> Invitation:
    return Invitation(**{str(column): value for column, value in row.items() if column != "number"})
