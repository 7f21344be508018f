"""``/api/v1/sessions`` and ``/api/v1/me``: signing in and out, and who one is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import ConfigError
from ..hub.rules import Operation, Resource, Target, decide
from .asking import TheCaller, TheHub, TheToken
from .problems import documented

router = APIRouter(prefix="/api/v1", tags=["sign-in"], responses=documented(400, 401, 413, 422, 429, 503))


class SignInBody(BaseModel):
    """Name, password, and the code of the authenticator app where the user has one."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=63)
    password: str = Field(max_length=1024, json_schema_extra={"writeOnly": True})
    code: str = Field("", max_length=16)


class SessionBody(BaseModel):
    """A session; the token is told once."""

    token: str
    expires_at: float = Field(description="Seconds since 1970.")


class Me(BaseModel):
    """Who asks."""

    user_id: str
    name: str
    full_name: str
    organization_id: str
    collaborations: list[str]
    roles: list[str]
    api_key: str | None = Field(description="The id of the key that was used; none: signed in.")


class Why(BaseModel):
    """Whether something is allowed, and by which rule of which role, or why not."""

    is_allowed: bool
    why: str
    rule: str | None


@router.post("/sessions", status_code=status.HTTP_201_CREATED)
def open_session(hub: TheHub, body: SignInBody, response: Response) -> SessionBody:
    """Sign in. Whatever is wrong, the answer is the same."""
    session = hub.sign_in.sign_in(body.name, body.password, body.code, hub.now())
    response.headers["Cache-Control"] = "no-store"
    return SessionBody(token=session.token, expires_at=session.expires_at)


@router.delete("/sessions/current", status_code=status.HTTP_204_NO_CONTENT)
def end_session(hub: TheHub, caller: TheCaller, token: TheToken) -> None:
    """Sign out."""
    if caller.key is not None:
        raise ConfigError("an API key has no session; delete the key itself")
    hub.sign_in.sign_out(token)


@router.get("/me")
def show_me(caller: TheCaller) -> Me:
    """Who asks, and with which roles."""
    user, actor = caller.user, caller.actor
    return Me(
        user_id=user.id,
        name=user.name,
        full_name=user.full_name,
        organization_id=user.organization,
        collaborations=sorted(actor.collaborations),
        roles=[role.name for role in actor.roles],
        api_key=caller.key,
    )


@router.get("/me/may")
def explain(
    caller: TheCaller,
    operation: Operation,
    resource: Resource,
    organization_id: Annotated[str | None, Query(max_length=32, description="Whose thing it is.")] = None,
    collaboration_id: Annotated[str | None, Query(max_length=32, description="That it belongs to.")] = None,
) -> Why:
    """May the caller do this, and why?"""
    of = frozenset([collaboration_id]) if collaboration_id else frozenset[str]()
    decision = decide(caller.actor, operation, resource, Target(organization_id, of))
    return Why(is_allowed=decision.is_allowed, why=decision.why, rule=str(decision.rule) if decision.rule else None)
