"""``/api/v1/sessions`` and ``/api/v1/me``: signing in and out, and who one is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Query, Response, status
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import ConfigError, UnknownEntityError
from ..hub.rules import Actor, Decision, Operation, Resource, Target, decide
from ..hub.users import subject_of
from .asking import TheCaller, TheHub, TheToken
from .problems import documented

if TYPE_CHECKING:
    from ..hub.device_sign_in import DeviceSignIns, Pending  # of the extra "oidc"

_NO_STORE = {"Cache-Control": "no-store"}
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


class DeviceSignIn(BaseModel):
    """A sign-in through the federation's OpenID provider, until it is finished."""

    sign_in_id: str = Field(description="Ask with it whether the user has finished.")
    user_code: str = Field(description="The user types it at `verification_uri`.")
    verification_uri: str
    verification_uri_complete: str = Field(description="The same with the code in it; empty where there is none.")
    expires_at: float = Field(description="Seconds since 1970.")
    interval: float = Field(description="Seconds to wait before asking again.")

    @classmethod
    def of(cls, pending: Pending) -> DeviceSignIn:
        """As it is shown; never the device code."""
        code = pending.code
        return cls(
            sign_in_id=pending.id,
            user_code=code.user_code,
            verification_uri=code.verification_uri,
            verification_uri_complete=code.verification_uri_complete,
            expires_at=code.expires_at,
            interval=code.interval,
        )


class Me(BaseModel):
    """Who asks."""

    federation: str
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

    @classmethod
    def of(cls, decision: Decision) -> Why:
        """As it is shown."""
        rule = str(decision.rule) if decision.rule else None
        return cls(is_allowed=decision.is_allowed, why=decision.why, rule=rule)


class Asked(BaseModel):
    """Whether this may be done, to what."""

    model_config = ConfigDict(extra="forbid")
    operation: Operation
    resource: Resource
    organization_id: str | None = Field(None, max_length=32, description="Whose thing it is.")
    collaboration_id: str | None = Field(None, max_length=32, description="That it belongs to.")
    owner_id: str | None = Field(None, max_length=32, description="The user who made it, or whom it is about.")

    def by(self, actor: Actor) -> Why:
        """Of somebody."""
        of = frozenset([self.collaboration_id]) if self.collaboration_id else frozenset[str]()
        target = Target(self.organization_id, of, self.owner_id)
        return Why.of(decide(actor, self.operation, self.resource, target))


@router.post("/sessions", status_code=status.HTTP_201_CREATED)
def open_session(hub: TheHub, body: SignInBody, response: Response) -> SessionBody:
    """Sign in. Whatever is wrong, the answer is the same."""
    session = hub.sign_in.sign_in(body.name, body.password, body.code, hub.now())
    response.headers["Cache-Control"] = "no-store"
    return SessionBody(token=session.token, expires_at=session.expires_at)


@router.post("/sessions/device", status_code=status.HTTP_201_CREATED, responses=documented(404))
def begin_device_sign_in(hub: TheHub, response: Response) -> DeviceSignIn:
    """Begin to sign in through the federation's OpenID provider (RFC 8628)."""
    response.headers["Cache-Control"] = "no-store"
    return DeviceSignIn.of(_device_sign_ins(hub).begin())


@router.post(
    "/sessions/device/{sign_in_id}",
    status_code=status.HTTP_201_CREATED,
    response_model=SessionBody,
    responses={**documented(404), 202: {"model": DeviceSignIn, "description": "Not finished yet"}},
)
def finish_device_sign_in(
    hub: TheHub, sign_in_id: Annotated[str, Path(max_length=64)], response: Response
) -> SessionBody | JSONResponse:
    """Ask whether the user has finished: a session if so, and the sign-in as it stands (202) if not."""
    sign_ins = _device_sign_ins(hub)
    found = sign_ins.finish(sign_in_id)
    if not isinstance(found, str):
        return JSONResponse(DeviceSignIn.of(found).model_dump(), status.HTTP_202_ACCEPTED, _NO_STORE)
    session = hub.sign_in.by_subject(subject_of(sign_ins.provider.issuer, found), hub.now())
    response.headers.update(_NO_STORE)
    return SessionBody(token=session.token, expires_at=session.expires_at)


def _device_sign_ins(hub: TheHub) -> DeviceSignIns:
    if hub.device_sign_ins is None:
        raise UnknownEntityError("this federation has no OpenID provider: sign in by name and password")
    return hub.device_sign_ins


@router.delete("/sessions/current", status_code=status.HTTP_204_NO_CONTENT)
def end_session(hub: TheHub, caller: TheCaller, token: TheToken) -> None:
    """Sign out."""
    if caller.key is not None:
        raise ConfigError("an API key has no session; delete the key itself")
    hub.sign_in.sign_out(token)


@router.get("/me")
def show_me(hub: TheHub, caller: TheCaller) -> Me:
    """Who asks, and with which roles."""
    user, actor = caller.user, caller.actor
    return Me(
        federation=hub.federation,
        user_id=user.id,
        name=user.name,
        full_name=user.full_name,
        organization_id=user.organization,
        collaborations=sorted(actor.collaborations),
        roles=[role.name for role in actor.roles],
        api_key=caller.key,
    )


@router.get("/me/may")
def explain(caller: TheCaller, asked: Annotated[Asked, Query()]) -> Why:
    """May the caller do this, and why?"""
    return asked.by(caller.actor)
