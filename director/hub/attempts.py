"""Attempts to sign in, counted before anybody looks at them: guesses that come at once are as many as one by one.

A name that nobody has is counted as a user is: else who is told to wait would know that there is such a user. It is
kept as its SHA-256 (people type passwords where the name belongs), for a day, and not more than so many.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ...utils.errors import LockedOutError
from ..database import transaction
from .lockout import FORGOTTEN_SECONDS, Failures
from .tables import STRANGERS, USERS

MAX_STRANGERS = 100_000


class Attempts:
    """In the director's database; safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, name: str, user: str | None, now: float) -> None:
        """Count one as failed; whoever is right forgets it (``SignIn``).

        Args:
            name: that somebody signs in with.
            user: the id of the user of that name; None: nobody has it.
            now: seconds since 1970.

        Raises:
            LockedOutError: too many failed; this one is not counted and must not be looked at.
        """
        try:
            if user is None:
                self._stranger(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest(), now)
            else:
                self._user(user, now)
        except IntegrityError:
            raise LockedOutError("two attempts at once: wait 1 s, and try again") from None

    def _user(self, id_: str, now: float) -> None:
        of_user = USERS.c.id == id_
        with transaction(self._engine) as connection:
            query = select(USERS.c.failures, USERS.c.failed_at).where(of_user).with_for_update()
            after = _counted(Failures(*connection.execute(query).one()), now)
            connection.execute(update(USERS).where(of_user).values(failures=after.count, failed_at=after.last_at))

    def _stranger(self, name: str, now: float) -> None:
        of_name = STRANGERS.c.name_sha256 == name
        with transaction(self._engine) as connection:
            query = select(STRANGERS.c.failures, STRANGERS.c.failed_at).where(of_name).with_for_update()
            row = connection.execute(query).one_or_none()
            after = _counted(Failures() if row is None else Failures(*row), now)
            values = {"failures": after.count, "failed_at": after.last_at}
            if row is not None:
                connection.execute(update(STRANGERS).where(of_name).values(values))
                return
            connection.execute(delete(STRANGERS).where(STRANGERS.c.failed_at < now - FORGOTTEN_SECONDS))
            if connection.execute(select(func.count()).select_from(STRANGERS)).scalar_one() < MAX_STRANGERS:
                connection.execute(insert(STRANGERS), values | {"name_sha256": name})


def _counted(before: Failures, now: float) -> Failures:
    wait = before.wait(now)
    if wait:
        raise LockedOutError(f"too many attempts failed: wait {wait:.0f} s, and try again")
    return before.failed(now)
