"""What the director keeps of runs, rounds and answers, as values; and as rows of its tables, there and back.

Does no I/O: ``history`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from sqlalchemy import Row

from ..utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from ..utils.metrics import MetricKind, MetricSum
from ..utils.privacy.values import PublishedEpsilon, Unit
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest, digest_of
from .rounds import Round, RoundState


class RunState(Enum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_over(self) -> bool:
        """Nothing moves it any more."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends, and why."""

    state: RunState
    reason: str

    def __post_init__(self) -> None:
        if not self.state.is_over:
            raise ValueError(f"a run does not end as {self.state.value}")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One submitted experiment. Times are seconds since 1970."""

    run: RunId
    name: str
    state: RunState
    settings: str  # the text of experiment.toml
    plan: Digest
    layout: Digest
    seed: bytes
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    reason: str
    model: Digest  # the latest
    bytes_up: int = 0
    bytes_down: int = 0
    expelled: Mapping[EnvoyName, str] = field(default_factory=dict)  # not asked again in this run, and why
    groups: tuple[tuple[EnvoyName, ...], ...] = ()  # who is summed with whom; (): all with all
    proposal: SignedDocument | None = None  # checked when it came; None in runs of before there were any

    @property
    def proposal_digest(self) -> Digest | None:
        """What approvals and tasks name."""
        return None if self.proposal is None else digest_of(self.proposal.content)


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """What the secure sum of one group leaves."""

    number: int  # from 1
    survivors: tuple[EnvoyName, ...]
    cohort: int
    threshold: int
    total_weight: int
    transcript: Digest


@dataclass(frozen=True, slots=True)
class SumRecord:
    """What a secure sum leaves: who is in it and under which transcript, and the next clip bounds. Sums alone.

    Where groups were summed apart, it is of all of them: the least threshold, the digest of the groups' transcripts.
    """

    survivors: tuple[EnvoyName, ...]  # by name
    cohort: int  # envoys that had exchanged keys
    threshold: int
    total_weight: int
    transcript: Digest
    clipped: tuple[int, ...]  # elements of each tensor that were clipped, over all sites
    bounds: tuple[float, ...]  # clip bounds of the next round; () after an evaluation
    histogram: tuple[int, ...] = ()  # of the sites' norms, from 20 sites on
    groups: tuple[GroupRecord, ...] = ()  # those whose sums were opened


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One attempt at a round, and what came out of it."""

    round: Round
    model_in: Digest
    model_out: Digest | None
    metrics: tuple[MetricSum, ...]  # summed over sites
    optimizer_state: Digest | None  # after this round
    opened_at: float | None
    closed_at: float | None  # closed or failed
    num_examples: int  # summed over sites
    sum: SumRecord | None = None  # None: no secure sum, or not closed


@dataclass(frozen=True, slots=True)
class Published:
    """What a site chose to tell of itself with an update."""

    privacy: PublishedEpsilon | None = None  # of its ledger
    leakage_score: float | None = None  # of its leak test: mean SSIM gain of the worst attack over chance


@dataclass(frozen=True, slots=True)
class SubmissionRecord:
    """One envoy's answer: with it in the database, the receipt may be sent."""

    ref: TaskRef
    envoy: EnvoyName
    digest: Digest
    length: int  # bytes
    num_examples: int  # 0 once the round is over
    metrics: tuple[MetricSum, ...]  # () once the round is over
    spool: str  # the name of the spooled file; "" for a metrics report
    published: Published = Published()  # it stays
    fairness: SignedDocument | None = None  # what the site publishes by subgroups; it stays, in a table of its own


def round_values(this: Round) -> dict[str, Any]:
    """What changes in a row of ``rounds`` while the round moves."""
    return {
        "state": this.state.value,
        "since": this.since,
        "cohort": sorted(this.cohort),
        "received": sorted(this.received),
        "declined": sorted(this.declined),
        "lost": sorted(this.lost),
        "reason": this.reason,
        "patches": this.patches,
    }


def run_values(record: RunRecord) -> dict[str, Any]:
    """A row of ``runs``."""
    return {
        "id": record.run,
        "name": record.name,
        "state": record.state.value,
        "settings": record.settings,
        "plan": record.plan,
        "layout": record.layout,
        "seed": record.seed,
        "submitted_at": record.submitted_at,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "reason": record.reason,
        "model": record.model,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "expelled": dict(record.expelled) or None,
        "sum_groups": [list(group) for group in record.groups] or None,
        "proposal": record.proposal.content if record.proposal else None,
        "proposal_signature": record.proposal.signature if record.proposal else None,
        "proposal_chain": record.proposal.chain if record.proposal else None,
    }


