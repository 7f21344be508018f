"""Tasks, as they are told over HTTP: the run, its rounds, and where each site stands."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ...utils.messages import ExperimentView, RoundView
from ..hub.agreements import Agreement, Kind
from ..hub.subtasks import Subtask, SubtaskState
from ..hub.tasks import Task
from .documents import DocumentBody


class NewTask(BaseModel):
    """What is to be done, under which collaboration."""

    model_config = ConfigDict(extra="forbid")
    collaboration_id: Annotated[str, Field(min_length=1, max_length=32)]
    experiment: str = Field(min_length=1, max_length=64 << 10, description="The text of experiment.toml.")
    plan_digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of a plan that was brought.")
    proposal: DocumentBody


class ProcessingBody(BaseModel):
    """Which agreement on data applies, as it was when the task was made."""

    kind: Kind
    agreement_id: str
    number: int

    @classmethod
    def of(cls, agreement: Agreement) -> ProcessingBody:
        """As it is shown."""
        return cls(kind=agreement.kind, agreement_id=agreement.id, number=agreement.version)


class RoundBody(BaseModel):
    """One attempt at a round: sums over sites."""

    round: int
    attempt: int
    kind: str
    state: str
    invited: int
    received: int
    seconds: float
    metrics: dict[str, float]
    model_digest: str | None
    reason: str
    survivors: list[str] | None = Field(description="Whose updates are in the secure sum; none: there was none.")

    @classmethod
    def of(cls, view: RoundView) -> RoundBody:
        """As it is shown."""
        return cls(
            round=view.round,
            attempt=view.attempt,
            kind=view.kind.value,
            state=view.state,
            invited=view.invited,
            received=view.received,
            seconds=view.seconds,
            metrics=view.metrics,
            model_digest=view.model,
            reason=view.reason,
            survivors=None if view.sum is None else sorted(view.sum.survivors),
        )


class SubtaskBody(BaseModel):
    """Where one site stands."""

    envoy: str
    organization_id: str | None
    state: SubtaskState

    @classmethod
    def of(cls, subtask: Subtask, organization: str | None) -> SubtaskBody:
        """As it is shown."""
        return cls(envoy=subtask.envoy, organization_id=organization, state=subtask.state)


class TaskSummary(BaseModel):
    """A task without its rounds."""

    task_id: str
    collaboration_id: str
    organization_id: str
    user: str = Field(description="The name of who started it.")
    name: str
    state: str
    reason: str
    plan_digest: str
    proposal_digest: str | None
    max_rounds: int
    processing: ProcessingBody
    dataset: str | None
    submitted_at: float = Field(description="Seconds since 1970.")
    patches: int

    @classmethod
    def of(cls, task: Task, view: ExperimentView, user: str, processing: Agreement) -> TaskSummary:
        """As it is shown."""
        return cls(**_told(task, view, user, processing))


class TaskBody(TaskSummary):
    """A task with its rounds and subtasks."""

    model_digest: str | None = Field(description="Of the present model.")
    rounds: list[RoundBody]
    subtasks: list[SubtaskBody]

    @classmethod
    def whole(
        cls, task: Task, view: ExperimentView, user: str, processing: Agreement, subtasks: list[SubtaskBody]
    ) -> TaskBody:
        """As it is shown."""
        rounds = [RoundBody.of(one) for one in view.rounds]
        return cls(**_told(task, view, user, processing), model_digest=view.model, rounds=rounds, subtasks=subtasks)


class SiteBudget(BaseModel):
    """What one site published."""

    total_epsilon: float
    delta: float
    unit: str


class SecureAggregationBody(BaseModel):
    """Whether sums alone came."""

    state: str
    masked: int
    in_clear: int
    metrics_in_clear: int


class PrivacyReport(BaseModel):
    """What a task cost in privacy, as far as its sites publish it."""

    task_id: str
    total_epsilon: float | None = Field(description="Of the worst site; none where nothing bounds the whole.")
    delta: float | None
    unit: str | None
    adjacency: str
    mechanism: str
    accountant: str
    participants: int
    sites: dict[str, SiteBudget]
    secure_aggregation: SecureAggregationBody
    leakage_score: float | None
    attack_used: str | None
    suppressed_cells: int | None


def _told(task: Task, view: ExperimentView, user: str, processing: Agreement) -> dict[str, Any]:
    return {
        "task_id": task.run,
        "collaboration_id": task.collaboration,
        "organization_id": task.organization,
        "user": user,
        "name": view.name,
        "state": view.state,
        "reason": view.reason,
        "plan_digest": view.plan,
        "proposal_digest": view.proposal,
        "max_rounds": view.max_rounds,
        "processing": ProcessingBody.of(processing),
        "dataset": task.dataset,
        "submitted_at": view.submitted_at,
        "patches": view.patches,
    }
