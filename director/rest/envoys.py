"""``/api/v1/envoys``: the sites of the organizations: invited, seen, and shut out.

An envoy that joined by ``director invite`` is nobody's until somebody who may edit any envoy says whose it is.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Annotated

from cryptography.hazmat.primitives import hashes
from fastapi import APIRouter, Path, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import IdentityError, NameTakenError, UnknownEntityError
from ...utils.identity import Role
from ...utils.join_file import join_file_text
from ...utils.messages import EnvoyName
from ..hub.hub import Hub
from ..hub.participation import check_may_bring_envoys, name_in_rosters
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from ..registrar import MAX_TTL_SECONDS, MIN_TTL_SECONDS
from ..revocations import Revocations
from .asking import Page, TheCaller, TheHub, ThePage, next_after
from .problems import documented
from .works import TheWorks, Works

router = APIRouter(prefix="/api/v1/envoys", tags=["envoys"], responses=documented(400, 401, 403, 413, 422, 429, 503))
_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"
Name = Annotated[str, Path(min_length=1, max_length=63, pattern=_PATTERN, description="Of the envoy.")]
_DAY_SECONDS = 86400.0


class State(Enum):
    """Is it a member?"""

    INVITED = "invited"  # claimed, and did not join yet
    MEMBER = "member"
    REVOKED = "revoked"


class EnvoyBody(BaseModel):
    """An envoy, as it is shown."""

    name: str
    organization_id: str | None = Field(description="None: nobody said whose it is.")
    organization: str = Field(description="As its certificate says; of one that did not join, as its invitation does.")
    state: State
    joined_at: float | None = Field(description="Seconds since 1970.")
    good_until: float | None = Field(description="When the last of its certificates ends; it renews them by itself.")
    revoked_at: float | None
    is_connected: bool
    silent_seconds: float | None = Field(description="None: not heard since the director started.")
    suspicion: str | None = Field(description="Why its audit log is not believed, so that it is not asked.")


class NewEnvoy(BaseModel):
    """Who is to join."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=63, pattern=_PATTERN)
    ttl_seconds: float = Field(7 * _DAY_SECONDS, ge=MIN_TTL_SECONDS, le=MAX_TTL_SECONDS, allow_inf_nan=False)
    reinstate: bool = Field(False, description="It was revoked, and is to join again with new keys.")
    organization_id: str | None = Field(None, min_length=1, max_length=32, description="The caller's own by default.")


class Invited(BaseModel):
    """A join file; its text is told once. It holds a key: hand it over like a password."""

    name: str
    organization_id: str
    expires_at: float = Field(description="Seconds since 1970.")
    root_sha256: str = Field(description="Of the federation's root: read it out over the phone.")
    join_file: str = Field(description="For `envoy join`; save it as NAME.join.")


class Whose(BaseModel):
    """An organization."""

    model_config = ConfigDict(extra="forbid")
    organization_id: str = Field(min_length=1, max_length=32)


class Shut(BaseModel):
    """Why."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$")


@router.get("")
def list_envoys(hub: TheHub, works: TheWorks, caller: TheCaller, page: ThePage) -> Page[EnvoyBody]:
    """All that the caller may see, in the order of their names."""
    own = caller.user.organization
    hub.admit(caller, Operation.VIEW, Resource.ENVOY, Target(own, hub.collaborations_of(own)))
    seen = _Seeing(hub, caller)
    found = [one for one in _envoys(hub, works) if one.name > page.last_id and seen.of(one.organization_id)][
        : page.limit
    ]
    return Page(items=found, next=next_after(found[-1].name) if len(found) == page.limit else None)


@router.post("", status_code=status.HTTP_201_CREATED, responses=documented(404, 409))
def invite_envoy(hub: TheHub, works: TheWorks, caller: TheCaller, new: NewEnvoy, response: Response) -> Invited:
    """A join file for a new envoy of an organization, or for one that is to come back."""
    of = new.organization_id or caller.user.organization
    hub.allow(caller, Operation.CREATE, Resource.ENVOY, Target(of, hub.collaborations_of(of)))
    organization = check_may_bring_envoys(hub, of)
    claimed = hub.stations.whose(new.name)
    if claimed not in {None, of}:
        raise NameTakenError(f"envoy {new.name} is another organization's")
    if claimed is None and works.members.identity(new.name) is not None:
        raise NameTakenError(f"{new.name} joined before, and nobody said whose it is: ask the director's operator")
    done = hub.did(caller, "envoy invited", target=new.name, organization_of=of, reinstate=new.reinstate)
    try:
        # An invitation whose file nobody was given is of no use to anybody: it may be made before all else is known.
        join = works.registrar.invite(
            new.name,
            name_in_rosters(hub, works.members, organization),
            Role.ENVOY,
            works.addresses,
            new.ttl_seconds,
            hub.now(),
            reinstate=new.reinstate,
        )
    except IdentityError as error:  # of the name, not of the caller
        raise NameTakenError(str(error)) from error
    hub.stations.take(new.name, of, hub.now(), done)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Location"] = f"/api/v1/envoys/{new.name}"
    return Invited(
        name=new.name,
        organization_id=of,
        expires_at=float(join.expires_at),
        root_sha256=works.root.fingerprint(hashes.SHA256()).hex(),
        join_file=join_file_text(join),
    )


@router.get("/{name}", responses=documented(404))
def show_envoy(hub: TheHub, works: TheWorks, caller: TheCaller, name: Name) -> EnvoyBody:
    """One envoy."""
    return _seen_one(hub, works, caller, name, Operation.VIEW)


@router.put("/{name}/organization", responses=documented(404, 409))
def assign_envoy(hub: TheHub, works: TheWorks, caller: TheCaller, name: Name, whose: Whose) -> EnvoyBody:
    """Say whose an envoy is that joined by the director's own invitation; once said, it stays."""
    _seen_one(hub, works, caller, name, Operation.EDIT)
    hub.organizations.get(whose.organization_id)
    done = hub.did(caller, "envoy assigned", target=name, organization_of=whose.organization_id)
    hub.stations.take(name, whose.organization_id, hub.now(), done)
    return _named(hub, works, name)


