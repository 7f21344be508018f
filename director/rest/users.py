"""``/api/v1/users``: people, and the roles that they have."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Connection

from ...utils.errors import ConfigError, NotAuthorizedError
from ..hub.hub import Hub
from ..hub.one_time_codes import make_secret, provisioning_uri, secret_text
from ..hub.passwords import MOST, check_new, hashed, turn
from ..hub.roles import OF_FEDERATION, PRESETS
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from ..hub.store import new_id
from ..hub.users import MAX_FULL_NAME, User, subject_of
from .asking import Page, TheCaller, TheHub, ThePage, TheVersion, next_after, tag
from .problems import documented
from .sessions import Asked, Why

router = APIRouter(prefix="/api/v1/users", tags=["users"], responses=documented(400, 401, 403, 413, 422, 429, 503))
UserId = Annotated[str, Path(min_length=1, max_length=32, description="Of the user.")]


class UserBody(BaseModel):
    """A user, as it is shown; never a secret of it."""

    user_id: str
    name: str
    full_name: str
    organization_id: str
    roles: list[str]
    has_password: bool
    has_codes: bool = Field(description="Signs in with an authenticator app too.")
    has_subject: bool = Field(description="May sign in through the federation's OpenID provider.")
    disabled_at: float | None
    created_at: float
    version: int


class NewUser(BaseModel):
    """Somebody who is to act for an organization."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=63)
    full_name: str = Field("", max_length=MAX_FULL_NAME)
    organization_id: str = Field(max_length=32)
    password: str | None = Field(None, max_length=MOST, json_schema_extra={"writeOnly": True})
    roles: list[str] = Field(default=[], max_length=20)
    subject: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Who the user is at the federation's OpenID provider. It cannot be changed later: else whoever may "
        "edit a user could sign in as that user.",
    )


class UserChange(BaseModel):
    """What is to be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    full_name: str | None = Field(None, max_length=MAX_FULL_NAME)
    roles: list[str] | None = Field(None, max_length=20)
    is_disabled: bool | None = None


class PasswordChange(BaseModel):
    """One's own; the old one proves who sits there."""

    model_config = ConfigDict(extra="forbid")
    old: str = Field(max_length=1024, json_schema_extra={"writeOnly": True})
    new: str = Field(max_length=MOST, json_schema_extra={"writeOnly": True})


class Proof(BaseModel):
    """One's own password: it proves who sits there."""

    model_config = ConfigDict(extra="forbid")
    password: str = Field(max_length=1024, json_schema_extra={"writeOnly": True})


class Codes(BaseModel):
    """What an authenticator app reads; told once."""

    provisioning_uri: str
    secret: str


def _shown(hub: TheHub, user: User) -> UserBody:
    return UserBody(
        user_id=user.id,
        name=user.name,
        full_name=user.full_name,
        organization_id=user.organization,
        roles=[role.name for role in hub.roles.of(user.id)],
        has_password=bool(user.password),
        has_codes=user.totp_secret is not None,
        has_subject=user.subject is not None,
        disabled_at=user.disabled_at,
        created_at=user.created_at,
        version=user.version,
    )


def _target(user: User) -> Target:
    return Target(user.organization, owner=user.id)


@router.get("")
def list_users(hub: TheHub, caller: TheCaller, page: ThePage) -> Page[UserBody]:
    """All that the caller may see, in the order of their ids."""
    own = Target(caller.user.organization, owner=caller.user.id)
    hub.admit(caller, Operation.VIEW, Resource.USER, own)
    only: tuple[ColumnElement[bool], ...] = ()
    if not hub.may(caller, Operation.VIEW, Resource.USER, Target()):
        its = hub.may(caller, Operation.VIEW, Resource.USER, Target(caller.user.organization))
        columns = hub.users.table.c
        only = (columns.organization == caller.user.organization if its else columns.id == caller.user.id,)
    found = hub.users.page(page.last_id, page.limit, *only)
    more = next_after(found[-1].id) if len(found) == page.limit else None
    return Page(items=[_shown(hub, one) for one in found], next=more)


