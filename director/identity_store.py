"""Who was invited, who joined, and which certificates were issued: the registrar's memory.

Keeps no keys and no certificates, only what tells them apart. Issues nothing: that is the registrar's work. Who was
revoked is ``revocations``'s; whoever is, is no member here.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Engine, RowMapping, Select, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from ..utils.errors import JoinFileError
from .database import reading, transaction
from .tables import CERTIFICATES, IDENTITIES, INVITATIONS, REVOCATIONS


@dataclass(frozen=True, slots=True)
class Invitation:
    """One join file that was handed out."""

    id: str  # as in the bootstrap certificate: spiffe://FEDERATION/join/ID
    name: str
    role: str
    organization: str
    expires_at: float  # seconds since 1970
    used_by: str = ""  # SHA-256 of the signing request that used it, or ""
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """One member that joined."""

    name: str
    role: str
    organization: str
    certificate_sha256: str
    identity_key: bytes  # Ed25519 public key
    joined_at: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """One certificate of a member, by its SHA-256."""

    sha256: str
    name: str
    role: str  # in the certificate: envoy, operator or renew
    issued_at: float  # seconds since 1970
    expires_at: float


_USE = (
    update(INVITATIONS)
    .where(INVITATIONS.c.id == bindparam("invitation"), INVITATIONS.c.used_by == "", INVITATIONS.c.revoked_at.is_(None))
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

    def repeat_invitation(self, invitation: Invitation) -> None:
        """Remember an invitation that is used up as it is made; or know it again by its id.

        Raises:
            JoinFileError: another was made with that id, or used by another request, or it was revoked.
        """
        with reading(self._engine) as connection:
            asked = select(INVITATIONS).where(INVITATIONS.c.id == invitation.id)
            row = connection.execute(asked).mappings().one_or_none()
        if row is None:
            self.add_invitation(invitation)
            return
        kept = _invitation(row)
        if kept.revoked_at is not None or replace(kept, expires_at=invitation.expires_at) != invitation:
            raise JoinFileError(f"{invitation.name} was invited before, otherwise")

    def use_invitation(self, invitation_id: str, csr_digest: str, now: float) -> Invitation:
        """Use an invitation up, in favour of one signing request.

        Of several requests at the same time one alone succeeds. The same request may come again, for instance
        because the answer to the first was lost.

        Raises:
            JoinFileError: unknown, expired, revoked, or used by another signing request.
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
        if invitation.revoked_at is not None:
            raise JoinFileError(f"the join file for {invitation.name} was revoked; ask the director's operator why")
        if invitation.used_by == csr_digest:
            return invitation
        if invitation.used_by:
            raise JoinFileError(
                f"the join file for {invitation.name} was used before, by another key; if that was not you, "
                "tell the director's operator; else ask for a new one"
            )
        late = math.ceil((now - invitation.expires_at) / 60)
        raise JoinFileError(f"the join file for {invitation.name} expired {late} min ago; ask for a new one")

    def add_identity(
        self, identity: Identity, certificates: tuple[IssuedCertificate, ...] = (), *, reinstates: bool = False
    ) -> None:
        """Remember a member, with certificates that it is given now; one of the same name is replaced.

        One that is reinstated is revoked no more, and whatever it was issued before stays bad.
        """
        values = asdict(identity)
        with transaction(self._engine) as connection:
            if reinstates:
                for table, ended in ((REVOCATIONS, "lifted_at"), (CERTIFICATES, "revoked_at")):
                    rows = update(table).where(table.c.name == identity.name, table.c[ended].is_(None))
                    connection.execute(rows.values({ended: identity.joined_at}))
            if certificates:
                connection.execute(delete(CERTIFICATES).where(CERTIFICATES.c.expires_at < certificates[0].issued_at))
                connection.execute(insert(CERTIFICATES), [asdict(one) for one in certificates])
            changed = connection.execute(update(IDENTITIES).where(IDENTITIES.c.name == identity.name).values(values))
            if not changed.rowcount:
                connection.execute(insert(IDENTITIES), values)

    def identity(self, name: str) -> Identity | None:
        """Whoever joined by that name, also if it was revoked since."""
        with reading(self._engine) as connection:
            row = connection.execute(select(IDENTITIES).where(IDENTITIES.c.name == name)).mappings().one_or_none()
        return None if row is None else Identity(**row)

    def identities(self) -> tuple[Identity, ...]:
        """All members, by name; who was revoked is none."""
        revoked = select(REVOCATIONS.c.name).where(REVOCATIONS.c.lifted_at.is_(None))
        return self._identities(select(IDENTITIES).where(IDENTITIES.c.name.not_in(revoked)))

    def all_identities(self) -> tuple[Identity, ...]:
        """All who ever joined, by name."""
        return self._identities(select(IDENTITIES))

    def certificates(self, name: str, now: float) -> tuple[IssuedCertificate, ...]:
        """The certificates of a name that have not expired, the oldest first."""
        asked = select(CERTIFICATES).where(CERTIFICATES.c.name == name, CERTIFICATES.c.expires_at >= now)
        with reading(self._engine) as connection:
            rows = connection.execute(asked.order_by(CERTIFICATES.c.issued_at)).mappings().all()
        return tuple(IssuedCertificate(**{str(k): v for k, v in row.items() if k != "revoked_at"}) for row in rows)

    def invitations(self, now: float) -> tuple[Invitation, ...]:
        """The join files that are out: neither used, expired nor revoked."""
        asked = select(INVITATIONS).where(INVITATIONS.c.used_by == "", INVITATIONS.c.revoked_at.is_(None))
        with reading(self._engine) as connection:
            rows = connection.execute(asked.where(INVITATIONS.c.expires_at > now)).mappings().all()
        return tuple(_invitation(row) for row in rows)

    def _identities(self, asked: Select[Any]) -> tuple[Identity, ...]:
        with reading(self._engine) as connection:
            rows = connection.execute(asked).mappings().all()
        return tuple(sorted((Identity(**row) for row in rows), key=lambda identity: identity.name))


def _invitation(row: RowMapping) -> Invitation:
    return Invitation(**{str(column): value for column, value in row.items() if column != "number"})
