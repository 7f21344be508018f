"""What operators ask for: submit an experiment, look at it, stop it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from cryptography import x509
from sqlalchemy import Connection

from .. import __version__
from ..utils import messages as m
from ..utils.artifacts import ArtifactStore
from ..utils.config import parse_toml
from ..utils.errors import ConfigError, MalformedMessageError, PlanError
from ..utils.identity import PeerId, Role
from ..utils.plan_bundle import Manifest, read_manifest
from ..utils.proposal import read_patch, read_proposal
from ..utils.signed_document import SignedDocument
from ..utils.tensors import model_num_bytes
from .active_run import check_plan
from .coding import read_run_codec
from .coordinator import Coordinator
from .experiments import ExperimentSettings
from .history import History
from .identity_store import IdentityStore
from .private_runs import check_privacy
from .proposals import check_proposal, check_signed
from .records import RoundRecord, RunRecord, RunState, SumRecord
from .rounds import RoundState
from .sum_terms import check_summable


class ExperimentDesk:
    """Composes history, artifacts and coordinator for the control door."""

    def __init__(
        self,
        federation: str,
        history: History,
        artifacts: ArtifactStore,
        coordinator: Coordinator,
        members: IdentityStore,
        root: x509.Certificate,
        *,
        max_model_bytes: int,
        now: Callable[[], float] = time.time,
        suspicions: Callable[[], Mapping[m.EnvoyName, str]] = dict,
    ) -> None:
        self._suspicions = suspicions
        self._federation, self._history, self._artifacts = federation, history, artifacts
        self._coordinator, self._members, self.max_model_bytes = coordinator, members, max_model_bytes
        self._numbering = threading.Lock()  # two runs of one name get two numbers
        self._root, self._now, self._started_at = root, now, now()

    def submit(
        self,
        caller: PeerId,
        submission: m.Submission,
        also: Callable[[m.RunId, Connection], None] = lambda *_: None,
    ) -> m.SubmitReply:
        """Queue an experiment, or say which blobs of its plan are missing, its codec among them.

        Args:
            caller: who submits it, and signed its proposal.
            submission: as it came.
            also: what else is kept of the run, in the transaction that queues it; if it raises, nothing is queued.

        Raises:
            ConfigError: its settings are not right, or it comes without a proposal.
            IdentityError, NotAuthorizedError: its proposal is not signed as it should be, or not by the caller.
            ProtocolError: its proposal says something else than the experiment, or was submitted before.
            MalformedMessageError, PlanError: its plan is not one, or too large; its codec is not one.
            LayoutMismatchError: its codec is of another model.
        """
        settings = parse_toml(submission.settings, ExperimentSettings, "experiment.toml")
        manifest = read_manifest(submission.manifest)
        self._check_proposal(caller, settings, submission, manifest)
        needed = [digest for digest, _ in manifest.blobs()] + ([settings.codec.digest] if settings.codec else [])
        missing = tuple(digest for digest in needed if not self._artifacts.has(digest))
        if missing:
            return m.SubmitReply(missing, None)
        with self._numbering:
            record = self._record(settings, submission, manifest)
            self._artifacts.put([submission.manifest])
            self._coordinator.enqueue(record, lambda connection: also(record.run, connection))
        return m.SubmitReply((), record.run)

    def put_blob(self, parts: Iterator[m.Part]) -> m.Acknowledgement:
        """Take one blob of a plan.

        Raises:
            MalformedMessageError: parts in another order.
            PlanError: larger than this director takes.
            UnsendableUpdateError: its length or SHA-256 is not the announced one.
        """
        opening = next(parts, None)
        if not isinstance(opening, m.Opening) or opening.digest is None or opening.offset:
            raise MalformedMessageError("a blob starts with an opening at 0 that says its SHA-256")
        if opening.length > self.max_model_bytes:
            raise PlanError(f"a blob of {opening.length} bytes; this director takes {self.max_model_bytes} at most")
        with self._artifacts.receive(opening.digest, opening.length) as receiving:
            for part in parts:
                if isinstance(part, m.Data):
                    receiving.write(part.content)
            receiving.close()
        return m.Acknowledgement()

    def status(self) -> m.StatusReply:
        """The director, who is there, and what is under way."""
        envoys, suspicions = [], self._suspicions()
        for identity in self._members.identities():
            if identity.role == "envoy":
                name = m.EnvoyName(identity.name)
                is_there, silent = self._coordinator.presence(name)
                suspicion = suspicions.get(name, "")
                envoys.append(m.EnvoyView(name, identity.organization, is_there, min(silent, 1e9), suspicion))
        under_way = [r for r in self._history.runs() if not r.state.is_over]
        return m.StatusReply(
            self._federation,
            f"fedveil {__version__}",
            self._now() - self._started_at,
            tuple(envoys),
            tuple(self._view(record) for record in under_way),
        )

    def list(self) -> tuple[m.ExperimentView, ...]:
        """All experiments, without their rounds."""
        return tuple(replace(self._view(record), rounds=()) for record in self._history.runs())

    def show(self, run: m.RunId) -> m.ExperimentView:
        """One experiment with its rounds; with the last round that sites published of by subgroups, what they said.

        Raises:
            ProtocolError: there is none of that name.
        """
        view, told = self._view(self._history.run(run)), self._history.fairness(run)
        last = max(told, default=None)  # a reply has a limit; the REST API gives those of all rounds
        rounds = (
            replace(one, fairness=told[last]) if last is not None and (one.round, one.attempt) == last else one
            for one in view.rounds
        )
        return replace(view, rounds=tuple(rounds))

    def steer(self, caller: PeerId, document: SignedDocument) -> m.ExperimentView:
        """Pause, resume, stop, roll back or change an experiment, as a patch says that the caller signed.

        Raises:
            MalformedMessageError: no patch.
            IdentityError, NotAuthorizedError: not signed as it should be, or not by the caller.
            ProtocolError, ConfigError: there is no such run, it is over, or the patch cannot be taken.
        """
        now = self._now()
        patch = read_patch(document, self._root, self._federation, now)
        check_signed(patch.signed_by, patch.signed_at, caller, now, "a patch")
        self._coordinator.steer(patch, document)
        return self.show(patch.run)

    def _check_proposal(
        self, caller: PeerId, settings: ExperimentSettings, submission: m.Submission, manifest: Manifest
    ) -> None:
        if submission.proposal is None:
            raise ConfigError("an experiment comes with a signed proposal: submit it with a newer fedveil")
        proposal = read_proposal(submission.proposal, self._root, self._now())
        check_proposal(proposal, settings, submission.settings, manifest, caller, self._now())

    def _record(self, settings: ExperimentSettings, submission: m.Submission, manifest: Manifest) -> RunRecord:
        layout, initial = check_plan(manifest, self._artifacts)
        if model_num_bytes(layout) > self.max_model_bytes:
            raise PlanError(
                f"plan {manifest.name} has a model of {model_num_bytes(layout)} bytes;"
                f" this director takes {self.max_model_bytes} at most"
            )
        codec = read_run_codec(settings, layout, self._artifacts)
        check_summable(settings, layout)
        self._check_aggregator(settings)
        check_privacy(settings, manifest, (codec.payload_layout if codec else layout).size)
        taken = {record.run for record in self._history.runs()}
        number = next(n for n in range(1, len(taken) + 2) if f"{settings.name}-{n}" not in taken)
        return RunRecord(
            run=m.RunId(f"{settings.name}-{number}"),
            name=settings.name,
            state=RunState.QUEUED,
            settings=submission.settings,
            plan=manifest.digest,
            layout=layout.digest,
            seed=settings.seed_bytes or secrets.token_bytes(32),
            submitted_at=self._now(),
            started_at=None,
            ended_at=None,
            reason="",
            model=initial,
            proposal=submission.proposal,
        )

    def _check_aggregator(self, settings: ExperimentSettings) -> None:
        name = settings.secure_sum.summing_envoy
        member = self._members.identity(name) if settings.is_secure and name else None
        if settings.is_secure and name and (member is None or member.role != Role.ENVOY.value):
            raise ConfigError(
                f"secure_sum.aggregator: no envoy {name} has joined; `director status` lists those that have"
            )

    def _view(self, record: RunRecord) -> m.ExperimentView:
        steering = self._history.steering(record.run)
        settings = steering.settings(parse_toml(record.settings, ExperimentSettings, f"experiment {record.run}"))
        pause, reason = None if record.state.is_over else steering.pause, record.reason
        if pause is not None:
            reason = f"paused by {pause.signed_by.name}{f': {pause.reason}' if pause.reason else ''}"
        elif record.state is RunState.QUEUED:
            reason = self._coordinator.waits_for(record)
        return m.ExperimentView(
            run=record.run,
            name=record.name,
            state="paused" if pause is not None else record.state.value,
            reason=reason,
            plan=record.plan,
            model=record.model,
            model_bytes=self._artifacts.size(record.model) if self._artifacts.has(record.model) else 0,
            max_rounds=settings.rounds.max_rounds,
            submitted_at=record.submitted_at,
            rounds=self._rounds(record.run),
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
            proposal=record.proposal_digest,
            approved_by=self._coordinator.approved_by(record),
            patches=len(steering.patches),
        )

    def _rounds(self, run: m.RunId) -> tuple[m.RoundView, ...]:
        published = self._history.published(run)
        views = []
        for one in self._history.rounds(run):
            told = published.get((one.round.ref.round, one.round.ref.attempt), {})
            privacy = {name: said.privacy for name, said in told.items() if said.privacy is not None}
            leakage = {name: said.leakage_score for name, said in told.items() if said.leakage_score is not None}
            views.append(replace(self._round(one), privacy=privacy, leakage=leakage))
        return tuple(views)

    def _round(self, record: RoundRecord) -> m.RoundView:
        this = record.round
        began = record.opened_at if record.opened_at is not None else this.since
        return m.RoundView(
            round=this.ref.round,
            attempt=this.ref.attempt,
            kind=this.kind,
            state=this.state.value,
            invited=len(this.cohort),
            received=len(this.received),
            seconds=(record.closed_at if record.closed_at is not None else self._now()) - began,
            metrics={metric.name: metric.value for metric in record.metrics if metric.value is not None},
            model=record.model_out,
            reason=this.reason if this.state is not RoundState.PLANNED else "waits for envoys",
            sum=_sum_view(record.sum),
        )


def _sum_view(record: SumRecord | None) -> m.SumView | None:
    if record is None:
        return None
    return m.SumView(record.survivors, record.cohort, record.threshold, record.total_weight, record.transcript)
