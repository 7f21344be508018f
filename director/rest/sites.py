"""``/api/v1/federated/sites``: envoys that call over HTTPS, where nothing but HTTP/1.1 gets through.

An organization that takes part registers a site with its API key: certificates come back, as they do to ``envoy join``.
Then the site says over HTTPS what other envoys say over gRPC: the bodies are the very same messages, and the very same
functions answer them (``envoy_calls``). A call needs a key of the organization whose envoy it is, and an envoy that was
not revoked. What a secure sum holds is signed by the site's own key, which no API key stands for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ...utils import messages as m
from ...utils.certificates import certificate_pem
from ...utils.errors import NameTakenError, NotAuthorizedError, UnknownEntityError
from ...utils.identity import PeerId, Role
from ..hub.participation import check_may_bring_envoys, check_takes_part, name_in_rosters
from ..hub.rules import Operation, Resource, Target
from .asking import TheCaller, TheHub, TheToken
from .base64_fields import Base64, bytes_of
from .problems import documented
from .works import TheWorks, Works

router = APIRouter(
    prefix="/api/v1/federated/sites", tags=["sites"], responses=documented(400, 401, 403, 409, 413, 422, 429, 503)
)
_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"
SiteName = Annotated[str, Path(min_length=1, max_length=63, pattern=_PATTERN, description="Of the envoy.")]
_AGAIN_SECONDS = 5.0  # how old what is known of the key of an open call may be
_MAX_REQUEST = 24 << 10


class NewSite(BaseModel):
    """A site's keys: the public halves; the private ones never leave it."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=63, pattern=_PATTERN)
    signing_request: Base64 = Field(min_length=1, max_length=_MAX_REQUEST, description="PKCS#10 of a P-256 key.")
    identity_key: Base64 = Field(min_length=44, max_length=44, description="Ed25519, 32 bytes.")
    identity_proof: Base64 = Field(min_length=88, max_length=88, description="It signed the requests.")
    renewal_request: Base64 = Field("", max_length=_MAX_REQUEST, description="PKCS#10 of another P-256 key.")

    def request(self) -> m.JoinRequest:
        """As a join says it."""
        return m.JoinRequest(
            bytes_of(self.signing_request, "signing_request"),
            bytes_of(self.identity_key, "identity_key"),
            bytes_of(self.identity_proof, "identity_proof"),
            bytes_of(self.renewal_request, "renewal_request"),
        )


class SiteBody(BaseModel):
    """What a site is given, and what it needs to know of the federation."""

    federation: str
    name: str
    organization: str
    chain: str = Field(description="PEM: the site's certificate, its issuer.")
    identity_certificate: str = Field(description="PEM.")
    renewal_certificate: str = Field(description="PEM; empty where none was asked for.")
    root: str = Field(description="PEM.")
    addresses: list[str] = Field(description="Where the same director speaks gRPC.")


@dataclass(frozen=True, slots=True)
class Site:
    """An envoy whose organization calls."""

    name: m.EnvoyName
    peer: PeerId
    certificate: str  # SHA-256 of its latest leaf
    works: Works
    again: Callable[[], None]  # raises where the key that opened the call is no good any more

    @contextmanager
    def admitted(self, and_check: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
        """One call; gives a check that it may go on."""
        with self.works.site_admission.admit(self.peer, self.certificate) as still:
            looked_at = time.monotonic()

            def check() -> None:
                nonlocal looked_at
                still()
                and_check()
                if time.monotonic() - looked_at > _AGAIN_SECONDS:
                    self.again()
                    looked_at = time.monotonic()

            yield check

    def answered(self, call: str, raw: bytes, and_check: Callable[[], None] = lambda: None) -> bytes:
        """One message in, one out."""
        with self.admitted(and_check) as check:
            return self.works.calls.answers[call](self.name, raw, check)


def site_of(hub: TheHub, works: TheWorks, caller: TheCaller, token: TheToken, name: SiteName) -> Site:
    """The envoy that a call is of.

    Raises:
        UnknownEntityError: there is none, or none that the caller may see.
        NotAuthorizedError: it is another organization's, or its own takes part no more, or the caller may not.
    """
    whose = hub.stations.whose(name)
    hub.allow(caller, Operation.EDIT, Resource.ENVOY, Target(whose))
    member = works.members.identity(name)
    if whose is None or member is None or member.role != Role.ENVOY.value:
        raise UnknownEntityError("there is no such envoy")
    if whose != caller.user.organization:
        raise NotAuthorizedError("an envoy is spoken for by its own organization alone")
    check_takes_part(hub, whose)

    def again() -> None:
        hub.sign_in.caller(token, hub.now())
        check_takes_part(hub, whose)

    peer = PeerId(hub.federation, Role.ENVOY, member.name)
    return Site(m.EnvoyName(member.name), peer, member.certificate_sha256, works, again)


TheSite = Annotated[Site, Depends(site_of)]


@router.post("", status_code=status.HTTP_201_CREATED)
def register_site(hub: TheHub, works: TheWorks, caller: TheCaller, new: NewSite, response: Response) -> SiteBody:
    """A new envoy of the caller's organization; the very same request is answered again, any other refused."""
    whose = caller.user.organization
    hub.allow(caller, Operation.CREATE, Resource.ENVOY, Target(whose))
    organization = check_may_bring_envoys(hub, whose)
    if hub.stations.whose(new.name) not in {None, whose}:
        raise NameTakenError(f"envoy {new.name} is another organization's")

    def claim() -> None:
        hub.stations.take(new.name, whose, hub.now(), hub.did(caller, "site registered", target=new.name))

    named = name_in_rosters(hub, works.members, organization)
    reply = works.registrar.register(new.name, named, new.request(), hub.now(), claim)
    response.headers["Location"] = f"/api/v1/federated/sites/{reply.name}"
    return SiteBody(
        federation=reply.federation,
        name=reply.name,
        organization=reply.organization,
        chain=reply.chain.decode("ascii"),
        identity_certificate=reply.identity_certificate.decode("ascii"),
        renewal_certificate=reply.renewal_certificate.decode("ascii"),
        root=certificate_pem(works.root).decode("ascii"),
        addresses=list(works.addresses),
    )
