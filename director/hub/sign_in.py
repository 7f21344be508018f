"""Who is it that asks? A password and a code give a session; a session's token or an API key gives an actor.

Tokens and keys are kept as SHA-256. Whatever is wrong, the answer and the time that it takes are the same: who guesses
learns neither which users there are nor which half was right. Failures slow down whoever makes them (``attempts``),
also who is signed in and guesses at the password: a session that was found is no way around the wait.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, RowMapping, delete, insert, select, update

from ...utils.errors import IdentityError, NotAuthorizedError, TooManyCallsError
from ..database import reading, transaction
from . import api_keys
from .api_keys import ApiKey
from .attempts import Attempts
from .one_time_codes import accepted_step
from .passwords import hashed, is_outdated, is_right, turn
from .rules import Actor, Rule
from .tables import API_KEYS, PARTIES, SESSIONS, USERS
from .users import Roles, User, users

SESSION_SECONDS = 8 * 3600.0
_TOKEN_BYTES = 32
_TOKEN = re.compile(r"fs_[A-Za-z0-9_-]{43}")
_WRONG = "name, password or code is not right"


@dataclass(frozen=True, slots=True)
class Session:
    """One sign-in; the token is told once."""

    token: str = field(repr=False)
    user: User
    expires_at: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may."""

    user: User
    actor: Actor
    key: str | None = None  # the id of the API key


