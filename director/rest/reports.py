"""``/api/v1/reports``: how fair the model of a task is; what was done under a collaboration."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from ...utils.errors import ProtocolError, UnknownEntityError
from ...utils.messages import RunId
from ..fairness_pages import as_csv, as_markdown
from ..fairness_report import FairnessReport, of_history, to_json
from ..history import History
from ..hub.hub import Hub
from ..hub.processing_register import activities
from ..hub.processing_register import as_csv as register_csv
from ..hub.rules import Operation, Resource, Target
from .asking import TheCaller, TheHub
from .problems import documented
from .tasks import target_of

router = APIRouter(prefix="/api/v1", tags=["reports"], responses=documented(400, 401, 403, 413, 422, 429, 503))
TaskId = Annotated[str, Path(min_length=1, max_length=63, description="Of the task: its run.")]


class Form(Enum):
    """How a report is written."""

    JSON = "json"
    MARKDOWN = "markdown"
    CSV = "csv"


class CellBody(BaseModel):
    """Some held-out examples of a site, and how well the model does on them."""

    attribute: str = Field(description="Empty: all of them.")
    value: str
    people: tuple[int, int] = Field(description="Between these two; never the count.")
    metrics: list[tuple[str, str, float, float]] = Field(
        description="Name, kind (mean or auc), rounded value, step of the rounding."
    )


class SiteBody(BaseModel):
    """What one site published."""

    site: str
    split: str
    unit: str
    min_cell: int
    cells: list[CellBody]
    suppressed: dict[str, int] = Field(description="Of each attribute, cells that are not told.")


class PooledBody(BaseModel):
    """One metric over two sites or more; it lies between `low` and `high`."""

    attribute: str
    value: str
    metric: str
    kind: str
    mean: float
    low: float
    high: float
    sites: int


class SpreadBody(BaseModel):
    """How far apart sites, or the subgroups of one attribute, are."""

    metric: str
    of: str = Field(description="`sites`, or an attribute.")
    best: str
    worst: str
    difference: float
    is_clear: bool = Field(description="More than rounding and unknown counts can make.")


class RoundBody(BaseModel):
    """One round."""

    round: int
    attempt: int
    kind: Literal["train", "evaluate"] = Field(description="evaluate: the final model.")
    answered: int
    publishing: int
    silent: list[str] | None
    sites: list[SiteBody]
    pooled: list[PooledBody]
    spreads: list[SpreadBody]


class FairnessBody(BaseModel):
    """All rounds of a task that sites published of."""

    task_id: str
    rounds: list[RoundBody]
    notes: list[str]


_FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report, in the form that was asked for.",
        "content": {
            "text/markdown": {"schema": {"type": "string"}},
            "text/csv": {"schema": {"type": "string"}},
        },
    }
}


@router.get("/reports/fairness/{task_id}", response_model=FairnessBody, responses=_FORMS | documented(404))
def show_fairness(
    hub: TheHub, caller: TheCaller, task_id: TaskId, form: Annotated[Form, Query(description="How.")] = Form.JSON
) -> Any:
    """Is the model as good for each site and subgroup? Of the sites that publish it; who does not is named."""
    task = hub.tasks.find(task_id)
    # One that was submitted by a command is nobody's in particular.
    hub.allow(caller, Operation.VIEW, Resource.REPORT, Target() if task is None else target_of(task))
    report = fairness_of(hub, task_id)
    match form:
        case Form.JSON:
            return to_json(report)
        case Form.MARKDOWN:
            return Response(as_markdown(report), media_type="text/markdown")
        case Form.CSV:
            return Response(as_csv(report), media_type="text/csv")


class ActivityBody(BaseModel):
    """One task, as a record of processing activities asks for it (GDPR, Article 30)."""

    task_id: str
    started_by: str = Field(description="The organization.")
    parties: list[str] = Field(description="Name, contact and data protection officer.")
    processing: str = Field(description="Which agreement on data applies.")
    purpose: str
    legal_basis: str = Field(description="As the proposal says; nobody here judges it.")
    permit: str
    dataset: str
    sites: list[str] = Field(description="Where that dataset is registered.")
    outputs: list[str]
    is_secure: bool = Field(description="Single updates were under masks.")
    began_at: float | None
    ended_at: float | None
    permit_ends_at: float


class RegisterBody(BaseModel):
    """What was done with data under a collaboration."""

    activities: list[ActivityBody]


class RegisterForm(Enum):
    """How a register is written."""

    JSON = "json"
    CSV = "csv"


_REGISTER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The register, in the form that was asked for.",
        "content": {"text/csv": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/reports/processing-register/{collaboration_id}",
    response_model=RegisterBody,
    responses=_REGISTER | documented(404),
)
def show_register(
    hub: TheHub,
    caller: TheCaller,
    collaboration_id: Annotated[str, Path(min_length=1, max_length=32, description="Of the collaboration.")],
    form: Annotated[RegisterForm, Query(description="How.")] = RegisterForm.JSON,
) -> Any:
    """What was done with data under a collaboration, for records of processing activities. Facts, and no verdict."""
    try:
        collaboration = hub.collaborations.get(collaboration_id)
    except UnknownEntityError:
        raise UnknownEntityError("there is no such report") from None
    hub.allow(caller, Operation.VIEW, Resource.REPORT, Target(collaborations=frozenset([collaboration.id])))
    history = History(hub.engine)
    found = activities(
        collaboration,
        {one.id: one for one in hub.organizations.all()},
        {one.id: one for one in hub.agreements.about(collaboration)},
        [(one, history.run(one.run)) for one in hub.tasks.of(collaboration.id)],
        hub.datasets.all(),
    )
    if form is RegisterForm.CSV:
        return Response(register_csv(found), media_type="text/csv")
    return {"activities": [asdict(one) for one in found]}


def fairness_of(hub: Hub, task_id: str) -> FairnessReport:
    """What sites published of a task.

    Raises:
        UnknownEntityError: there is no such task.
    """
    history, run = History(hub.engine), RunId(task_id)
    try:
        history.run(run)
    except ProtocolError:
        raise UnknownEntityError("there is no such report") from None
    return of_history(run, history.rounds(run), history.fairness(run))
