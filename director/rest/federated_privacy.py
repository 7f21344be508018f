"""``GET /api/v1/federated/privacy-report`` and ``/budget``: what a run spent, as far as its sites publish it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from ...utils.config import parse_toml
from ...utils.errors import ConfigError, UnknownEntityError
from ...utils.messages import EnvoyName, ExperimentView, TaskKind
from ...utils.plan_bundle import LAYOUT_FILE, read_manifest
from ...utils.privacy.planning import rounds_within
from ...utils.privacy.values import PublishedEpsilon
from ...utils.proposal import MAX_ROUNDS
from ...utils.tensors import Layout
from ..coding import read_run_codec
from ..experiments import ExperimentSettings
from ..hub.rules import Resource
from ..privacy_report import of_run
from ..private_runs import release_of
from ..records import RunRecord
from .asking import TheCaller, TheHub
from .federated_callers import TaskQuery, seen_run
from .problems import documented
from .works import TheWorks, Works

router = APIRouter(
    prefix="/api/v1/federated", tags=["federated"], responses=documented(400, 401, 403, 404, 413, 422, 429, 503)
)
RoundQuery = Annotated[int | None, Query(ge=1, le=MAX_ROUNDS, description="Of one round alone; of all by default.")]


class SiteEpsilon(BaseModel):
    """What one site published."""

    total_epsilon: float
    delta: float
    unit: str


class SumState(BaseModel):
    """How much the director saw."""

    state: str = Field(description='"all", "some" or "off": whether answers came as sums; "none left": none came.')
    masked: int
    in_clear: int
    metrics_in_clear: int


class RunPrivacyReport(BaseModel):
    """The privacy of a run, or of one of its rounds."""

    task_id: str
    round: int | None
    total_epsilon: float | None = Field(
        description="The worst of the sites', never their sum; None: a site published none, metrics left in the clear,"
        " or they are not of one unit and delta: then nothing bounds the whole."
    )
    delta: float | None
    unit: str | None
    adjacency: str
    mechanism: str
    accountant: str
    participants: int
    sites: dict[str, SiteEpsilon] = Field(description="Of the sites that publish theirs, by envoy.")
    secure_aggregation: SumState
    leakage_score: float | None = Field(description="The worst that a site published; None: none did.")
    leakage_scores: dict[str, float]
    attack_used: str | None
    suppressed_cells: int | None = Field(description="Of statistics over few people; None: the run has none.")


class EnvoyBudget(BaseModel):
    """What one envoy published last."""

    envoy: str
    organization_id: str | None
    epsilon: float
    delta: float
    unit: str


class BudgetBody(BaseModel):
    """What a run may spend, did, and may still."""

    task_id: str
    epsilon: float | None = Field(description="The experiment's privacy_budget; None: it has none.")
    delta: float | None
    mechanism: str | None
    spent: float | None = Field(description="The most that an envoy published, of all its studies; None: none did.")
    remaining: float | None = Field(description="Of epsilon, by what is spent; None where either is not known.")
    rounds_done: int = Field(description="Training rounds that were opened, attempts that failed among them.")
    rounds_allowed: int | None = Field(description="By the plan's own noise; None: it adds none.")
    envoys: list[EnvoyBudget] = Field(description="What each published last; what none published is not known here.")


@router.get("/privacy-report")
def show_privacy_report(
    hub: TheHub,
    works: TheWorks,
    caller: TheCaller,
    round: RoundQuery = None,  # noqa: A002 - as it is asked for
    task: TaskQuery = None,
) -> RunPrivacyReport:
    """Epsilons and leakage scores that sites published, and whether the director saw single updates."""
    record = seen_run(hub, works, caller, Resource.REPORT, task)
    view = works.desk.show(record.run)
    if round is not None:
        rounds = tuple(one for one in view.rounds if one.round == round)
        if not rounds:
            raise UnknownEntityError(f"{record.run} had no round {round}")
        view = replace(view, rounds=rounds)
    found = of_run(view)
    scores = {str(name): score for one in view.rounds for name, score in sorted(one.leakage.items())}
    return RunPrivacyReport(task_id=record.run, round=round, leakage_scores=scores, **found)


@router.get("/budget")
def show_budget(hub: TheHub, works: TheWorks, caller: TheCaller, task: TaskQuery = None) -> BudgetBody:
    """The run's privacy budget, and what its sites published of theirs. Nothing that they kept to themselves."""
    record = seen_run(hub, works, caller, Resource.REPORT, task)
    settings = parse_toml(record.settings, ExperimentSettings, f"experiment {record.run}")
    view, budget = works.desk.show(record.run), settings.privacy_budget
    last = _last_told(view)
    spent = max((one.epsilon for one in last.values()), default=None)
    is_known = budget is not None and spent is not None and all(one.delta <= budget.delta for one in last.values())
    return BudgetBody(
        task_id=record.run,
        epsilon=None if budget is None else budget.epsilon,
        delta=None if budget is None else budget.delta,
        mechanism=None if budget is None else budget.mechanism.value,
        spent=spent,
        remaining=max(0.0, budget.epsilon - spent) if is_known and budget and spent is not None else None,
        rounds_done=sum(one.kind is TaskKind.TRAIN and one.invited > 0 for one in view.rounds),
        rounds_allowed=_rounds_allowed(works, record, settings),
        envoys=[
            EnvoyBudget(
                envoy=name,
                organization_id=hub.stations.whose(name),
                epsilon=one.epsilon,
                delta=one.delta,
                unit=one.unit.value,
            )
            for name, one in sorted(last.items())
        ],
    )


def _last_told(view: ExperimentView) -> dict[EnvoyName, PublishedEpsilon]:
    return {name: one for this in view.rounds for name, one in this.privacy.items()}


def _rounds_allowed(works: Works, record: RunRecord, settings: ExperimentSettings) -> int | None:
    """How many rounds fit into the budget by what the plan's own noise is worth."""
    if settings.privacy_budget is None:
        return None
    manifest = read_manifest(works.artifacts.read(record.plan))
    layout = Layout.from_json(works.artifacts.read(manifest.file(LAYOUT_FILE).sha256))
    codec = read_run_codec(settings, layout, works.artifacts)
    release = release_of(settings, manifest, (codec.payload_layout if codec else layout).size)
    if release is None:
        return None
    try:
        return rounds_within(release, settings.privacy_budget.epsilon, settings.privacy_budget.delta)
    except ConfigError:
        return 0
