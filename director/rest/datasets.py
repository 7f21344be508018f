"""``/api/v1/datasets``: what sites offer, by their own words; a withdrawal marks what it fed and ends what reads it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, and_, false, or_

from ...utils.errors import ProtocolError, UnknownEntityError
from ..hub.datasets import MAX_COLUMN, MAX_COLUMNS, MAX_TEXT, Dataset, Fed
from ..hub.hub import Hub
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from ..hub.store import new_id
from ..hub.tables import DATASETS
from .asking import Page, TheCaller, TheHub, ThePage, TheVersion, next_after, tag
from .problems import documented

router = APIRouter(
    prefix="/api/v1/datasets", tags=["datasets"], responses=documented(400, 401, 403, 413, 422, 429, 503)
)
DatasetId = Annotated[str, Path(min_length=1, max_length=32, description="Of the dataset.")]
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9-]*$")]
EnvoyName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Column = Annotated[str, Field(min_length=1, max_length=MAX_COLUMN)]
Examples = Annotated[
    str, Field(max_length=32, description="A range that the site chose, never a count.", examples=["100-499", ">=1000"])
]


class DatasetBody(BaseModel):
    """A dataset, as it is shown."""

    dataset_id: str
    name: str
    organization_id: str
    envoy: str
    description: str
    modality: str
    columns: list[str]
    examples: str
    digest: str
    withdrawn_at: float | None = Field(description="Seconds since 1970; once withdrawn, for good.")
    withdrawn_why: str
    created_at: float
    version: int

    @classmethod
    def of(cls, one: Dataset) -> DatasetBody:
        """As it is shown."""
        return cls(
            dataset_id=one.id,
            name=one.name,
            organization_id=one.organization,
            envoy=one.envoy,
            description=one.description,
            modality=one.modality,
            columns=list(one.columns),
            examples=one.examples,
            digest=one.digest,
            withdrawn_at=one.withdrawn_at,
            withdrawn_why=one.withdrawn_why,
            created_at=one.created_at,
            version=one.version,
        )


class NewDataset(BaseModel):
    """What a site says of data that it has."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    envoy: EnvoyName
    description: str = Field("", max_length=MAX_TEXT)
    modality: str = Field("", max_length=63)
    columns: list[Column] = Field(default=[], max_length=MAX_COLUMNS)
    examples: Examples = ""
    digest: str = Field("", max_length=64, description="SHA-256 of what the site has, by its own word.")


class DatasetChange(BaseModel):
    """What is to be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    description: str | None = Field(None, max_length=MAX_TEXT)
    modality: str | None = Field(None, max_length=63)
    columns: list[Column] | None = Field(None, max_length=MAX_COLUMNS)
    examples: Examples | None = None
    digest: str | None = Field(None, max_length=64)


class Withdrawal(BaseModel):
    """Why; shown with the dataset and with what it fed."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$")


class Withdrawn(DatasetBody):
    """A dataset that was withdrawn, and the models that it fed."""

    models: list[str] = Field(description="Ids of models; each is marked from now on.")
    rerun: str = Field(description="How to train again without it.")


_RERUN = (
    "Tasks that read it end before their next round. Submit the task anew, under another name: sites whose data of this"
    " name were withdrawn are not asked. A task that names such a site is refused, and so is one that nobody else could"
    " serve."
)


@router.get("")
def list_datasets(
    hub: TheHub,
    caller: TheCaller,
    page: ThePage,
    name: Annotated[str | None, Query(max_length=63, description="Only of this name.")] = None,
) -> Page[DatasetBody]:
    """All that the caller may see, in the order of their ids."""
    only = [_seen(hub, caller)]
    if name is not None:
        only.append(DATASETS.c.name == name)
    found = hub.datasets.page(page.last_id, page.limit, *only)
    more = next_after(found[-1].id) if len(found) == page.limit else None
    return Page(items=[DatasetBody.of(one) for one in found], next=more)


