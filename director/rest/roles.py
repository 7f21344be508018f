"""``/api/v1/roles``: the presets, and what organizations made of the same rules; who has them, and what they allow."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import ConfigError, NotAuthorizedError
from ..hub.hub import Hub
from ..hub.roles import OF_FEDERATION, PRESETS
from ..hub.rules import Operation, Resource, Role, Rule, Target
from ..hub.sign_in import Caller
from ..hub.store import new_id
from ..hub.users import OwnRole
from .asking import Page, TheCaller, TheHub, ThePage, TheVersion, next_after, tag
from .problems import documented

router = APIRouter(prefix="/api/v1/roles", tags=["roles"], responses=documented(400, 401, 403, 413, 422, 429, 503))
RoleId = Annotated[str, Path(min_length=1, max_length=63, description="Of the role; a preset's is its name.")]
RuleText = Annotated[str, Field(max_length=64, examples=["view:model:collaboration"])]
_MOST_RULES = len(Operation) * len(Resource)


class RoleBody(BaseModel):
    """A role."""

    role_id: str
    name: str
    organization_id: str | None = Field(description="Whose users may have it; None: a preset, for all.")
    is_preset: bool
    of_federation: bool = Field(description="To give it takes approve:role:federation.")
    rules: list[str]
    version: int

    @classmethod
    def of(cls, one: OwnRole) -> RoleBody:
        """As it is shown."""
        return cls(
            role_id=one.id,
            name=one.name,
            organization_id=one.organization,
            is_preset=False,
            of_federation=False,
            rules=sorted(map(str, one.rules)),
            version=one.version,
        )

    @classmethod
    def preset(cls, role: Role) -> RoleBody:
        """One that is the same in every federation."""
        return cls(
            role_id=role.name,
            name=role.name,
            organization_id=None,
            is_preset=True,
            of_federation=role.name in OF_FEDERATION,
            rules=sorted(map(str, role.rules)),
            version=1,
        )


class NewRole(BaseModel):
    """Rules under a name; none that whoever makes it lacks."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=63)
    rules: list[RuleText] = Field(min_length=1, max_length=_MOST_RULES)
    organization_id: str | None = Field(None, min_length=1, max_length=32, description="The caller's own by default.")


class RoleChange(BaseModel):
    """What is to be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(None, max_length=63)
    rules: list[RuleText] | None = Field(None, min_length=1, max_length=_MOST_RULES)


class Cell(BaseModel):
    """One operation on one sort of thing."""

    operation: Operation
    resource: Resource
    scope: str | None = Field(description="own, organization, collaboration, federation; None: it may not.")


class RuleTable(BaseModel):
    """All that a role allows and does not, and whom the caller knows to have it."""

    role_id: str
    cells: list[Cell]
    user_ids: list[str]


@router.get("")
def list_roles(hub: TheHub, caller: TheCaller, page: ThePage) -> Page[RoleBody]:
    """The presets, on the first page, and the roles of organizations that the caller may see."""
    own = caller.user.organization
    hub.admit(caller, Operation.VIEW, Resource.ROLE, Target(own))
    everywhere = hub.may(caller, Operation.VIEW, Resource.ROLE, Target())
    only = () if everywhere else (hub.own_roles.table.c.organization == own,)
    found = hub.own_roles.page(page.last_id, page.limit, *only)
    presets = [] if page.after else [RoleBody.preset(role) for role in PRESETS.values()]
    more = next_after(found[-1].id) if len(found) == page.limit else None
    return Page(items=presets + [RoleBody.of(one) for one in found], next=more)


@router.post("", status_code=status.HTTP_201_CREATED, responses=documented(404, 409))
def make_role(hub: TheHub, caller: TheCaller, new: NewRole, response: Response) -> RoleBody:
    """A role of an organization's own; nobody puts more into it than they have."""
    of, rules = new.organization_id or caller.user.organization, _rules(new.rules)
    hub.allow(caller, Operation.CREATE, Resource.ROLE, Target(of))
    hub.organizations.get(of)
    _check_hands_on(caller, rules)
    made = OwnRole(new_id(), new.name, of, rules)
    done = hub.did(caller, "role made", target=made.id, name=made.name, rules=sorted(map(str, rules)))
    hub.own_roles.add(made, done)
    response.headers["Location"], response.headers["ETag"] = f"/api/v1/roles/{made.id}", tag(made.version)
    return RoleBody.of(made)


