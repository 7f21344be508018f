"""Users: people who act for one organization, with roles; and the roles that organizations made themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, delete, insert, select

from ...utils.errors import ConfigError, UnknownEntityError
from ...utils.messages import NAME_PATTERN
from ..database import reading, transaction
from .lockout import Failures
from .roles import PRESETS
from .rules import Role, Rule
from .store import Store
from .tables import ROLES, USER_ROLES, USERS

MAX_FULL_NAME = 200


@dataclass(frozen=True, slots=True)
class User:
    """One person.

    Raises:
        ConfigError: a name that can be none.
    """

    id: str
    name: str  # to sign in with
    full_name: str
    organization: str
    password: str = field(default="", repr=False)  # argon2id; "": signs in through an OpenID provider, or not at all
    totp_secret: bytes | None = field(default=None, repr=False)
    totp_step: int = -1
    subject: str | None = None  # issuer and subject of an OpenID provider
    failures: int = 0
    failed_at: float = 0.0
    disabled_at: float | None = None
    created_at: float = 0.0  # seconds since 1970
    version: int = 1

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise ConfigError("name: expected 1 to 63 lower-case letters, digits and hyphens, the first no hyphen")
        if len(self.full_name) > MAX_FULL_NAME or not self.full_name.isprintable():
            raise ConfigError(f"full_name: expected one printable line of at most {MAX_FULL_NAME} characters")

    @property
    def failed(self) -> Failures:
        """Attempts to sign in since the last one that was right."""
        return Failures(self.failures, self.failed_at)


@dataclass(frozen=True, slots=True)
class OwnRole:
    """A role that an organization made.

    Raises:
        ConfigError: its name is a preset's, or can be none.
    """

    id: str
    name: str
    organization: str
    rules: frozenset[Rule]
    version: int = 1

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name) or self.name in PRESETS:
            raise ConfigError(
                f"name: expected 1 to 63 lower-case letters, digits and hyphens, and none of {', '.join(PRESETS)}"
            )


def subject_of(issuer: str, subject: str) -> str:
    """Who somebody is at an OpenID provider, in one text; no URL holds a space."""
    return f"{issuer} {subject}"


def users(engine: Engine) -> Store[User]:
    """Where they are kept."""
    return Store(engine, USERS, "user", lambda row: User(**row), asdict)


def own_roles(engine: Engine) -> Store[OwnRole]:
    """Where roles beside the presets are kept."""
    return Store(engine, ROLES, "role", _own_role, _row_of_role)


class Roles:
    """Who has which roles."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._own = engine, own_roles(engine)

    def of(self, user: str) -> tuple[Role, ...]:
        """All that a user has, with their rules as they are now."""
        return self.of_each([user])[user]

    def of_each(self, users: Collection[str]) -> dict[str, tuple[Role, ...]]:
        """As ``of``, for several at once."""
        with reading(self._engine) as connection:
            given = connection.execute(select(USER_ROLES).where(USER_ROLES.c.user.in_(sorted(users)))).all()
        names = {one.role for one in given}
        own = {one.id: Role(one.name, one.rules) for one in self._own.all(self._own.among(names - PRESETS.keys()))}
        known = own | PRESETS
        found: dict[str, list[Role]] = {one: [] for one in users}
        for user, name in sorted((one.user, one.role) for one in given if one.role in known):
            found[user].append(known[name])
        return {user: tuple(roles) for user, roles in found.items()}

    def find(self, names: Iterable[str], organization: str) -> dict[str, Role]:
        """Roles by what a user of this organization may be given: a preset's name, or the id of one of its own.

        Raises:
            UnknownEntityError: there is none of one of the names.
        """
        found = {}
        for name in names:
            if name in PRESETS:
                found[name] = PRESETS[name]
                continue
            own = self._own.first(ROLES.c.id == name, ROLES.c.organization == organization)
            if own is None:
                raise UnknownEntityError(f"there is no role {name[:63]} for users of this organization")
            found[name] = Role(own.name, own.rules)
        return found

    def give(self, user: str, names: Iterable[str], connection: Connection | None = None) -> None:
        """A user has these from now on, and no others; ``find`` knows them.

        Args:
            user: by its id.
            names: of the roles.
            connection: of a transaction that this is to be part of; None: one of its own.
        """
        if connection is None:
            with transaction(self._engine) as own:
                self.give(user, names, own)
            return
        connection.execute(delete(USER_ROLES).where(USER_ROLES.c.user == user))
        rows = [{"user": user, "role": name} for name in sorted(set(names))]
        if rows:
            connection.execute(insert(USER_ROLES), rows)

    def holders(self, role: str) -> tuple[str, ...]:
        """Ids of the users who have a role: a preset by its name, another by its id."""
        with reading(self._engine) as connection:
            found = connection.execute(select(USER_ROLES.c.user).where(USER_ROLES.c.role == role)).scalars()
            return tuple(sorted(found))

    def delete(self, role: str, seen: int, write_down: Callable[[], None]) -> None:
        """An organization's own role is no more, and nobody has it; as ``Store.remove``."""

        def take(connection: Connection) -> None:
            connection.execute(delete(USER_ROLES).where(USER_ROLES.c.role == role))

        self._own.remove(role, seen, write_down, take)


def _own_role(row: RowMapping) -> OwnRole:
    return OwnRole(**(dict(row) | {"rules": frozenset(map(Rule.parse, row["rules"]))}))


def _row_of_role(role: OwnRole) -> dict[str, Any]:
    return asdict(role) | {"rules": sorted(map(str, role.rules))}
