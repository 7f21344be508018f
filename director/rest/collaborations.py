"""``/api/v1/collaborations`` and ``/api/v1/agreements``: who works together, under which permit and what agreements."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import AgreementError
from ..hub.agreements import Agreement, Collaboration, Kind, Permit, check_may_publish, check_may_start
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from ..hub.store import new_id
from ..hub.tables import AGREEMENTS
from .asking import Page, TheCaller, TheHub, ThePage, TheVersion, next_after, tag
from .problems import documented

_REFUSALS = documented(400, 401, 403, 413, 422, 429, 503)
router = APIRouter(prefix="/api/v1", responses=_REFUSALS)
CollaborationId = Annotated[str, Path(min_length=1, max_length=32, description="Of the collaboration.")]
AgreementId = Annotated[str, Path(min_length=1, max_length=32, description="Of the agreement.")]
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9-]*$")]
Id = Annotated[str, Field(min_length=1, max_length=32)]
Line = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
Moment = Annotated[float, Field(ge=0, le=1e11, description="Seconds since 1970.", allow_inf_nan=False)]


class PermitBody(BaseModel):
    """What an authority allows; it ends by itself."""

    model_config = ConfigDict(extra="forbid")
    number: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
    authority: Line
    purpose: Line
    starts_at: Moment
    ends_at: Moment
    datasets: list[Name] = Field(min_length=1, max_length=100)

    def permit(self) -> Permit:
        """As the rules know it."""
        return Permit(**(self.model_dump() | {"datasets": frozenset(self.datasets)}))


class CollaborationBody(BaseModel):
    """Organizations under one permit."""

    collaboration_id: str
    name: str
    organizations: list[str]
    permit: PermitBody
    reviews_needed: int = Field(
        description="No task of a plan starts that reviewers of fewer organizations approved, or that one rejects."
    )
    created_at: float
    version: int

    @classmethod
    def of(cls, one: Collaboration) -> CollaborationBody:
        """As it is shown."""
        permit = one.permit
        return cls(
            collaboration_id=one.id,
            name=one.name,
            organizations=sorted(one.organizations),
            permit=PermitBody(
                number=permit.number,
                authority=permit.authority,
                purpose=permit.purpose,
                starts_at=permit.starts_at,
                ends_at=permit.ends_at,
                datasets=sorted(permit.datasets),
            ),
            reviews_needed=one.reviews_needed,
            created_at=one.created_at,
            version=one.version,
        )


class NewCollaboration(BaseModel):
    """Who works together, under which permit."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
    organizations: list[Id] = Field(min_length=1, max_length=200)
    permit: PermitBody
    reviews_needed: int = Field(0, ge=0, le=200)


