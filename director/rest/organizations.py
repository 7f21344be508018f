"""``/api/v1/organizations``: who takes part."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ..hub.encryption_keys import age_text, fingerprint, read_encryption_key
from ..hub.organizations import MAX_LINE, MAX_NAME, Organization, Status
from ..hub.rules import Operation, Resource, Target
from ..hub.store import new_id
from .asking import Page, TheCaller, TheHub, ThePage, TheVersion, next_after, tag
from .problems import documented

router = APIRouter(
    prefix="/api/v1/organizations", tags=["organizations"], responses=documented(400, 401, 403, 413, 422, 429, 503)
)
OrganizationId = Annotated[str, Path(min_length=1, max_length=32, description="Of the organization.")]


class OrganizationBody(BaseModel):
    """An organization, as it is shown."""

    organization_id: str
    name: str
    contact: str
    data_protection_officer: str
    endpoint: str | None = Field(description="None: it only calls out.")
    encryption_key: str | None = Field(description="X25519, as age writes it.")
    fingerprint: str | None
    status: Status
    created_at: float = Field(description="Seconds since 1970.")
    version: int

    @classmethod
    def of(cls, one: Organization) -> OrganizationBody:
        """As it is shown."""
        key = one.encryption_key
        return cls(
            organization_id=one.id,
            name=one.name,
            contact=one.contact,
            data_protection_officer=one.data_protection_officer,
            endpoint=one.endpoint or None,
            encryption_key=age_text(key) if key else None,
            fingerprint=fingerprint(key) if key else None,
            status=one.status,
            created_at=one.created_at,
            version=one.version,
        )


class NewOrganization(BaseModel):
    """What is said of an organization that is registered."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=MAX_NAME)
    contact: str = Field("", max_length=MAX_LINE)
    data_protection_officer: str = Field("", max_length=MAX_LINE)
    endpoint: str = Field("", max_length=MAX_LINE)
    encryption_key: str | None = Field(None, max_length=1024)


class OrganizationChange(BaseModel):
    """What is to be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(None, min_length=1, max_length=MAX_NAME)
    contact: str | None = Field(None, max_length=MAX_LINE)
    data_protection_officer: str | None = Field(None, max_length=MAX_LINE)
    endpoint: str | None = Field(None, max_length=MAX_LINE)
    encryption_key: str | None = Field(None, max_length=1024)
    status: Status | None = Field(None, description="For whoever may approve organizations.")


@router.get("")
def list_organizations(hub: TheHub, caller: TheCaller, page: ThePage) -> Page[OrganizationBody]:
    """All that the caller may see, in the order of their ids."""
    hub.admit(caller, Operation.VIEW, Resource.ORGANIZATION, Target(caller.user.organization))
    everywhere = hub.may(caller, Operation.VIEW, Resource.ORGANIZATION, Target())
    only = () if everywhere else (hub.organizations.among([caller.user.organization]),)
    found = hub.organizations.page(page.last_id, page.limit, *only)
    more = next_after(found[-1].id) if len(found) == page.limit else None
    return Page(items=[OrganizationBody.of(one) for one in found], next=more)


@router.post("", status_code=status.HTTP_201_CREATED, responses=documented(409))
def register_organization(hub: TheHub, caller: TheCaller, new: NewOrganization, response: Response) -> OrganizationBody:
    """A new organization; it takes part once somebody approves it."""
    hub.allow(caller, Operation.CREATE, Resource.ORGANIZATION, Target())
    key = None if new.encryption_key is None else read_encryption_key(new.encryption_key)
    fields = new.model_dump(exclude={"encryption_key"})
    made = Organization(new_id(), **fields, encryption_key=key, created_at=hub.now())
    hub.organizations.add(made, hub.did(caller, "organization registered", target=made.id, name=made.name))
    response.headers["Location"] = f"/api/v1/organizations/{made.id}"
    response.headers["ETag"] = tag(made.version)
    return OrganizationBody.of(made)


@router.get("/{organization_id}", responses=documented(404))
def show_organization(
    hub: TheHub, caller: TheCaller, organization_id: OrganizationId, response: Response
) -> OrganizationBody:
    """One organization."""
    hub.allow(caller, Operation.VIEW, Resource.ORGANIZATION, Target(organization_id))
    one = hub.organizations.get(organization_id)
    response.headers["ETag"] = tag(one.version)
    return OrganizationBody.of(one)


@router.patch("/{organization_id}", responses=documented(404, 409, 412))
def change_organization(
    hub: TheHub,
    caller: TheCaller,
    organization_id: OrganizationId,
    change: OrganizationChange,
    seen: TheVersion,
    response: Response,
) -> OrganizationBody:
    """Change some of it; its status is for those who may approve organizations."""
    said: dict[str, Any] = change.model_dump(exclude_none=True)
    if said.keys() - {"status"} or not said:
        hub.allow(caller, Operation.EDIT, Resource.ORGANIZATION, Target(organization_id))
    if "status" in said:
        hub.allow(caller, Operation.APPROVE, Resource.ORGANIZATION, Target(organization_id))
    if "encryption_key" in said:
        said["encryption_key"] = read_encryption_key(said["encryption_key"])
    done = hub.did(caller, "organization changed", target=organization_id, fields=sorted(said))
    after = hub.organizations.change(organization_id, seen, done, **said)
    response.headers["ETag"] = tag(after.version)
    return OrganizationBody.of(after)