@router.post("", status_code=status.HTTP_201_CREATED, responses=documented(404, 409))
def describe_dataset(hub: TheHub, caller: TheCaller, new: NewDataset, response: Response) -> DatasetBody:
    """Describe data that an envoy has; its organization is the envoy's."""
    whose = hub.stations.whose(new.envoy)
    hub.allow(caller, Operation.CREATE, Resource.DATASET, _target(hub, whose or "", new.name))
    if whose is None:
        raise UnknownEntityError("there is no such envoy, or nobody said whose it is")
    fields = new.model_dump() | {"columns": tuple(new.columns)}
    made = Dataset(new_id(), organization=whose, created_at=hub.now(), **fields)
    hub.datasets.add(made, hub.did(caller, "dataset described", target=made.id, name=made.name, envoy=made.envoy))
    response.headers["Location"], response.headers["ETag"] = f"/api/v1/datasets/{made.id}", tag(made.version)
    return DatasetBody.of(made)


@router.get("/{dataset_id}", responses=documented(404))
def show_dataset(hub: TheHub, caller: TheCaller, dataset_id: DatasetId, response: Response) -> DatasetBody:
    """One dataset."""
    one = _one(hub, caller, dataset_id, Operation.VIEW)
    response.headers["ETag"] = tag(one.version)
    return DatasetBody.of(one)


@router.patch("/{dataset_id}", responses=documented(404, 409, 412))
def change_dataset(
    hub: TheHub, caller: TheCaller, dataset_id: DatasetId, change: DatasetChange, seen: TheVersion, response: Response
) -> DatasetBody:
    """Say something else of it; what was withdrawn is not changed any more."""
    one = _one(hub, caller, dataset_id, Operation.EDIT)
    if one.is_withdrawn:
        raise ProtocolError("it was withdrawn, which is for good: describe what there is now under another name")
    said: dict[str, Any] = change.model_dump(exclude_none=True)
    if "columns" in said:
        said["columns"] = tuple(said["columns"])
    done = hub.did(caller, "dataset changed", target=one.id, fields=sorted(said))
    after = hub.datasets.change(one.id, seen, done, **said)
    response.headers["ETag"] = tag(after.version)
    return DatasetBody.of(after)


@router.post("/{dataset_id}/withdrawal", responses=documented(404, 409))
def withdraw_dataset(hub: TheHub, caller: TheCaller, dataset_id: DatasetId, why: Withdrawal) -> Withdrawn:
    """Withdraw it, for good: tasks that read it end, no new one asks its site for it, models that it fed are marked."""
    one = _one(hub, caller, dataset_id, Operation.DELETE)
    if one.is_withdrawn:
        raise ProtocolError("it was withdrawn before")
    models = list(Fed(hub.engine).models(one.id))
    done = hub.did(
        caller, "dataset withdrawn", target=one.id, name=one.name, envoy=one.envoy, reason=why.reason, models=models
    )
    after = hub.datasets.change(one.id, one.version, done, withdrawn_at=hub.now(), withdrawn_why=why.reason)
    return Withdrawn(**DatasetBody.of(after).model_dump(), models=models, rerun=_RERUN)


def _target(hub: Hub, organization: str, name: str) -> Target:
    """Its organization's, and of the collaborations whose permit lets it be read."""
    parts = hub.collaborations.all(hub.collaborations.among(hub.collaborations_of(organization)))
    return Target(organization, frozenset(one.id for one in parts if name in one.permit.datasets))


def _one(hub: Hub, caller: Caller, id_: str, operation: Operation) -> Dataset:
    one = hub.datasets.get(id_)
    hub.allow(caller, operation, Resource.DATASET, _target(hub, one.organization, one.name))
    return one


def _seen(hub: Hub, caller: Caller) -> ColumnElement[bool]:
    """Those that a caller sees, as ``_target`` and the rules have it."""

    def may(target: Target) -> bool:
        return hub.may(caller, Operation.VIEW, Resource.DATASET, target)

    if may(Target()):
        return DATASETS.c.id != ""
    own = caller.user.organization
    seen: list[ColumnElement[bool]] = [DATASETS.c.organization == own] if may(Target(own)) else []
    for one in hub.collaborations.all(hub.collaborations.among(caller.actor.collaborations)):
        if may(Target(collaborations=frozenset([one.id]))):
            parties, names = sorted(one.organizations), sorted(one.permit.datasets)
            seen.append(and_(DATASETS.c.organization.in_(parties), DATASETS.c.name.in_(names)))
    if not seen:
        hub.admit(caller, Operation.VIEW, Resource.DATASET, Target(own))
    return or_(false(), *seen)
