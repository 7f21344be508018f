"""``/api/v1/me/identity``: the key that a user signs proposals and patches with, certified."""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import APIRouter, status
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...utils.certificates import certificate_pem
from ...utils.errors import NotAuthorizedError
from ...utils.identity import expires_at
from ..hub.rules import Operation, Resource
from .asking import TheCaller, TheHub
from .documents import is_base64
from .problems import documented
from .works import TheWorks

router = APIRouter(
    prefix="/api/v1/me/identity", tags=["sign-in"], responses=documented(400, 401, 403, 409, 413, 422, 429, 503)
)


class IdentityRequest(BaseModel):
    """A key, and that the caller holds it."""

    model_config = ConfigDict(extra="forbid")
    identity_key: Annotated[
        str, Field(max_length=44, description="Ed25519 public key, 32 bytes in base64."), AfterValidator(is_base64)
    ]
    identity_proof: Annotated[
        str,
        Field(
            max_length=88,
            description="The key's signature, 64 bytes in base64, of `fedveil-identity/1`, a null byte and the"
            ' canonical JSON `{"user":"spiffe://FEDERATION/operator/NAME"}`.',
        ),
        AfterValidator(is_base64),
    ]


class IdentityBody(BaseModel):
    """What signs in the caller's name from now on, and what else a client has to know."""

    federation: str
    name: str = Field(description="As it stands in the certificate.")
    chain: str = Field(description="PEM: the identity certificate, then the issuer's.")
    root: str = Field(description="PEM: what every chain of the federation leads to.")
    addresses: list[str] = Field(description="host:port of the director for envoys.")
    expires_at: float = Field(description="Seconds since 1970.")


@router.post("", status_code=status.HTTP_201_CREATED)
def certify(hub: TheHub, caller: TheCaller, works: TheWorks, asked: IdentityRequest) -> IdentityBody:
    """Certify the caller's own key. Another key takes the place of the one before, whose signatures are refused."""
    if not caller.actor.grants(Operation.CREATE, Resource.PLAN):
        raise NotAuthorizedError("no rule about create:plan, and a key is certified for whoever may propose plans")
    organization = hub.organizations.get(caller.user.organization)
    known = works.members.identity(caller.user.name)
    if caller.key is not None and known is not None and known.identity_key != base64.b64decode(asked.identity_key):
        raise NotAuthorizedError("an API key takes no signing key's place: sign in, and certify the new one then")
    key, proof = base64.b64decode(asked.identity_key), base64.b64decode(asked.identity_proof)
    made = works.registrar.certify(caller.user.name, organization.name, key, proof, hub.now())
    return IdentityBody(
        federation=hub.federation,
        name=caller.user.name,
        chain=certificate_pem(made.leaf, made.issuer).decode("ascii"),
        root=certificate_pem(works.root).decode("ascii"),
        addresses=list(works.addresses),
        expires_at=expires_at(made.leaf),
    )