class SignIn:
    """Sessions and keys in the director's database; safe to share between threads and processes.

    Args:
        engine: of it.
        random: as ``os.urandom``.
    """

    def __init__(self, engine: Engine, random: Callable[[int], bytes]) -> None:
        self._engine, self._random = engine, random
        self._users, self._roles, self._attempts = users(engine), Roles(engine), Attempts(engine)

    def sign_in(self, name: str, password: str, code: str, now: float) -> Session:
        """Open a session.

        Args:
            name: of the user.
            password: as it was typed.
            code: of the authenticator app; "" for users who have none.
            now: seconds since 1970.

        Raises:
            IdentityError: something is not right; it is not said what.
            LockedOutError: too many attempts failed, also at a name that nobody has; the text says how long to wait.
            TooManyCallsError: too many sign in at this moment.
        """
        user = self._users.first(USERS.c.name == name)
        with turn():
            self._attempts.begin(name, None if user is None else user.id, now)
            is_password = is_right("" if user is None else user.password, password)
        step = -1
        if user is not None and user.totp_secret is not None:
            found = accepted_step(user.totp_secret, code, now, user.totp_step)
            is_password, step = is_password and found is not None, -1 if found is None else found
        if user is None or user.disabled_at is not None or not is_password or not self._counts(user, step, now):
            raise IdentityError(_WRONG)
        if is_outdated(user.password):
            with suppress(TooManyCallsError), turn():  # else at the next sign-in
                self._set(user.id, password=hashed(password))
        return self.open(user, now)

    def prove(self, user: User, password: str, now: float) -> None:
        """Is it the user who sits there, signed in? Counted as an attempt to sign in is, and together with those.

        Args:
            user: who is signed in.
            password: as it was typed.
            now: seconds since 1970.

        Raises:
            NotAuthorizedError: it is another password.
            LockedOutError, TooManyCallsError: as ``sign_in``.
        """
        with turn():
            self._attempts.begin(user.name, user.id, now)
            is_password = is_right(user.password, password)
        if not is_password:
            raise NotAuthorizedError("the present password is not right")
        self._counts(user, -1, now)

    def open(self, user: User, now: float) -> Session:
        """A session for a user who proved to be it."""
        token = "fs_" + base64.urlsafe_b64encode(self._random(_TOKEN_BYTES)).rstrip(b"=").decode("ascii")
        row = {"sha256": _sha256(token), "user": user.id, "created_at": now, "expires_at": now + SESSION_SECONDS}
        with transaction(self._engine) as connection:
            connection.execute(delete(SESSIONS).where(SESSIONS.c.expires_at <= now))
            connection.execute(insert(SESSIONS), row)
        return Session(token, user, now + SESSION_SECONDS)

    def by_subject(self, subject: str, now: float) -> Session:
        """A session for whoever the OpenID provider says it is.

        Args:
            subject: as ``users.subject_of`` writes it.
            now: seconds since 1970.

        Raises:
            IdentityError: nobody here is known by it, or the user is disabled.
        """
        user = self._users.first(USERS.c.subject == subject)
        if user is None or user.disabled_at is not None:
            raise IdentityError("nobody here is known by that account of the provider; ask your administrator")
        return self.open(user, now)

    def sign_out(self, token: str) -> None:
        """End a session; nothing happens where there is none."""
        with transaction(self._engine) as connection:
            connection.execute(delete(SESSIONS).where(SESSIONS.c.sha256 == _sha256(token)))

    def sign_out_everywhere(self, user: str) -> None:
        """End all sessions of a user."""
        with transaction(self._engine) as connection:
            connection.execute(delete(SESSIONS).where(SESSIONS.c.user == user))

    def caller(self, bearer: str, now: float) -> Caller:
        """Who presents this token or key?

        Raises:
            IdentityError: nobody, or nobody any more.
        """
        key = api_keys.presented(bearer)
        if key is not None:
            return self._by_key(key, now)
        if not _TOKEN.fullmatch(bearer):
            raise IdentityError("neither a session's token nor an API key")
        with reading(self._engine) as connection:
            row = connection.execute(select(SESSIONS).where(SESSIONS.c.sha256 == _sha256(bearer))).first()
        if row is None or row.expires_at <= now:
            raise IdentityError("no such session, or it is over: sign in again")
        return Caller(*self._acting(row.user, None))

    def actor(self, user: str) -> Actor:
        """What a user may, signed in.

        Raises:
            UnknownEntityError: there is none.
            IdentityError: it is disabled, and may nothing.
        """
        return self._acting(user, None)[1]

    # ------------------------------------------------------------ keys

    def make_key(
        self, user: User, label: str, rules: frozenset[Rule], now: float, expires_at: float
    ) -> tuple[ApiKey, str]:
        """A new key, and its text, which is not kept."""
        made = api_keys.make(self._random)
        key = ApiKey(made.id, user.id, label, made.sha256, rules, now, expires_at)
        with transaction(self._engine) as connection:
            connection.execute(insert(API_KEYS), _row_of_key(key))
        return key, api_keys.text_of(made)

    def keys(self, user: str) -> tuple[ApiKey, ...]:
        """Those of a user, the newest last."""
        query = select(API_KEYS).where(API_KEYS.c.user == user).order_by(API_KEYS.c.created_at, API_KEYS.c.id)
        with reading(self._engine) as connection:
            return tuple(_key(row) for row in connection.execute(query).mappings())

    def key(self, id_: str) -> ApiKey | None:
        """The one of that id."""
        with reading(self._engine) as connection:
            row = connection.execute(select(API_KEYS).where(API_KEYS.c.id == id_)).mappings().first()
        return None if row is None else _key(row)

    def revoke_key(self, id_: str, now: float) -> None:
        """A key is good for nothing from now on."""
        of_key = API_KEYS.c.id == id_, API_KEYS.c.revoked_at.is_(None)
        with transaction(self._engine) as connection:
            connection.execute(update(API_KEYS).where(*of_key).values(revoked_at=now))

    def _by_key(self, presented: api_keys.Presented, now: float) -> Caller:
        key = self.key(presented.id)
        # A key that nobody has is compared too: how long it takes tells nobody which ids there are.
        against = key or ApiKey(presented.id, "", "", "0" * 64, frozenset(), 0.0, 0.0)
        if not presented.opens(against) or key is None or not key.is_good(now):
            raise IdentityError("no such API key, or it is over, or was taken back")
        if key.last_used_at is None or now - key.last_used_at > _SELDOM_SECONDS:
            with transaction(self._engine) as connection:
                connection.execute(update(API_KEYS).where(API_KEYS.c.id == key.id).values(last_used_at=now))
        return Caller(*self._acting(key.user, key.rules), key.id)

    def _acting(self, id_: str, rules: frozenset[Rule] | None) -> tuple[User, Actor]:
        user = self._users.get(id_)
        if user.disabled_at is not None:
            raise IdentityError("this user is disabled")
        with reading(self._engine) as connection:
            query = select(PARTIES.c.collaboration).where(PARTIES.c.organization == user.organization)
            collaborations = frozenset(connection.execute(query).scalars())
        return user, Actor(user.id, user.organization, collaborations, self._roles.of(id_), rules)

    # ------------------------------------------------------------ attempts

    def _counts(self, user: User, step: int, now: float) -> bool:
        """The attempt was right: forget failures; a code counts once, also for two who come with it at once."""
        of_user = update(USERS).where(USERS.c.id == user.id)
        if step >= 0:
            of_user = of_user.where(USERS.c.totp_step < step).values(totp_step=step)
        with transaction(self._engine) as connection:
            return bool(connection.execute(of_user.values(failures=0, failed_at=now)).rowcount)

    def _set(self, id_: str, **values: Any) -> None:
        with transaction(self._engine) as connection:
            connection.execute(update(USERS).where(USERS.c.id == id_).values(values))


_SELDOM_SECONDS = 60.0
"""When a key was last used is kept to this; each use would write."""


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(**(dict(row) | {"rules": frozenset(map(Rule.parse, row["rules"]))}))


def _row_of_key(key: ApiKey) -> dict[str, Any]:
    fields = {name: getattr(key, name) for name in ApiKey.__dataclass_fields__}
    return fields | {"rules": sorted(map(str, key.rules))}
