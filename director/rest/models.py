"""``/api/v1/models``: the registry. Models of tasks under versions, each with its lineage and a signed card.

Before it is published a model is seen within its collaboration; published, by every organization of the federation.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import ChangedMeanwhileError, ProtocolError
from ...utils.model_card import sign_card
from ...utils.roster import key_fingerprint
from ...utils.tensors import canonical_json
from ..audit import audit_key
from ..hub.agreements import check_may_publish
from ..hub.card_page import as_markdown
from ..hub.hub import Hub
from ..hub.model_cards import Declared, Person, published_card
from ..hub.models import Model, Withdrawn, seen_by
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from ..hub.tables import MODELS
from .asking import Page, TheCaller, TheHub, ThePage, next_after, tag
from .files import download, file_answer
from .model_registration import register
from .outputs import ABOUT_WITHDRAWN, marks
from .problems import documented
from .tasks import seen_task, target_of
from .works import TheWorks

router = APIRouter(prefix="/api/v1/models", tags=["models"], responses=documented(400, 401, 403, 413, 422, 429, 503))
ModelId = Annotated[str, Path(min_length=1, max_length=32, description="Of the model.")]
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9-]*$")]
Prose = Annotated[str, Field(min_length=1, max_length=8000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]+$")]
_CARD: dict[int | str, dict[str, Any]] = {200: {"content": {"text/markdown": {}, "application/json": {}}}}


class NewModel(BaseModel):
    """Which model of which task is to be kept, and what it is for."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    semver: str = Field(
        min_length=5, max_length=32, description="Semantic version 2.0.0; must grow.", examples=["1.0.0"]
    )
    task_id: Annotated[str, Field(min_length=1, max_length=63)]
    round: int | None = Field(None, ge=1, le=1_000_000, description="Left out: the last.")
    intended_use: Prose
    limitations: Prose


class WithdrawnBody(BaseModel):
    """A dataset that fed the model and was withdrawn."""

    dataset_id: str
    name: str
    envoy: str
    withdrawn_at: float
    in_card: bool = Field(description="The card says so; else it was withdrawn after the card was signed.")


class ModelSummary(BaseModel):
    """One version of a model."""

    model_id: str
    name: str
    semver: str
    task_id: str
    round: int
    plan_digest: str
    collaboration_id: str
    organization_id: str = Field(description="That registered it.")
    sha256: str = Field(description="Of the file; its ETag too.")
    bytes: int
    is_published: bool
    withdrawn_datasets: list[WithdrawnBody] = Field(description="As of now. Withdrawals are never part of a signature.")
    created_at: float
    version: int


class ModelBody(ModelSummary):
    """The same with its card, which the key of the director's audit log signed."""

    lineage: dict[str, Any] = Field(description="Dataset, plan, rounds, model: as on the card.")
    card: dict[str, Any]
    card_sha256: str = Field(description="Of the card's canonical text, as the director's audit log names it.")
    key: str = Field(description="Base64: the public key that signed.")
    key_fingerprint: str
    signature: str = Field(description="Base64: Ed25519; `fedveil model verify` checks it, offline.")


class CardFormat(Enum):
    """How a card is written."""

    MARKDOWN = "markdown"
    JSON = "json"


@router.get("")
def list_models(
    hub: TheHub,
    caller: TheCaller,
    page: ThePage,
    name: Annotated[str | None, Query(max_length=63, description="Only versions of this name.")] = None,
) -> Page[ModelSummary]:
    """All that the caller may see, in the order of their ids."""
    seen = seen_by(caller.actor)
    where = [*([] if seen is None else [seen]), *([] if name is None else [MODELS.c.name == name])]
    found = hub.models.page(page.last_id, page.limit, *where)
    more = next_after(found[-1].id) if len(found) == page.limit else None
    return Page(items=[_summary(hub, one) for one in found], next=more)


@router.post("", status_code=status.HTTP_201_CREATED, responses=documented(404, 409))
def register_model(hub: TheHub, caller: TheCaller, works: TheWorks, new: NewModel, response: Response) -> ModelBody:
    """Keep the model of a task that is over, as a version of a name; it stays on disk from now on."""
    task = seen_task(hub, caller, new.task_id)
    hub.allow(caller, Operation.CREATE, Resource.MODEL, target_of(task))
    declared = Declared(new.name, new.semver, new.intended_use, new.limitations)
    made = register(hub, works, task, declared, new.round, _person(hub, caller), caller)
    response.headers["Location"], response.headers["ETag"] = f"/api/v1/models/{made.id}", tag(made.version)
    return _whole(hub, made)


@router.get("/{model_id}", responses=documented(404))
def show_model_version(hub: TheHub, caller: TheCaller, model_id: ModelId) -> ModelBody:
    """One version of a model, with its lineage and its signed card."""
    return _whole(hub, seen_model(hub, caller, model_id))


