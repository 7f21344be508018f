"""For which organization, envoy and run a federated call speaks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from sqlalchemy import select

from ...utils.errors import ConfigError, NotAuthorizedError, UnknownEntityError
from ...utils.identity import Role
from ...utils.messages import EnvoyName, RunId
from ...utils.proposal import proposal_of
from ..database import reading
from ..hub.hub import Hub
from ..hub.organizations import Status
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from ..hub.tables import TASKS
from ..records import RunRecord, RunState
from .works import Works

TaskQuery = Annotated[
    str | None, Query(max_length=63, description="A run; the latest one that may be seen by default.")
]


def speaks_for(hub: Hub, works: Works, caller: Caller, organization_id: str, envoy: str | None) -> EnvoyName:
    """The envoy of an organization that a caller speaks for.

    Args:
        hub: who takes part.
        works: who joined.
        caller: who asks.
        organization_id: whose envoy it is to be.
        envoy: which, where the organization has several.

    Raises:
        NotAuthorizedError: the caller may not; the organization takes no part; the envoy was revoked.
        UnknownEntityError: it has no such envoy, or none.
        ConfigError: it has several, and none is named.
    """
    hub.allow(caller, Operation.EDIT, Resource.ENVOY, Target(organization_id))
    organization = hub.organizations.get(organization_id)
    if organization.status is not Status.ACTIVE:
        raise NotAuthorizedError(f"{organization.name} is {organization.status.value}, and takes no part yet")
    own = hub.stations.of(organization_id)
    if envoy is not None and envoy not in own:
        raise UnknownEntityError("the organization has no such envoy")
    if not own:
        raise UnknownEntityError(
            "the organization has no envoy: POST /api/v1/federated/sites, or join one (POST /api/v1/envoys)"
        )
    if envoy is None and len(own) > 1:
        raise ConfigError(f"envoy: the organization has {len(own)} of them; say which")
    name = envoy or own[0]
    if not any(one.name == name and one.role == Role.ENVOY.value for one in works.members.identities()):
        raise NotAuthorizedError(f"{name} has not joined, or was revoked")
    return EnvoyName(name)


def sees_run(hub: Hub, caller: Caller, resource: Resource, record: RunRecord) -> bool:
    """May a caller see this of a run?

    A run that is a task is seen as its collaboration's. Any other was submitted at the director's machine: whose
    envoys it asks may see what they are sent anyway.
    """
    task = _target_of(hub, record.run)
    if task is not None:
        return hub.may(caller, Operation.VIEW, resource, task)
    if hub.may(caller, Operation.VIEW, resource, Target()):
        return True
    own = caller.user.organization
    if not hub.may(caller, Operation.VIEW, resource, Target(own)) or record.proposal is None:
        return False
    sites = proposal_of(record.proposal.content).sites
    stations = hub.stations.of(own)
    return any(not sites or one in sites for one in stations)


def seen_run(hub: Hub, works: Works, caller: Caller, resource: Resource, task: str | None) -> RunRecord:
    """One run: by its id, or the last one that began.

    Raises:
        UnknownEntityError: there is none that the caller may see.
    """
    found = works.history.runs()
    if task is not None:
        found = tuple(one for one in found if one.run == RunId(task))
    for record in reversed(found):
        if (task is not None or record.state is not RunState.QUEUED) and sees_run(hub, caller, resource, record):
            return record
    raise UnknownEntityError("there is no such task" if task is not None else "there is no task yet that you may see")


def _target_of(hub: Hub, run: RunId) -> Target | None:
    """Whose a run is; None where it is no task."""
    query = select(TASKS.c.organization, TASKS.c.collaboration, TASKS.c.user).where(TASKS.c.run == run)
    with reading(hub.engine) as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else Target(row.organization, frozenset([row.collaboration]), row.user)