class CollaborationChange(BaseModel):
    """What is to be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    organizations: list[Id] | None = Field(None, min_length=1, max_length=200)
    permit: PermitBody | None = None
    reviews_needed: int | None = Field(None, ge=0, le=200)


class Standing(BaseModel):
    """What an organization may do under a collaboration now, and if not, why."""

    may_start_tasks: bool
    may_publish: bool
    processing: Kind | None = Field(description="Which of the two agreements on data applies to tasks.")
    why_not: list[str]


class AgreementBody(BaseModel):
    """One version of an agreement."""

    agreement_id: str
    kind: Kind
    version: int
    document_sha256: str
    parties: list[str]
    collaboration_id: str | None
    valid_from: float
    valid_until: float | None
    may_start_tasks: list[str]
    may_publish: list[str]
    intellectual_property: str
    signed: dict[str, float] = Field(description="Which party signed when.")
    is_in_force: bool

    @classmethod
    def of(cls, one: Agreement, now: float) -> AgreementBody:
        """As it is shown."""
        return cls(
            agreement_id=one.id,
            kind=one.kind,
            version=one.version,
            document_sha256=one.document,
            parties=sorted(one.parties),
            collaboration_id=one.collaboration,
            valid_from=one.valid_from,
            valid_until=one.valid_until,
            may_start_tasks=sorted(one.may_start_tasks),
            may_publish=sorted(one.may_publish),
            intellectual_property=one.intellectual_property,
            signed=dict(one.signed),
            is_in_force=one.is_in_force(now),
        )


class NewAgreement(BaseModel):
    """A document that is to be signed, by its hash, and what it decides."""

    model_config = ConfigDict(extra="forbid")
    kind: Kind
    document_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    parties: list[Id] = Field(min_length=1, max_length=200)
    collaboration_id: Id | None = None
    valid_from: Moment
    valid_until: Moment | None = None
    may_start_tasks: list[Id] = Field(default=[], max_length=200)
    may_publish: list[Id] = Field(default=[], max_length=200)
    intellectual_property: str = Field("", max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")


class AgreementList(BaseModel):
    """Versions of agreements, the oldest first."""

    items: list[AgreementBody]


def _target(one: Collaboration, owner: str | None = None) -> Target:
    return Target(owner, frozenset([one.id]))


@router.get("/collaborations", tags=["collaborations"])
def list_collaborations(hub: TheHub, caller: TheCaller, page: ThePage) -> Page[CollaborationBody]:
    """All that the caller may see, in the order of their ids."""
    everywhere = hub.may(caller, Operation.VIEW, Resource.COLLABORATION, Target())
    only = () if everywhere else (hub.collaborations.among(_seen(hub, caller)),)
    found = hub.collaborations.page(page.last_id, page.limit, *only)
    more = next_after(found[-1].id) if len(found) == page.limit else None
    return Page(items=[CollaborationBody.of(one) for one in found], next=more)


@router.post(
    "/collaborations", status_code=status.HTTP_201_CREATED, tags=["collaborations"], responses=documented(404, 409)
)
def make_collaboration(hub: TheHub, caller: TheCaller, new: NewCollaboration, response: Response) -> CollaborationBody:
    """Organizations that are to work under one permit."""
    hub.allow(caller, Operation.CREATE, Resource.COLLABORATION, Target())
    for id_ in new.organizations:
        hub.organizations.get(id_)
    made = Collaboration(
        id=new_id(),
        name=new.name,
        organizations=frozenset(new.organizations),
        permit=new.permit.permit(),
        created_at=hub.now(),
        reviews_needed=new.reviews_needed,
    )
    done = hub.did(
        caller,
        "collaboration made",
        target=made.id,
        permit=made.permit.number,
        reviews_needed=made.reviews_needed,
    )
    hub.collaborations.add(made, done)
    response.headers["Location"], response.headers["ETag"] = f"/api/v1/collaborations/{made.id}", tag(made.version)
    return CollaborationBody.of(made)


@router.get("/collaborations/{collaboration_id}", tags=["collaborations"], responses=documented(404))
def show_collaboration(
    hub: TheHub, caller: TheCaller, collaboration_id: CollaborationId, response: Response
) -> CollaborationBody:
    """One collaboration."""
    one = _seen_one(hub, caller, collaboration_id)
    response.headers["ETag"] = tag(one.version)
    return CollaborationBody.of(one)


@router.patch("/collaborations/{collaboration_id}", tags=["collaborations"], responses=documented(404, 409, 412))
def change_collaboration(
    hub: TheHub,
    caller: TheCaller,
    collaboration_id: CollaborationId,
    change: CollaborationChange,
    seen: TheVersion,
    response: Response,
) -> CollaborationBody:
    """Who takes part, or under which permit. Tasks that run are held against it before their next round."""
    one = hub.collaborations.get(collaboration_id)
    hub.allow(caller, Operation.EDIT, Resource.COLLABORATION, _target(one))
    fields: dict[str, Any] = {}
    if change.organizations is not None:
        for id_ in change.organizations:
            hub.organizations.get(id_)
        fields["organizations"] = frozenset(change.organizations)
    if change.permit is not None:
        fields["permit"] = change.permit.permit()
    if change.reviews_needed is not None:
        fields["reviews_needed"] = change.reviews_needed
    reviews = {} if change.reviews_needed is None else {"reviews_needed": change.reviews_needed}
    done = hub.did(caller, "collaboration changed", target=one.id, fields=sorted(fields), **reviews)
    after = hub.collaborations.change(one.id, seen, done, **fields)
    response.headers["ETag"] = tag(after.version)
    return CollaborationBody.of(after)


@router.get("/collaborations/{collaboration_id}/standing", tags=["collaborations"], responses=documented(404))
def show_standing(
    hub: TheHub,
    caller: TheCaller,
    collaboration_id: CollaborationId,
    organization_id: Annotated[str | None, Query(max_length=32, description="The caller's own by default.")] = None,
) -> Standing:
    """May an organization start tasks and publish now, and what is missing?"""
    one = _seen_one(hub, caller, collaboration_id)
    whose, agreements, now = organization_id or caller.user.organization, hub.agreements.about(one), hub.now()
    why: list[str] = []
    processing = None
    try:
        needs = hub.needs_infrastructure_user
        processing = check_may_start(one, agreements, whose, None, now, needs_infrastructure_user=needs).kind
    except AgreementError as error:
        why.append(str(error))
    may_publish = True
    try:
        check_may_publish(one, agreements, whose, now)
    except AgreementError as error:
        may_publish = False
        why.append(str(error))
    return Standing(may_start_tasks=processing is not None, may_publish=may_publish, processing=processing, why_not=why)


@router.get("/agreements", tags=["agreements"])
def list_agreements(
    hub: TheHub,
    caller: TheCaller,
    collaboration_id: Annotated[str | None, Query(max_length=32, description="Only of this collaboration.")] = None,
) -> AgreementList:
    """All that the caller may see, the oldest first."""
    only = () if collaboration_id is None else (AGREEMENTS.c.collaboration == collaboration_id,)
    seen = [one for one in hub.agreements.all(*only) if _may(hub, caller, Operation.VIEW, one)]
    return AgreementList(items=[AgreementBody.of(one, hub.now()) for one in seen])


@router.post("/agreements", status_code=status.HTTP_201_CREATED, tags=["agreements"], responses=documented(404, 409))
def make_agreement(hub: TheHub, caller: TheCaller, new: NewAgreement, response: Response) -> AgreementBody:
    """The next version of an agreement; it is in force once every party has signed it."""
    if new.collaboration_id is not None:
        one = _seen_one(hub, caller, new.collaboration_id)
        if strange := set(new.parties) - one.organizations:
            raise AgreementError(f"{min(strange)} is not part of the collaboration")
    made = Agreement(
        new_id(),
        new.kind,
        1,
        new.document_sha256,
        frozenset(new.parties),
        new.collaboration_id,
        new.valid_from,
        new.valid_until,
        frozenset(new.may_start_tasks),
        frozenset(new.may_publish),
        new.intellectual_property,
    )
    own = caller.user.organization if caller.user.organization in made.parties else None
    hub.allow(caller, Operation.CREATE, Resource.AGREEMENT, Target(own))
    done = hub.did(caller, "agreement made", target=made.id, kind=made.kind.value, document=made.document)
    kept = hub.agreements.add(made, hub.now(), done)
    response.headers["Location"] = f"/api/v1/agreements/{kept.id}"
    return AgreementBody.of(kept, hub.now())


@router.get("/agreements/{agreement_id}", tags=["agreements"], responses=documented(404))
def show_agreement(hub: TheHub, caller: TheCaller, agreement_id: AgreementId) -> AgreementBody:
    """One version of an agreement."""
    one = hub.agreements.get(agreement_id)
    hub.allow(caller, Operation.VIEW, Resource.AGREEMENT, _of(caller, one))
    return AgreementBody.of(one, hub.now())


@router.post("/agreements/{agreement_id}/signatures", tags=["agreements"], responses=documented(404))
def sign_agreement(hub: TheHub, caller: TheCaller, agreement_id: AgreementId) -> AgreementBody:
    """Sign for one's own organization; to sign again changes nothing."""
    one = hub.agreements.get(agreement_id)
    hub.allow(caller, Operation.APPROVE, Resource.AGREEMENT, _of(caller, one))
    organization, now = caller.user.organization, hub.now()
    done = hub.did(caller, "agreement signed", target=one.id, document=one.document)
    return AgreementBody.of(hub.agreements.sign(one.id, organization, caller.user.id, now, done), now)


def _seen(hub: TheHub, caller: Caller) -> list[str]:
    return [
        one
        for one in caller.actor.collaborations
        if hub.may(caller, Operation.VIEW, Resource.COLLABORATION, Target(collaborations=frozenset([one])))
    ]


def _seen_one(hub: TheHub, caller: Caller, id_: str) -> Collaboration:
    one = hub.collaborations.get(id_)
    hub.allow(caller, Operation.VIEW, Resource.COLLABORATION, _target(one))
    return one


def _of(caller: Caller, one: Agreement) -> Target:
    """A party's own, or of its collaboration."""
    own = caller.user.organization if caller.user.organization in one.parties else None
    return Target(own, frozenset([one.collaboration] if one.collaboration else []))


def _may(hub: TheHub, caller: Caller, operation: Operation, one: Agreement) -> bool:
    return hub.may(caller, operation, Resource.AGREEMENT, _of(caller, one))