def run_record(row: Row[Any]) -> RunRecord:
    """The run of a row of ``runs``."""
    return RunRecord(
        run=RunId(row.id),
        name=row.name,
        state=RunState(row.state),
        settings=row.settings,
        plan=Digest(row.plan),
        layout=Digest(row.layout),
        seed=row.seed,
        submitted_at=row.submitted_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        reason=row.reason,
        model=Digest(row.model),
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        expelled={EnvoyName(name): reason for name, reason in (row.expelled or {}).items()},
        groups=tuple(tuple(map(EnvoyName, group)) for group in row.sum_groups or ()),
        proposal=None
        if row.proposal is None
        else SignedDocument(row.proposal, row.proposal_signature, row.proposal_chain),
    )


def round_record(row: Row[Any]) -> RoundRecord:
    """The round of a row of ``rounds``."""
    return RoundRecord(
        round=Round(
            ref=TaskRef(RunId(row.run), row.number, row.attempt, Digest(row.plan)),
            kind=TaskKind(row.kind),
            since=row.since,
            state=RoundState(row.state),
            cohort=_envoys(row.cohort),
            received=_envoys(row.received),
            declined=_envoys(row.declined),
            lost=_envoys(row.lost),
            reason=row.reason,
            patches=row.patches or 0,
        ),
        model_in=Digest(row.model_in),
        model_out=row.model_out,
        metrics=_metrics_of(row.metrics),
        optimizer_state=row.optimizer_state,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        num_examples=row.num_examples,
        sum=None if row.secure_sum is None else _sum_record(row.secure_sum),
    )


def sum_values(record: SumRecord | None) -> dict[str, Any] | None:
    """A secure sum's record as JSON."""
    return None if record is None else asdict(record)


def _sum_record(values: dict[str, Any]) -> SumRecord:
    return SumRecord(
        survivors=tuple(map(EnvoyName, values["survivors"])),
        cohort=values["cohort"],
        threshold=values["threshold"],
        total_weight=values["total_weight"],
        transcript=Digest(values["transcript"]),
        clipped=tuple(values["clipped"]),
        bounds=tuple(values["bounds"]),
        histogram=tuple(values["histogram"]),
        groups=tuple(map(_group_record, values.get("groups", ()))),
    )


def _group_record(values: dict[str, Any]) -> GroupRecord:
    survivors = tuple(map(EnvoyName, values["survivors"]))
    return GroupRecord(**values | {"survivors": survivors, "transcript": Digest(values["transcript"])})


def _envoys(names: list[str]) -> frozenset[EnvoyName]:
    return frozenset(map(EnvoyName, names))


def submission_values(record: SubmissionRecord) -> dict[str, Any]:
    """A row of ``submissions``."""
    return {
        "run": record.ref.run,
        "round": record.ref.round,
        "attempt": record.ref.attempt,
        "envoy": record.envoy,
        "digest": record.digest,
        "length": record.length,
        "num_examples": record.num_examples,
        "metrics": metrics_values(record.metrics),
        "spool": record.spool,
        "privacy": record.published.privacy.to_json() if record.published.privacy else None,
        "leakage_score": record.published.leakage_score,
    }


def submission_record(ref: TaskRef, row: Row[Any]) -> SubmissionRecord:
    """The answer of a row of ``submissions``."""
    return SubmissionRecord(
        ref=ref,
        envoy=EnvoyName(row.envoy),
        digest=Digest(row.digest),
        length=row.length,
        num_examples=row.num_examples or 0,
        metrics=_metrics_of(row.metrics or []),
        spool=row.spool,
        published=published(row),
    )


def published(row: Row[Any]) -> Published:
    """What a site told of itself, in a row of ``submissions``."""
    kept = row.privacy
    privacy = PublishedEpsilon(kept["epsilon"], kept["delta"], Unit(kept["unit"])) if kept else None
    return Published(privacy, row.leakage_score)


def metrics_values(metrics: tuple[MetricSum, ...]) -> list[list[Any]]:
    """Metrics as JSON."""
    return [[metric.name, metric.kind.value, list(metric.values), metric.weight] for metric in metrics]


def _metrics_of(rows: list[list[Any]]) -> tuple[MetricSum, ...]:
    return tuple(MetricSum(name, MetricKind(kind), tuple(values), weight) for name, kind, values, weight in rows)