@router.get(
    "/{model_id}/card",
    response_class=Response,
    responses=_CARD | documented(404),
)
def show_card(
    hub: TheHub,
    caller: TheCaller,
    model_id: ModelId,
    format: Annotated[  # noqa: A002 - the API's word
        CardFormat, Query(description="`json` is what `fedveil model verify --card` takes.")
    ] = CardFormat.MARKDOWN,
) -> Response:
    """The card for people, or signed for programs. What was withdrawn after it was signed stands beside it."""
    one = seen_model(hub, caller, model_id)
    withdrawn = hub.models.withdrawn(one.id)
    if format is CardFormat.JSON:
        return Response(canonical_json(one.signed.document()), media_type="application/json", headers=marks(withdrawn))
    since = [f"{each.name} of {each.site} ({each.dataset})" for each in withdrawn if not _is_in_card(one, each)]
    text = as_markdown(one.signed, since, key_fingerprint(one.key))
    return Response(text, media_type="text/markdown", headers=marks(withdrawn))


@download(router, "/{model_id}/file", responses=ABOUT_WITHDRAWN | documented(404))
def download_model(hub: TheHub, caller: TheCaller, works: TheWorks, model_id: ModelId, request: Request) -> Response:
    """The safetensors file. Where data that fed it were withdrawn, ``Fedveil-Withdrawn-Datasets`` names them."""
    one = seen_model(hub, caller, model_id)
    name = f"{one.name}-{one.semver}.safetensors"
    return file_answer(request, works.artifacts, one.digest, name, marks(hub.models.withdrawn(one.id)))


@router.post("/{model_id}/publication", responses=documented(404, 409, 412))
def publish_model(hub: TheHub, caller: TheCaller, works: TheWorks, model_id: ModelId, response: Response) -> ModelBody:
    """Show it to every organization of the federation; its card is signed anew, with who published it.

    To publish it again changes nothing. A model whose data were withdrawn is not published.
    """
    one = seen_model(hub, caller, model_id)
    hub.allow(caller, Operation.PUBLISH, Resource.MODEL, _target(one))
    collaboration = hub.collaborations.get(one.collaboration)
    agreements = hub.agreements.about(collaboration)
    consortium = check_may_publish(collaboration, agreements, caller.user.organization, hub.now())
    if not one.is_published:
        if gone := hub.models.withdrawn(one.id):
            raise ProtocolError(
                f"dataset {gone[0].name} of {gone[0].site} fed this model and was withdrawn: train it again without"
            )
        card = published_card(one.card, consortium, _person(hub, caller))
        signed = sign_card(card, audit_key(works.folder))
        done = hub.did(caller, "model published", target=one.id, file=one.digest, card=signed.digest)
        changes: dict[str, Any] = {
            "card": signed.card,
            "key": signed.key,
            "signature": signed.signature,
            "is_published": True,
        }
        try:
            one = hub.models.change(one.id, one.version, done, **changes)
        except ChangedMeanwhileError:
            one = hub.models.get(one.id)  # another published it at the same moment
            if not one.is_published:
                raise
    response.headers["ETag"] = tag(one.version)
    return _whole(hub, one)


def seen_model(hub: Hub, caller: Caller, model_id: str) -> Model:
    """A model that the caller may see.

    Raises:
        UnknownEntityError: there is none, or it may not.
    """
    one = hub.models.get(model_id)
    own = Target(caller.user.organization, caller.actor.collaborations, caller.user.id)
    hub.allow(caller, Operation.VIEW, Resource.MODEL, own if one.is_published else _target(one))
    return one


def _target(one: Model) -> Target:
    return Target(one.organization, frozenset([one.collaboration]), one.user)


def _person(hub: Hub, caller: Caller) -> Person:
    organization = hub.organizations.get(caller.user.organization)
    return Person(caller.user.name, organization.id, organization.name, hub.now())


def _is_in_card(one: Model, withdrawn: Withdrawn) -> bool:
    return withdrawn.dataset in one.card["withdrawn_datasets"]


def _summary(hub: Hub, one: Model) -> ModelSummary:
    return ModelSummary(
        model_id=one.id,
        name=one.name,
        semver=one.semver,
        task_id=one.run,
        round=one.round,
        plan_digest=one.plan,
        collaboration_id=one.collaboration,
        organization_id=one.organization,
        sha256=one.digest,
        bytes=one.card["file"]["bytes"],
        is_published=one.is_published,
        withdrawn_datasets=[
            WithdrawnBody(
                dataset_id=each.dataset,
                name=each.name,
                envoy=each.site,
                withdrawn_at=each.at,
                in_card=_is_in_card(one, each),
            )
            for each in hub.models.withdrawn(one.id)
        ],
        created_at=one.created_at,
        version=one.version,
    )


def _whole(hub: Hub, one: Model) -> ModelBody:
    document = one.signed.document()
    return ModelBody(
        **_summary(hub, one).model_dump(),
        lineage=one.card["lineage"],
        card=document["card"],
        card_sha256=one.signed.digest,
        key=document["key"],
        key_fingerprint=key_fingerprint(one.key),
        signature=document["signature"],
    )