@router.delete("/{name}", status_code=status.HTTP_204_NO_CONTENT, responses=documented(404, 409))
def revoke_envoy(hub: TheHub, works: TheWorks, caller: TheCaller, name: Name, why: Shut) -> None:
    """Shut an envoy out, from its next call on: no call, no renewal, no place in the roster. Its join files too."""
    _seen_one(hub, works, caller, name, Operation.DELETE)

    def write_down() -> None:
        hub.did(caller, "envoy revoked", target=name)()
        hub.audit.revoked(name, why.reason, f"user:{caller.user.name}")

    Revocations(hub.engine).revoke(name, why.reason, hub.now(), write_down)


class _Seeing:
    """Whose envoys a caller sees; each organization is asked about once."""

    def __init__(self, hub: Hub, caller: Caller) -> None:
        self._hub, self._caller = hub, caller
        self._known: dict[str | None, bool] = {}

    def of(self, organization: str | None) -> bool:
        """Those of this one?"""
        if organization not in self._known:
            target = _target(self._hub, organization)
            self._known[organization] = self._hub.may(self._caller, Operation.VIEW, Resource.ENVOY, target)
        return self._known[organization]


def _target(hub: Hub, organization: str | None) -> Target:
    return Target() if organization is None else Target(organization, hub.collaborations_of(organization))


def _seen_one(hub: Hub, works: Works, caller: Caller, name: str, operation: Operation) -> EnvoyBody:
    """One envoy, that the caller may do this to.

    Raises:
        UnknownEntityError: there is none, or none that the caller may see.
        NotAuthorizedError: it may see it alone.
    """
    one = _named(hub, works, name)
    hub.allow(caller, operation, Resource.ENVOY, _target(hub, one.organization_id))
    return one


def _named(hub: Hub, works: Works, name: str) -> EnvoyBody:
    one = next((one for one in _envoys(hub, works) if one.name == name), None)
    if one is None:
        raise UnknownEntityError("there is no such envoy")
    return one


def _envoys(hub: Hub, works: Works) -> list[EnvoyBody]:
    """All there are, by name: those that somebody claimed, and those that joined."""
    now, suspicions = hub.now(), works.heads.suspicions
    claimed = {one.name: one for one in hub.stations.all()}
    joined = {one.name: one for one in works.members.all_identities() if one.role == Role.ENVOY.value}
    revoked = {one.name: one.revoked_at for one in Revocations(hub.engine).all() if one.lifted_at is None}
    named = {one.id: one.name for one in hub.organizations.all()}
    found = []
    for name in sorted(claimed.keys() | joined.keys()):
        station, member = claimed.get(name), joined.get(name)
        of = station.organization if station else None
        is_there, silent = works.coordinator.presence(EnvoyName(name))
        leaves = works.members.certificates(name, now) if member and name not in revoked else ()
        found.append(
            EnvoyBody(
                name=name,
                organization_id=of,
                organization=member.organization if member else named.get(of or "", ""),
                state=State.REVOKED if name in revoked else State.MEMBER if member else State.INVITED,
                joined_at=member.joined_at if member else None,
                good_until=max((one.expires_at for one in leaves if one.role == Role.ENVOY.value), default=None),
                revoked_at=revoked.get(name),
                is_connected=is_there,
                silent_seconds=silent if math.isfinite(silent) else None,
                suspicion=suspicions.get(EnvoyName(name)),
            )
        )
    return found
