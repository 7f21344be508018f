"""``POST /api/v1/federated/organizations``: a newcomer says who it is, and waits until somebody lets it in.

No key is needed, since a newcomer has none. What nobody vouches for is bounded: a few an hour from one address, so many
that wait in all, and nothing comes of it: no user, no key, no right, until an admin makes the organization active.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, status
from fastapi.security.http import HTTPAuthorizationCredentials
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import TooManyCallsError
from ..hub.encryption_keys import MAX_TEXT, fingerprint, read_encryption_key
from ..hub.organizations import MAX_LINE, MAX_NAME, Organization, Status
from ..hub.rules import Operation, Resource, Target
from ..hub.store import new_id
from ..hub.tables import ORGANIZATIONS
from .asking import BEARER, TheHub
from .limits import Buckets
from .problems import documented

router = APIRouter(
    prefix="/api/v1/federated/organizations",
    tags=["federated"],
    responses=documented(400, 401, 403, 409, 413, 422, 429, 503),
)
MAX_WAITING = 100
"""Organizations that registered themselves and that nobody looked at yet."""
AN_HOUR, AT_ONCE = 6.0, 6.0
"""Registrations without a key from one address."""


class NewOrganization(BaseModel):
    """Who wants to take part."""

    model_config = ConfigDict(extra="forbid")
    organization_name: str = Field(min_length=1, max_length=MAX_NAME)
    endpoint: str | None = Field(
        None, max_length=MAX_LINE, description="Where it can be reached; nothing calls it. None: it only calls out."
    )
    encryption_key: str = Field(
        min_length=1,
        max_length=MAX_TEXT,
        description="An X25519 public key: as age writes it, PEM, or 32 bytes in hexadecimal or base64.",
    )


class Registered(BaseModel):
    """What became of it."""

    organization_id: str
    status: Status = Field(description="It takes part once it is active.")
    fingerprint: str = Field(description="SHA-256 of the encryption key: compare it with your own.")


def new_registrations() -> Buckets:
    """How often each address may register."""
    return Buckets(AN_HOUR / 3600, AT_ONCE)


@router.post("", status_code=status.HTTP_201_CREATED, openapi_extra={"security": [{}]})
def register_with_federation(
    hub: TheHub,
    request: Request,
    new: NewOrganization,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    response: Response,
) -> Registered:
    """A new organization, which waits to be let in; without a key too. The name must be one that nobody has yet."""
    key = read_encryption_key(new.encryption_key)
    made = Organization(
        new_id(), new.organization_name, endpoint=new.endpoint or "", encryption_key=key, created_at=hub.now()
    )
    said = {"target": made.id, "name": made.name, "fingerprint": fingerprint(key)}
    if credentials is not None:
        caller = hub.sign_in.caller(credentials.credentials, hub.now())
        hub.allow(caller, Operation.CREATE, Resource.ORGANIZATION, Target())
        hub.organizations.add(made, hub.did(caller, "organization registered", **said))
    else:
        _check_room(hub, request)
        hub.organizations.add(made, lambda: hub.audit.operator("anybody", "organization registered", said))
    response.headers["Location"] = f"/api/v1/organizations/{made.id}"
    return Registered(organization_id=made.id, status=made.status, fingerprint=fingerprint(key))


def _check_room(hub: TheHub, request: Request) -> None:
    """May somebody whom nobody knows register now?

    Raises:
        TooManyCallsError: this address, or all newcomers together, did so too often.
    """
    buckets: Buckets = request.app.state.registrations
    wait = buckets.take(request.client.host if request.client else "", hub.now())
    if wait:
        raise TooManyCallsError(f"this address registered too often: wait {wait:.0f} s")
    if len(hub.organizations.page("", MAX_WAITING, ORGANIZATIONS.c.status == Status.PENDING.value)) >= MAX_WAITING:
        raise TooManyCallsError(f"{MAX_WAITING} organizations wait to be let in: ask an admin of the federation")
