"""The first people of a hub, who let in all others: made by whoever holds the director's folder."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from sqlalchemy import Engine

from ...utils.errors import ConfigError
from ..audit import DirectorAudit
from .hub import Hub
from .organizations import Organization, Status
from .passwords import check_new, hashed
from .roles import PRESETS
from .store import new_id
from .users import User


def add_first_user(
    engine: Engine,
    audit: DirectorAudit,
    federation: str,
    name: str,
    full_name: str,
    organization: str,
    roles: Collection[str],
    password: str,
    by: str,
) -> User:
    """Add a user, and the organization where there is none of that name yet.

    Args:
        engine: of the director's database.
        audit: where it is written down first.
        federation: its name.
        name: to sign in with.
        full_name: for people.
        organization: by its name.
        roles: presets.
        password: as it will be typed.
        by: the account at the director's machine.

    Raises:
        ConfigError: a name, role or password that cannot be.
        NameTakenError: there is a user of that name.
    """
    hub = Hub(federation, engine, audit)
    if strange := [one for one in roles if one not in PRESETS]:
        raise ConfigError(f"--role {strange[0]}: expected one of {', '.join(PRESETS)}")
    check_new(password, name)
    there = hub.organizations.first(hub.organizations.table.c.name == organization)
    whose = there or Organization(new_id(), organization, status=Status.ACTIVE, created_at=hub.now())
    user = User(new_id(), name, full_name, whose.id, hashed(password), created_at=hub.now())
    account = f"account:{by}"
    if there is None:
        hub.organizations.add(whose, lambda: audit.operator(account, "organization registered", {"name": organization}))
    hub.users.add(
        user,
        lambda: audit.operator(account, "user added", {"name": name, "roles": sorted(roles)}),
        partial(hub.roles.give, user.id, roles),
    )
    return user