@router.get("/{role_id}", responses=documented(404))
def show_role(hub: TheHub, caller: TheCaller, role_id: RoleId, response: Response) -> RoleBody:
    """One role."""
    if role_id in PRESETS:
        hub.admit(caller, Operation.VIEW, Resource.ROLE, Target(caller.user.organization))
        return RoleBody.preset(PRESETS[role_id])
    one = _own(hub, caller, role_id, Operation.VIEW)
    response.headers["ETag"] = tag(one.version)
    return RoleBody.of(one)


@router.get("/{role_id}/rules", responses=documented(404))
def tabulate_role(hub: TheHub, caller: TheCaller, role_id: RoleId) -> RuleTable:
    """Every operation on every sort of thing: within which scope the role allows it, or that it does not."""
    if role_id in PRESETS:
        hub.admit(caller, Operation.VIEW, Resource.ROLE, Target(caller.user.organization))
        rules = PRESETS[role_id].rules
    else:
        rules = _own(hub, caller, role_id, Operation.VIEW).rules
    widest: dict[tuple[Operation, Resource], Rule] = {}
    for rule in sorted(rules, key=lambda one: one.scope):
        widest[rule.operation, rule.resource] = rule
    cells = [
        Cell(operation=operation, resource=resource, scope=rule.scope.name.lower() if rule else None)
        for operation in Operation
        for resource in Resource
        for rule in [widest.get((operation, resource))]
    ]
    users = [
        user.id
        for user in hub.users.all(hub.users.among(hub.roles.holders(role_id)))
        if hub.may(caller, Operation.VIEW, Resource.USER, Target(user.organization, owner=user.id))
    ]
    return RuleTable(role_id=role_id, cells=cells, user_ids=users)


@router.patch("/{role_id}", responses=documented(404, 409, 412))
def change_role(
    hub: TheHub, caller: TheCaller, role_id: RoleId, change: RoleChange, seen: TheVersion, response: Response
) -> RoleBody:
    """Another name, or other rules: at once, for all who have it. Nobody adds a rule that they lack."""
    one = _own(hub, caller, role_id, Operation.EDIT)
    fields: dict[str, Any] = {} if change.name is None else {"name": change.name}
    if change.rules is not None:
        fields["rules"] = _rules(change.rules)
        _check_hands_on(caller, fields["rules"] - one.rules)
    rules = sorted(map(str, fields.get("rules", one.rules)))
    done = hub.did(caller, "role changed", target=one.id, fields=sorted(fields), rules=rules)
    after = hub.own_roles.change(one.id, seen, done, **fields)
    response.headers["ETag"] = tag(after.version)
    return RoleBody.of(after)


@router.delete("/{role_id}", status_code=status.HTTP_204_NO_CONTENT, responses=documented(404, 412))
def delete_role(hub: TheHub, caller: TheCaller, role_id: RoleId, seen: TheVersion) -> None:
    """Nobody has it any more, from their next call on."""
    one = _own(hub, caller, role_id, Operation.DELETE)
    hub.roles.delete(one.id, seen, hub.did(caller, "role deleted", target=one.id, name=one.name))


def _own(hub: Hub, caller: Caller, role_id: str, operation: Operation) -> OwnRole:
    if role_id in PRESETS:
        hub.allow(caller, operation, Resource.ROLE, Target(caller.user.organization))
        raise ConfigError(f"{role_id} is a preset, the same in every federation: make a role of your own")
    one = hub.own_roles.get(role_id)
    hub.allow(caller, operation, Resource.ROLE, Target(one.organization))
    return one


def _rules(texts: list[str]) -> frozenset[Rule]:
    return frozenset(map(Rule.parse, texts))


def _check_hands_on(caller: Caller, rules: frozenset[Rule]) -> None:
    if lacking := caller.actor.may_hand_on(sorted(rules, key=str)):
        raise NotAuthorizedError(
            f"you lack {', '.join(map(str, lacking[:5]))}: nobody puts more into a role than they have"
        )
