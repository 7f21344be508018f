"""Who was revoked, in the director's database, where another process may write it while the director runs.

A revoked name is no member: no call, no renewal, no place in the roster. It comes back by a join file that was made
after that, with keys of its own choosing; of the certificates that it had before none is ever good again. So of a name
that was revoked once, only certificates that are known here and were issued since are good. ``standing`` asks at each
call; ``director revoke`` and ``director members`` write and read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Engine, bindparam, func, insert, select, update

from ..utils.errors import ProtocolError
from .database import reading, transaction
from .tables import CERTIFICATES, IDENTITIES, INVITATIONS, REVOCATIONS

_OF_NAME = (
    select(REVOCATIONS.c.revoked_at, REVOCATIONS.c.lifted_at)
    .where(REVOCATIONS.c.name == bindparam("name"))
    .order_by(REVOCATIONS.c.number.desc())
)
_IS_GOOD = select(CERTIFICATES.c.sha256).where(
    CERTIFICATES.c.sha256 == bindparam("sha256"),
    CERTIFICATES.c.name == bindparam("name"),
    CERTIFICATES.c.revoked_at.is_(None),
)
_IS_OUT = select(INVITATIONS.c.revoked_at).where(INVITATIONS.c.id == bindparam("id"))


@dataclass(frozen=True, slots=True)
class Revocation:
    """One time that a name was revoked."""

    number: int
    name: str
    reason: str
    revoked_at: float  # seconds since 1970
    lifted_at: float | None  # when it joined again


class Revocations:
    """The memory of who was revoked; safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def revoke(self, name: str, reason: str, now: float, write_down: Callable[[], None] = lambda: None) -> int:
        """Revoke a name, its certificates and its join files.

        A name that never joined has join files alone: they are revoked, and another may be made.

        Args:
            name: of a member, or of whom a join file was made for.
            reason: kept for people; never told to the one it is about.
            now: seconds since 1970.
            write_down: puts it into the audit log, once it is known that it can be done and before it is.

        Returns:
            how many join files that were still good were revoked.

        Raises:
            ProtocolError: nobody has that name, no join file is out for it, or it is revoked already.
        """
        with transaction(self._engine) as connection:
            of_name = INVITATIONS.c.name == name, INVITATIONS.c.revoked_at.is_(None)
            is_out = INVITATIONS.c.used_by == "", INVITATIONS.c.expires_at > now
            files = len(connection.execute(select(INVITATIONS.c.id).where(*of_name, *is_out)).all())
            connection.execute(update(INVITATIONS).where(*of_name).values(revoked_at=now))  # used ones may come again
            is_member = connection.execute(select(IDENTITIES.c.name).where(IDENTITIES.c.name == name)).first()
            is_revoked = connection.execute(
                select(REVOCATIONS.c.number).where(REVOCATIONS.c.name == name, REVOCATIONS.c.lifted_at.is_(None))
            ).first()
            if is_member and not is_revoked:
                row = {"name": name, "reason": reason, "revoked_at": now}
                connection.execute(insert(REVOCATIONS), row)
                connection.execute(update(CERTIFICATES).where(CERTIFICATES.c.name == name).values(revoked_at=now))
            elif not files:
                why = "is revoked already" if is_revoked else "is no member, and no join file is out for it"
                raise ProtocolError(f"{name} {why}: `director members` says who is here")
            write_down()
        return files

    def since(self, name: str) -> float | None:
        """When the name was revoked, if it is now."""
        with reading(self._engine) as connection:
            newest = connection.execute(_OF_NAME, {"name": name}).first()
        return None if newest is None or newest.lifted_at is not None else newest.revoked_at

    def among(self, names: Iterable[str]) -> frozenset[str]:
        """Of these names, those that are revoked now."""
        newest = select(func.max(REVOCATIONS.c.number)).where(REVOCATIONS.c.name.in_(sorted(names)))
        newest = newest.group_by(REVOCATIONS.c.name)
        query = select(REVOCATIONS.c.name).where(REVOCATIONS.c.number.in_(newest), REVOCATIONS.c.lifted_at.is_(None))
        with reading(self._engine) as connection:
            return frozenset(connection.execute(query).scalars())

    def bad_since(self, name: str, sha256: str) -> float | None:
        """When this certificate of the name became bad; None while it is good."""
        with reading(self._engine) as connection:
            newest = connection.execute(_OF_NAME, {"name": name}).first()
            if newest is None:
                return None  # as a rule
            is_good = (
                newest.lifted_at is not None
                and connection.execute(_IS_GOOD, {"sha256": sha256, "name": name}).first() is not None
            )
        return None if is_good else newest.revoked_at

    def join_file_bad_since(self, invitation_id: str) -> float | None:
        """When a join file was revoked; None for one that was not."""
        with reading(self._engine) as connection:
            return connection.execute(_IS_OUT, {"id": invitation_id}).scalar_one_or_none()

    def names(self) -> frozenset[str]:
        """All names that were ever revoked."""
        with reading(self._engine) as connection:
            return frozenset(connection.execute(select(REVOCATIONS.c.name).distinct()).scalars())

    def all(self) -> tuple[Revocation, ...]:
        """Every revocation, in order."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(REVOCATIONS).order_by(REVOCATIONS.c.number)).all()
        return tuple(Revocation(row.number, row.name, row.reason, row.revoked_at, row.lifted_at) for row in rows)