@router.post("", status_code=status.HTTP_201_CREATED, responses=documented(404, 409))
def add_user(hub: TheHub, caller: TheCaller, new: NewUser, response: Response) -> UserBody:
    """A new user, with roles that grant no more than the caller has."""
    hub.allow(caller, Operation.CREATE, Resource.USER, Target(new.organization_id))
    hub.organizations.get(new.organization_id)
    _check_roles(hub, caller, new.roles, new.organization_id)
    if new.password is not None:
        check_new(new.password, new.name)
    user = User(
        new_id(),
        new.name,
        new.full_name,
        new.organization_id,
        "" if new.password is None else _kept(new.password),
        subject=_subject(hub, new.subject),
        created_at=hub.now(),
    )
    done = hub.did(caller, "user added", target=user.id, name=user.name, roles=sorted(new.roles))
    hub.users.add(user, done, partial(hub.roles.give, user.id, new.roles))
    response.headers["Location"], response.headers["ETag"] = f"/api/v1/users/{user.id}", tag(user.version)
    return _shown(hub, user)


@router.get("/{user_id}", responses=documented(404))
def show_user(hub: TheHub, caller: TheCaller, user_id: UserId, response: Response) -> UserBody:
    """One user."""
    user = hub.users.get(user_id)
    hub.allow(caller, Operation.VIEW, Resource.USER, _target(user))
    response.headers["ETag"] = tag(user.version)
    return _shown(hub, user)


@router.patch("/{user_id}", responses=documented(404, 409, 412))
def change_user(
    hub: TheHub, caller: TheCaller, user_id: UserId, change: UserChange, seen: TheVersion, response: Response
) -> UserBody:
    """Change a user: a name, the roles, or whether the user may sign in."""
    user = hub.users.get(user_id)
    hub.allow(caller, Operation.EDIT, Resource.USER, _target(user))
    if change.roles is not None or change.is_disabled is not None:
        _check_not_above(hub, caller, user)
    fields: dict[str, Any] = {} if change.full_name is None else {"full_name": change.full_name}
    if change.roles is not None:
        _check_roles(hub, caller, change.roles, user.organization)
    if change.is_disabled is not None:
        if change.is_disabled and user.id == caller.user.id:
            raise ConfigError("is_disabled: nobody disables themselves; another administrator does")
        fields["disabled_at"] = hub.now() if change.is_disabled else None
    done = hub.did(caller, "user changed", target=user_id, **_said(change))
    after = hub.users.change(user_id, seen, done, partial(_give, hub, user_id, change.roles), **fields)
    if change.is_disabled:
        hub.sign_in.sign_out_everywhere(user_id)
    response.headers["ETag"] = tag(after.version)
    return _shown(hub, after)


@router.get("/{user_id}/may", responses=documented(404))
def explain_user(hub: TheHub, caller: TheCaller, user_id: UserId, asked: Annotated[Asked, Query()]) -> Why:
    """May this user do that, signed in, and why? For whoever may see the user and the roles of its organization."""
    user = hub.users.get(user_id)
    hub.allow(caller, Operation.VIEW, Resource.USER, _target(user))
    hub.allow(caller, Operation.VIEW, Resource.ROLE, Target(user.organization, owner=user.id))
    if user.disabled_at is not None:
        return Why(is_allowed=False, why="this user is disabled", rule=None)
    return asked.by(hub.sign_in.actor(user.id))


@router.put("/{user_id}/password", status_code=status.HTTP_204_NO_CONTENT, responses=documented(404, 412))
def change_password(hub: TheHub, caller: TheCaller, user_id: UserId, change: PasswordChange) -> None:
    """One's own password; all sessions end."""
    user = _oneself(hub, caller, user_id)
    hub.sign_in.prove(user, change.old, hub.now())
    check_new(change.new, user.name)
    done = hub.did(caller, "password changed", target=user_id)
    hub.users.change(user_id, user.version, done, password=_kept(change.new))
    hub.sign_in.sign_out_everywhere(user_id)


