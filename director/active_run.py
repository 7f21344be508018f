"""The run under way: its plan, its model, and the arithmetic that closes a round.

Memory is two vectors of the model's size, whatever the number of envoys: the present model, and the sum that becomes
the next one; they change places each round. Where groups are summed apart, one more for each group while they are
opened. FedAdam and its kin add their own moments, a codec its own bases. What sites coded is summed as codes and
decoded once, so a round costs one decoding whatever the number of envoys.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..gradient_leakage.vae.codec import Codec, round_seed
from ..utils.aggregation import aggregate, is_finite
from ..utils.artifacts import ArtifactStore
from ..utils.config import parse_toml
from ..utils.errors import (
    LayoutMismatchError,
    LengthMismatchError,
    NonFiniteUpdateError,
    NoQuorumError,
    PlanError,
    UnsendableUpdateError,
)
from ..utils.messages import EnvoyName, PayloadKind, Task, TaskKind, TaskRef, UpdateHeader
from ..utils.metrics import MetricSum, total
from ..utils.plan_bundle import INITIAL_FILE, LAYOUT_FILE, Manifest, mapped, read_manifest
from ..utils.proposal import Patch, proposal_of
from ..utils.secure_sum.groups import Groups
from ..utils.secure_sum.summation import Opened
from ..utils.tensors import Digest, Layout, Role, Vector, model_num_bytes, model_pieces, read_model
from .coding import read_run_codec
from .experiments import ExperimentSettings
from .group_opening import OpenedGroup, record_of
from .privacy_budget import exhausted, spent_of
from .private_runs import release_of
from .records import Published, RoundRecord, RunRecord, SubmissionRecord, SumRecord
from .rounds import Round
from .server_optimizer import State, initial_state, state_from_bytes, state_pieces, step
from .steering import Steering
from .sum_opening import open_into, read_total
from .sum_terms import check_summable, first_bounds, next_bounds, terms_of
from .uploads import Uploads

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round gave; nothing of the run has changed until it is adopted."""

    model: Digest
    metrics: tuple[MetricSum, ...]
    optimizer_state: Digest | None = None
    num_examples: int = 0
    sum: SumRecord | None = None  # under secure aggregation
    vector: Vector | None = field(default=None, compare=False)
    state: State | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a closed round gave, as long as it lies on disk: the run can be rolled back to it."""

    round: int
    model: Digest
    state: Digest | None  # of the server optimizer


class ActiveRun:
    """One run, from its first round to its end."""

    def __init__(
        self,
        record: RunRecord,
        artifacts: ArtifactStore,
        optimizer_state: Digest | None = None,
        steering: Steering | None = None,
    ) -> None:
        self.record = record
        self.settings = parse_toml(record.settings, ExperimentSettings, f"experiment {record.run}")
        self.proposal = proposal_of(record.proposal.content) if record.proposal else None
        self.manifest: Manifest = read_manifest(artifacts.read(record.plan))
        self.layout = Layout.from_json(artifacts.read(self.manifest.file(LAYOUT_FILE).sha256))
        self.codec: Codec | None = read_run_codec(self.settings, self.layout, artifacts)
        check_summable(self.settings, self.layout)
        self.bounds = self._first_bounds  # that the last closed round's secure sum gave
        self._bounds_from = 0  # patches that round was opened with
        self.expelled = dict(record.expelled)
        self.groups = Groups(record.groups) if record.groups else None  # that are summed apart
        self.model = record.model
        self.progress: list[dict[str, float]] = []  # the federated metrics of each closed round, for the stop rule
        self.kept: list[Kept] = []  # oldest first
        self.steering = steering or Steering()
        self.patches = 0  # that the last round was opened with
        self.min_cell = 0  # the federation's, of what sites publish by subgroups; 0: they are not asked for it
        self.state = optimizer_state  # of the server optimizer, as it lies on disk
        self._artifacts = artifacts
        vector, self._exact = read_model(self.layout, mapped(artifacts.path(record.model)))
        self._model: Vector = vector.copy()
        self._spare: Vector = np.empty_like(self._model)
        self._state: State = self._read_state(optimizer_state)

    @property
    def ref(self) -> TaskRef:
        """The first round's."""
        return TaskRef(self.record.run, 1, 1, self.record.plan)

    @property
    def sites(self) -> tuple[EnvoyName, ...]:
        """Who may be asked in the next round; empty: every member."""
        return self.steering.sites(self.proposal.sites if self.proposal else ())

    def sites_of(self, this: Round) -> tuple[EnvoyName, ...]:
        """Who could be asked in a round that was opened; empty: every member."""
        return self.steering.first(this.patches).sites(self.proposal.sites if self.proposal else ())

    @property
    def steered(self) -> ExperimentSettings:
        """The settings with the stop rule as it stands by now."""
        return self.steering.settings(self.settings)

    @property
    def roll_back(self) -> Patch | None:
        """A rollback that takes effect when the next round is opened."""
        return self.steering.roll_back(self.patches)

    def out_of_budget(
        self, told: Sequence[RoundRecord], published: Mapping[tuple[int, int], Mapping[EnvoyName, Published]]
    ) -> str | None:
        """Why its privacy budget lets no further training round begin; None where it does, or there is none.

        Args:
            told: every attempt at every round so far; the last one is over, or about to be.
            published: what sites told with their answers, by round and attempt.
        """
        budget = self.settings.privacy_budget
        if budget is None:
            return None
        a_round = release_of(self.settings, self.manifest, self.payload_layout.size)
        return exhausted(budget, a_round, spent_of(told, published))

    def recall(self, line: Sequence[RoundRecord], closed: int) -> None:
        """What the run knows of its past, after a restart or a rollback.

        Args:
            line: the closed training rounds that the present model came from.
            closed: the number of the last closed training round.
        """
        self.progress = progress_of(line, closed)
        summed = next((one for one in reversed(line) if one.sum is not None), None)
        self.bounds = summed.sum.bounds if summed is not None and summed.sum is not None else self._first_bounds
        self._bounds_from = summed.round.patches if summed is not None else 0

    def return_to(self, line: Sequence[RoundRecord], closed: int) -> None:
        """Go on from the model, and the optimizer's state, that the last round of a line gave; or from the start.

        Raises:
            UnknownArtifactError: they are gone from the disk.
        """
        model = self.model_after(line)
        state = line[-1].optimizer_state if line else None
        vector, exact = read_model(self.layout, mapped(self._artifacts.path(model)))
        read = self._read_state(state)
        self._model, self._exact, self._state = vector.copy(), exact, read
        self.model, self.state = model, state
        self.recall(line, closed)

    def model_after(self, line: Sequence[RoundRecord]) -> Digest:
        """The model that the last round of a line gave; the plan's initial one where the line is empty."""
        return (line[-1].model_out if line else None) or self.manifest.file(INITIAL_FILE).sha256

    def _read_state(self, digest: Digest | None) -> State:
        if digest is None:
            return initial_state(self.settings.server_optimizer, self.layout)
        return state_from_bytes(self.settings.server_optimizer, self.layout, self._artifacts.read(digest))

    @property
    def _first_bounds(self) -> tuple[float, ...]:
        return first_bounds(self.settings, len(self.payload_sizes))

    def _bounds_of(self, this: Round) -> tuple[float, ...]:
        """Of a round's secure sum. Sums under other settings say nothing of how far updates go now: it starts anew."""
        is_changed = any(patch.settings for patch in self.steering.patches[self._bounds_from : this.patches])
        return self._first_bounds if is_changed else self.bounds

    @property
    def payload_layout(self) -> Layout:
        """Of what leaves a site: the codec's, or the plan's."""
        return self.codec.payload_layout if self.codec else self.layout

    @property
    def payload_sizes(self) -> tuple[int, ...]:
        """Elements of each of its tensors."""
        return tuple(entry.size for entry in self.payload_layout.entries)

    def task(self, this: Round, now: float) -> Task:
        """The order that each envoy of the cohort gets; with groups, but for what is its group's own."""
        left = this.since + self.settings.rounds.round_timeout_seconds - now
        is_secure, bounds = self.settings.is_secure, self._bounds_of(this)
        return Task(
            ref=this.ref,
            kind=this.kind,
            model=self.model,
            model_bytes=model_num_bytes(self.layout),
            layout=self.layout.digest,
            seed=self.record.seed,
            seconds_left=max(left, 0.0),
            min_participants=self.settings.rounds.min_participants,
            cohort=tuple(sorted(this.cohort)),
            payload=self._payload,
            codec=self._codec_digest,
            asked=self.settings.protection,
            sum=terms_of(self.settings, bounds if this.kind is TaskKind.TRAIN else bounds[:1]) if is_secure else None,
            proposal=self.record.proposal_digest,
            patches=self.steering.first(this.patches).documents,
            fairness_min_cell=self.min_cell if self._asks_fairness(this) else 0,
        )

    def _asks_fairness(self, this: Round) -> bool:
        """In a final evaluation, and in every so many-th training round if the experiment says so."""
        every = self.settings.rounds.fairness_every
        return this.kind is TaskKind.EVALUATE or bool(every and this.ref.round % every == 0)

    def tasks(self, this: Round, now: float) -> tuple[Task, ...]:
        """The order of all, or of each group that is asked: in it, the group is the cohort."""
        task, asked = self.task(this, now), self.settings.secure_sum
        if self.groups is None or task.sum is None:
            return (task,)
        return tuple(
            replace(
                task,
                cohort=members,
                min_participants=min(asked.floors.organizations, len(members)),
                sum=replace(task.sum, group=number, histogram=False),  # a group may be too small for one
            )
            for number, members in self.groups.among(task.cohort).items()
        )

    def task_of(self, this: Round, envoy: EnvoyName, now: float) -> Task:
        """The order that an envoy of the cohort gets."""
        return next(task for task in self.tasks(this, now) if envoy in task.cohort)

    def conclude(
        self, this: Round, submissions: Sequence[SubmissionRecord], uploads: Uploads, num_envoys: int
    ) -> Outcome:
        """Sum the answers of an aggregating round, always in the order of the envoys' names.

        The same answers give the same model bit for bit, whoever came first and however often the director was killed
        meanwhile. A withheld update (one without examples) was received like any other, and is no answer here.

        Raises:
            NoQuorumError: fewer updates that were not withheld than ``min_participants``.
            UnsendableUpdateError: an answer is no longer on disk.
            NonFiniteUpdateError: the sum or the step left the range of float32.
            StorageError: the disk is full.
        """
        metrics = _total(this, [metric for one in submissions for metric in one.metrics])
        if this.kind is TaskKind.EVALUATE:
            return Outcome(self.model, metrics)
        num_examples = self._sum(this, [one for one in submissions if one.num_examples], uploads, num_envoys)
        return self._stepped(this, metrics, num_examples)

    def conclude_sum(
        self,
        this: Round,
        opened: Opened,
        uploads: Uploads,
        num_envoys: int,
        total: NDArray[np.uint32] | None = None,
    ) -> Outcome:
        """Open a secure sum; the same masked vectors give the same model bit for bit, whoever unmasks their sum.

        Args:
            this: the round.
            opened: what unmasks the sum.
            uploads: hold the masked vectors.
            num_envoys: of the federation.
            total: the sum, where an aggregator elsewhere unmasked it.

        Raises:
            FederationError: as ``conclude`` and ``open_into``.
        """
        codec, terms = self.codec, opened.cohort.spec.terms
        body = np.empty(self.payload_layout.size, np.float32) if codec else self._spare
        found = open_into(opened, uploads, body) if total is None else read_total(opened, total, body)
        bounds: tuple[float, ...] = ()
        if this.kind is TaskKind.TRAIN and terms.noise is None:
            first = self.settings.secure_sum.clip
            contributions = found.tallies.contributions
            bounds = next_bounds(
                terms.bounds, self.payload_sizes, found.tallies.clipped, found.peaks, contributions, first
            )
        record = SumRecord(
            survivors=opened.survivors,
            cohort=len(opened.cohort.names),
            threshold=opened.cohort.threshold,
            total_weight=found.tallies.num_examples,
            transcript=Digest(opened.cohort.transcript.hex()),
            clipped=found.tallies.clipped,
            bounds=bounds,
            histogram=found.tallies.histogram,
        )
        metrics = found.tallies.metrics
        if this.kind is TaskKind.EVALUATE:
            return Outcome(self.model, metrics, num_examples=record.total_weight, sum=record)
        if codec:
            self._decode(this, codec, body)
        control = self.layout.slice_of(Role.CONTROL)
        self._spare[control] *= np.float32(min(1.0, len(opened.survivors) / max(num_envoys, 1)))
        return self._stepped(this, metrics, record.total_weight, record)

    def conclude_groups(self, this: Round, groups: Sequence[OpenedGroup]) -> Outcome:
        """The run's rule over the means of groups that were summed apart; each of them counts alike.

        Raises:
            FederationError: as ``conclude``.
        """
        record = record_of(groups, self.payload_sizes, self.settings.secure_sum.clip)
        metrics = _total(this, [metric for group in groups for metric in group.found.tallies.metrics])
        if this.kind is TaskKind.EVALUATE:
            return Outcome(self.model, metrics, num_examples=record.total_weight, sum=record)
        aggregate(self.settings.aggregation, self.layout, groups, self._spare)
        return self._stepped(this, metrics, record.total_weight, record)

    def _stepped(
        self, this: Round, metrics: tuple[MetricSum, ...], num_examples: int, record: SumRecord | None = None
    ) -> Outcome:
        """The server optimizer's step from the mean in the spare vector."""
        new, state = step(self.settings.server_optimizer, self.layout, self._model, self._spare, self._state)
        if not is_finite(new):
            raise NonFiniteUpdateError(f"{this.ref}: the new model holds NaN or infinity; the model before it is kept")
        model = self._artifacts.put(model_pieces(self.layout, new, self._exact))
        pieces = state_pieces(state)
        kept = self._artifacts.put(pieces) if pieces else None
        return Outcome(model, metrics, kept, num_examples, record, new, state)

    def adopt(self, outcome: Outcome) -> None:
        """The outcome is in the database: it is the run's model now. The old model's memory takes the next sum."""
        if outcome.vector is not None and outcome.state is not None:
            self._model, self._spare, self._state = outcome.vector, self._model, outcome.state
            self.state = outcome.optimizer_state
            self.kept.append(Kept(len(self.progress) + 1, outcome.model, outcome.optimizer_state))
            self.progress.append(values_of(outcome.metrics))
            if outcome.sum:
                self.bounds, self._bounds_from = outcome.sum.bounds, self.patches
        self.model = outcome.model

    def _sum(self, this: Round, answers: Sequence[SubmissionRecord], uploads: Uploads, num_envoys: int) -> int:
        """The weighted sum of the answers, decoded, into the spare vector; gives the number of examples."""
        quorum = self.settings.rounds.min_participants
        if len(answers) < quorum:
            raise NoQuorumError(f"{this.ref}: {len(answers)} of {quorum} answers needed were not withheld")
        codec, rule = self.codec, self.settings.aggregation
        layout = self.payload_layout
        summed = np.empty(layout.size, np.float32) if codec else self._spare
        participation = min(1.0, len(answers) / max(num_envoys, 1))
        with ExitStack() as stack:
            updates = [uploads.stored(one.envoy, one.num_examples) for one in answers]
            for update in updates:
                stack.callback(update.close)
            num_examples = aggregate(rule, layout, updates, summed, participation=participation)
        if codec:
            self._decode(this, codec, summed)
        return num_examples

    def _decode(self, this: Round, codec: Codec, summed: Vector) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # the new model is looked at, once it is there
            codec.for_round(round_seed(this.ref, self.model, codec.digest)).decode(summed, out=self._spare)

    def check_header(self, header: UpdateHeader, envoy: EnvoyName) -> None:
        """Does an announced update fit, before a byte of it is taken?

        Raises:
            LayoutMismatchError: another layout than the plan's.
            LengthMismatchError: another number of bytes than the run's updates have.
            UnsendableUpdateError: it is coded, and this run's are not; or the other way round; or by another codec.
        """
        if header.layout != self.layout.digest:
            raise LayoutMismatchError(
                f"{envoy} announces layout {header.layout[:12]}, expected {self.layout.digest[:12]}"
            )
        if (header.payload, header.codec) != (self._payload, self._codec_digest):
            came, expected = _coding(header.payload, header.codec), _coding(self._payload, self._codec_digest)
            raise UnsendableUpdateError(f"{envoy} announces {came}, expected {expected}")
        if header.length != self._update_bytes:
            raise LengthMismatchError(f"{envoy} announces {header.length} bytes, expected {self._update_bytes}")

    @property
    def _payload(self) -> PayloadKind:
        return PayloadKind.CODED if self.codec else PayloadKind.PLAIN

    @property
    def _codec_digest(self) -> Digest | None:
        return self.codec.digest if self.codec else None

    @property
    def _update_bytes(self) -> int:
        return self.payload_layout.num_bytes


