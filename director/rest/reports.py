"""``/api/v1/reports``: what is known of a task beyond its metrics. Fairness: of the sites that publish by subgroups."""

from __future__ import annotations

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