@router.post("/{user_id}/codes", status_code=status.HTTP_201_CREATED, responses=documented(404, 412))
def make_codes(hub: TheHub, caller: TheCaller, user_id: UserId, proof: Proof, response: Response) -> Codes:
    """One's own authenticator app: from the next sign-in on its code is asked for."""
    user = _oneself(hub, caller, user_id)
    hub.sign_in.prove(user, proof.password, hub.now())
    secret = make_secret(hub.random)
    done = hub.did(caller, "codes made", target=user_id)
    hub.users.change(user_id, user.version, done, totp_secret=secret, totp_step=-1)
    response.headers["Cache-Control"] = "no-store"
    return Codes(provisioning_uri=provisioning_uri(secret, user.name, hub.federation), secret=secret_text(secret))


@router.delete("/{user_id}/codes", status_code=status.HTTP_204_NO_CONTENT, responses=documented(404, 412))
def forget_codes(hub: TheHub, caller: TheCaller, user_id: UserId) -> None:
    """Of a user who lost the app: by whoever may edit the user, not by the user."""
    user = hub.users.get(user_id)
    hub.allow(caller, Operation.EDIT, Resource.USER, _target(user))
    _check_not_above(hub, caller, user)
    done = hub.did(caller, "codes forgotten", target=user_id)
    hub.users.change(user_id, user.version, done, totp_secret=None, totp_step=-1)
    hub.sign_in.sign_out_everywhere(user_id)


def _subject(hub: TheHub, subject: str | None) -> str | None:
    if subject is None:
        return None
    if hub.device_sign_ins is None:
        raise ConfigError("subject: this federation has no OpenID provider ([open_id] in director.toml)")
    return subject_of(hub.device_sign_ins.provider.issuer, subject)


def _kept(password: str) -> str:
    with turn():
        return hashed(password)


def _said(change: UserChange) -> dict[str, Any]:
    """Of a change, for the audit log: which fields, and what decides what the user may."""
    given = change.model_dump(exclude_none=True)
    said = {name: given[name] for name in ("roles", "is_disabled") if name in given}
    if change.roles is not None:
        said["roles"] = sorted(set(change.roles))
    return {"fields": sorted(given)} | said


def _give(hub: Hub, user: str, roles: list[str] | None, connection: Connection) -> None:
    if roles is not None:
        hub.roles.give(user, roles, connection)


def _oneself(hub: TheHub, caller: Caller, user_id: str) -> User:
    """What a user does about itself, signed in: a key that leaked changes no password."""
    if caller.user.id != user_id or caller.key is not None:
        user = hub.users.get(user_id)
        hub.allow(caller, Operation.VIEW, Resource.USER, _target(user))
        raise NotAuthorizedError("only the user, signed in and not by an API key")
    return caller.user


def _check_not_above(hub: TheHub, caller: Caller, user: User) -> None:
    """Who has a role that reaches beyond an organization is not that organization's to lock out or to weaken."""
    if user.id != caller.user.id and any(role.name in OF_FEDERATION for role in hub.roles.of(user.id)):
        hub.allow(caller, Operation.APPROVE, Resource.ROLE, Target())


def _check_roles(hub: TheHub, caller: Caller, names: list[str], organization: str) -> None:
    """Who may appoint may give any preset within that scope; of other roles nobody gives more than they have.

    Nor does an API key give more than the key is for: else a key to make users would be worth an administrator.
    """
    for name, role in hub.roles.find(names, organization).items():
        if name in PRESETS:
            hub.allow(caller, Operation.APPROVE, Resource.ROLE, Target(None if name in OF_FEDERATION else organization))
        if name in PRESETS and caller.key is None:
            continue
        if lacking := caller.actor.may_hand_on(role.rules):
            raise NotAuthorizedError(
                f"role {name} holds {lacking[0]}, which you do not have: nobody gives more than that"
            )