def _coding(payload: PayloadKind, codec: Digest | None) -> str:
    return f"a {payload.value} update of codec {codec[:12]}" if codec else f"a {payload.value} update without a codec"


def _total(this: Round, metrics: Sequence[MetricSum]) -> tuple[MetricSum, ...]:
    """The sum of all metrics; of a name that is used for two kinds, the kind that most mean."""
    votes = Counter((metric.name, metric.kind) for metric in metrics)
    meant = {name: kind for (name, kind), _ in reversed(votes.most_common())}
    if len(meant) != len(votes):
        _LOG.warning("metrics of two kinds under one name were left out task=%s", this.ref)
    return total(metric for metric in metrics if meant[metric.name] is metric.kind)


def progress_of(line: Sequence[RoundRecord], closed: int) -> list[dict[str, float]]:
    """The federated metrics of training rounds 1 to ``closed``, for the stop rule; none of those that were rolled back.

    Patience then goes on as it stood after the round that the run went back to.
    """
    values = {one.round.ref.round: values_of(one.metrics) for one in line}
    return [values.get(number, {}) for number in range(1, closed + 1)]


def values_of(metrics: tuple[MetricSum, ...]) -> dict[str, float]:
    """The metrics that have a value, by name."""
    return {metric.name: metric.value for metric in metrics if metric.value is not None}


def check_plan(manifest: Manifest, artifacts: ArtifactStore) -> tuple[Layout, Digest]:
    """The layout and the initial model of a plan whose blobs are all here.

    Raises:
        PlanError, LayoutMismatchError, MalformedMessageError: the blobs do not fit each other.
    """
    for file in manifest.files:
        if artifacts.size(file.sha256) != file.size:
            raise PlanError(
                f"plan {manifest.name}: {file.path} has {artifacts.size(file.sha256)} bytes, expected {file.size}"
            )
    layout = Layout.from_json(artifacts.read(manifest.file(LAYOUT_FILE).sha256))
    if layout.digest != manifest.layout:
        raise PlanError(
            f"plan {manifest.name}: {LAYOUT_FILE} is layout {layout.digest[:12]}, not {manifest.layout[:12]}"
        )
    initial = manifest.file(INITIAL_FILE).sha256
    read_model(layout, mapped(artifacts.path(initial)))
    return layout, initial
