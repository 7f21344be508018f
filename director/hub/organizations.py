"""Organizations: who takes part, whom to call there, and which envoys are theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from sqlalchemy import Engine, RowMapping, bindparam, insert, select

from ...utils.errors import ConfigError, NameTakenError
from ..database import reading, transaction
from .store import Store
from .tables import ENVOYS, ORGANIZATIONS

MAX_NAME, MAX_LINE = 200, 500


class Status(Enum):
    """May it take part?"""

    PENDING = "pending"  # registered; nobody accepted it yet
    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Organization:
    """One organization.

    Raises:
        ConfigError: a field that is empty, too long or not one line.
    """

    id: str
    name: str
    contact: str = ""
    data_protection_officer: str = ""
    endpoint: str = ""  # "" for those that only call out
    encryption_key: bytes | None = field(default=None, repr=False)  # X25519 public key
    status: Status = Status.PENDING
    created_at: float = 0.0  # seconds since 1970
    version: int = 1

    def __post_init__(self) -> None:
        for name, most in (
            ("name", MAX_NAME),
            ("contact", MAX_LINE),
            ("data_protection_officer", MAX_LINE),
            ("endpoint", MAX_LINE),
        ):
            said = getattr(self, name)
            if len(said) > most or not said.isprintable() or (name == "name" and not said.strip()):
                raise ConfigError(
                    f"{name}: expected one printable line of {1 if name == 'name' else 0} to {most} characters"
                )


def organizations(engine: Engine) -> Store[Organization]:
    """Where they are kept."""
    return Store(engine, ORGANIZATIONS, "organization", _organization, _row)


@dataclass(frozen=True, slots=True)
class Station:
    """An envoy, and whose it is."""

    name: str  # as in its certificate
    organization: str
    added_at: float  # seconds since 1970


class Stations:
    """Which envoys are whose: several may be one organization's, and none is two's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, envoy: str, organization: str, now: float, write_down: Callable[[], None] = lambda: None) -> None:
        """An envoy is this organization's from now on; ``write_down`` puts it into the audit log, or it is not.

        Raises:
            NameTakenError: it is another's.
        """
        with transaction(self._engine) as connection:
            whose = connection.execute(_WHOSE, {"envoy": envoy}).scalar_one_or_none()
            if whose not in {None, organization}:
                raise NameTakenError(f"envoy {envoy} is another organization's")
            if whose is None:
                connection.execute(insert(ENVOYS), {"name": envoy, "organization": organization, "added_at": now})
            write_down()

    def all(self) -> tuple[Station, ...]:
        """Every envoy that somebody claimed, by name."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(ENVOYS).order_by(ENVOYS.c.name)).mappings()
            return tuple(Station(**row) for row in rows)

    def of(self, organization: str) -> tuple[str, ...]:
        """The envoys of one, by name."""
        query = select(ENVOYS.c.name).where(ENVOYS.c.organization == organization).order_by(ENVOYS.c.name)
        with reading(self._engine) as connection:
            return tuple(connection.execute(query).scalars())

    def whose(self, envoy: str) -> str | None:
        """The organization of an envoy; None where nobody claimed it."""
        with reading(self._engine) as connection:
            return connection.execute(_WHOSE, {"envoy": envoy}).scalar_one_or_none()


_WHOSE = select(ENVOYS.c.organization).where(ENVOYS.c.name == bindparam("envoy"))


def _organization(row: RowMapping) -> Organization:
    return Organization(**(dict(row) | {"status": Status(row["status"])}))


def _row(organization: Organization) -> dict[str, Any]:
    return asdict(organization) | {"status": organization.status.value}
