"""May an organization bring envoys in? Asked before one is registered or invited."""

from __future__ import annotations

from ...utils.errors import AgreementError
from ..identity_store import IdentityStore
from .agreements import Kind, in_force
from .hub import Hub
from .organizations import Organization, Status
from .tables import AGREEMENTS


def check_takes_part(hub: Hub, organization: str) -> Organization:
    """The organization of that id, which was accepted and is not suspended.

    Raises:
        UnknownEntityError: there is none.
        AgreementError: it was not accepted, or is suspended.
    """
    one = hub.organizations.get(organization)
    if one.status is not Status.ACTIVE:
        raise AgreementError(f"organization {one.name} is {one.status.value}: it takes no part")
    return one


def check_may_bring_envoys(hub: Hub, organization: str) -> Organization:
    """Likewise, and it has signed what the federation asks of those who bring envoys in.

    Raises:
        UnknownEntityError: as ``check_takes_part``.
        AgreementError: likewise; or it has no Infrastructure User agreement in force, and the federation asks for one.
    """
    one = check_takes_part(hub, organization)
    if hub.needs_infrastructure_user:
        made = hub.agreements.all(AGREEMENTS.c.kind == Kind.INFRASTRUCTURE_USER.value)
        if in_force(made, Kind.INFRASTRUCTURE_USER, one.id, hub.now()) is None:
            raise AgreementError(f"{one.name} has no infrastructure-user agreement in force: no envoy of it joins")
    return one


def name_in_rosters(hub: Hub, members: IdentityStore, organization: Organization) -> str:
    """The name by which rosters know an organization: sums count organizations, and one that was renamed is one."""
    known = (members.identity(name) for name in hub.stations.of(organization.id))
    return next((one.organization for one in known if one is not None), organization.name)
