"""The director's imperative shell: events come in, the pure rounds decide, every transition is written, then acted on.

One lock guards the present round. What takes long happens outside it: uploads are streamed to disk by the calls that
bring them, and one thread (``director-rounds``) opens, sums and closes rounds. After a kill -9 ``start`` finds the
open round in the database and goes on: what has a receipt is there, the others are asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from sqlalchemy import Connection

from ..utils import messages as m
from ..utils.artifacts import ArtifactStore
from ..utils.errors import (
    BadShareError,
    FederationError,
    ProtocolError,
    StorageError,
    UnknownArtifactError,
    UnreachableError,
    WrongRoundError,
)
from ..utils.proposal import Patch, Step, proposal_of
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest, digest_of
from . import rounds
from .active_run import ActiveRun, Outcome, progress_of, values_of
from .answers import answer_of_report, answer_of_update
from .attendance import Attendance
from .audit import DirectorAudit
from .conclusion import Conclusion
from .fairness_desk import FairnessDesk
from .history import History
from .lines import Line, Lines
from .mandates import Mandates, Unbound
from .opening import Opening
from .patches import Patches, waits_anew
from .plan_files import files_of
from .present import Present
from .records import Ending, RunRecord, RunState, SubmissionRecord
from .relayed_sum import RelayedSum
from .resumption import left_open
from .retention import Retention
from .round_sum import RoundSum
from .rounds import Round, RoundState
from .run_queue import RunQueue
from .sequel import after_close, after_expiry, after_failure, stopped, with_refusals, withheld
from .steering import lineage
from .sums import Sums
from .traffic import Traffic
from .uploads import Uploads

_LOG = logging.getLogger(__name__)
_TICK_SECONDS = 0.25
_STALL_SECONDS = 1.0  # more between two looks, and silence is not the envoys'
_STORAGE_SECONDS = 2.0
_TURN_SECONDS = 20.0  # how long a call that asks for a turn is held


class Coordinator:
    """Runs one experiment after the other.

    Args:
        history: the database of runs and rounds.
        artifacts: models, manifests and blobs.
        uploads: turns and spools.
        members: the names of all envoys that joined.
        sums: makes the secure sums; without it, runs under secure aggregation fail.
        audit: the director's log; without it, nothing is logged.
        fairness: checks what sites publish by subgroups; without it, they are not asked for it, and none is kept.
        suspects: envoys that are not asked: the director does not believe their audit logs.
        mandates: whether a run may go on, and whom it may ask; without them, all may and all may be.
        keep_models: how many models of a run stay on disk; 0 keeps all.
        now: seconds since 1970.
        broken: called when the rounds cannot go on in this process, after the reason was logged.
    """

    def __init__(
        self,
        history: History,
        artifacts: ArtifactStore,
        uploads: Uploads,
        members: Callable[[], frozenset[m.EnvoyName]],
        *,
        sums: Sums | None = None,
        audit: DirectorAudit | None = None,
        fairness: FairnessDesk | None = None,
        suspects: Callable[[], Collection[m.EnvoyName]] = frozenset,
        mandates: Mandates | None = None,
        keep_models: int = 5,
        registered: Callable[[], Collection[Digest]] = frozenset,
        now: Callable[[], float] = time.time,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._retention, self._broken = Retention(history, artifacts, keep_models, registered), broken
        self._history, self._artifacts, self._uploads = history, artifacts, uploads
        self._mandates, self._now, self._fairness = mandates or Unbound(), now, fairness
        self._audit = audit or DirectorAudit()
        self._lock = threading.Condition(threading.RLock())
        self._attendance = Attendance(now())
        self._lines = Lines()
        self._run: ActiveRun | None = None
        self._round: Round | None = None
        self._answers: dict[m.EnvoyName, SubmissionRecord] = {}  # of the present round, as in the database
        self._sum = RoundSum(sums, self._lines)
        self._queue = RunQueue(history, self._mandates)

        def asked(run: m.RunId) -> frozenset[m.EnvoyName]:
            return self._mandates.among(run, members())

        self._patches = Patches(history, artifacts, asked)
        self._opening = Opening(
            history,
            self._queue.approvals,
            self._attendance,
            asked,
            self._mandates.among,
            suspects,
            self._sum,
            self._lines,
            self._audit,
        )
        self._traffic = Traffic(history)
        self._conclusion = Conclusion(self._lock, self._lines, artifacts, uploads)
        self._refusals: dict[m.EnvoyName, str] = {}  # of the present round, for whoever asks why it failed
        self._looked_at = now()
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="director-rounds", daemon=True)

    def start(self) -> None:
        """Go on where the last director stopped, or was stopped."""
        with self._lock:
            self._resume()
            self._retention.sweep()
        self._thread.start()

    def close(self) -> None:
        """Finish what is being summed, end all lines, and leave the rest to the next start."""
        with self._lock:
            self._ends = True
            self._lock.notify_all()
        self._lines.close()
        self._thread.join()
        self._sum.close()

    # ------------------------------------------------------------ envoys

    def open_line(
        self,
        envoy: m.EnvoyName,
        held: tuple[m.TaskRef, ...],
        approved: tuple[Digest, ...] = (),
        *,
        is_poll: bool = False,
    ) -> Line:
        """An envoy opens a line: it is there, and gets what is open for it, then what is proposed to its site.

        A poll takes one item alone, so what is proposed is repeated to it after a while only.
        """
        with self._lock:
            self.hear(envoy)
            self._attendance.arrive(envoy, self._now())
            self._queue.say(envoy, approved)
            self._lock.notify_all()
            items = self._open_tasks(envoy, held)
            return self._lines.open(envoy, items + self._queue.offers(envoy, approved, self._now(), is_poll=is_poll))

    def close_line(self, line: Line) -> None:
        """A line ended, or broke."""
        self._lines.drop(line)
        with self._lock:
            self._attendance.leave(line.envoy, self._now())

    def hear(self, envoy: m.EnvoyName) -> None:
        """An envoy said something: if it was thought lost, it is waited for again.

        Raises:
            UnreachableError: this director is ending; what is said now is said again to the next.
        """
        with self._lock:
            if self._ends:
                raise UnreachableError("this director is ending; the next one goes on where it stopped")
            self._attendance.hear(envoy, self._now())
            if self._round is not None:
                self._save(rounds.regain(self._round, envoy))

    def beat(self, envoy: m.EnvoyName, heartbeat: m.Heartbeat) -> None:
        """An envoy says that it is there, and what its site approved by now."""
        with self._lock:
            self.hear(envoy)
            if self._queue.say(envoy, heartbeat.approved):
                self._lock.notify_all()

    def stay(self, envoy: m.EnvoyName, approved: tuple[Digest, ...], until: float) -> None:
        """A site without a line says what it approved, and until when it answers by itself; a past time ends that."""
        with self._lock:
            now = self._now()
            self._attendance.stay(envoy, until, now)
            if self._round is not None and until > now:
                self._save(rounds.regain(self._round, envoy))
            self._queue.say(envoy, approved)
            self._lock.notify_all()

    def present(self) -> Present | None:
        """The round under way, if a run is."""
        with self._lock:
            run, this = self._run, self._round
            if run is None or this is None:
                return None
            return Present(
                run=run.record.run,
                settings=run.settings,
                manifest=run.manifest,
                proposal=run.record.proposal_digest,
                sites=run.sites,
                round=this,
                model=run.model,
                layout=run.layout,
                payload=run.payload_layout,
                codec=run.codec.digest if run.codec else None,
            )

    def has_approved(self, envoy: m.EnvoyName, proposal: Digest | None) -> bool:
        """Did an envoy say that its site approved a proposal?"""
        with self._lock:
            return envoy in self._queue.approvals.by(proposal)

    def check_fetch(self, envoy: m.EnvoyName, digest: Digest) -> None:
        """May an envoy have this artifact?

        It may, where this is the model of a round that asks it, a file of a plan that is proposed to its site, or what
        a secure sum hands to it as the aggregator.

        Raises:
            UnknownArtifactError: no, or there is none; nobody learns which.
        """
        with self._lock:
            self.hear(envoy)
            run, this = self._run, self._round
            if run is not None and this is not None and envoy in this.cohort and digest == run.model:
                return
            if self._sum.handover is not None and self._sum.handover.hands(envoy, digest):
                return
            proposed = list(self._queue.proposed_to(envoy))
        if not any(digest in files_of(record, self._artifacts) for record in proposed):
            raise UnknownArtifactError(f"there is no artifact {digest} for {envoy}")

    def request_upload(self, envoy: m.EnvoyName, header: m.UpdateHeader) -> m.Grant:
        """Give a turn, or the receipt of an update that is already here.

        Raises:
            ProtocolError: the round does not take an update of this envoy.
            UnsendableUpdateError: what is announced does not fit the plan.
        """
        with self._lock:
            self.hear(envoy)
            kept = self._receipt_of(envoy, header.ref)
            if kept is not None:
                return kept
            run, this = self._open_round(header.ref, envoy)
            rounds.check_answer(this, header.ref, envoy)
            if self._sum.present is not None:
                self._sum.present.check_header(envoy, header)
            elif this.kind is not m.TaskKind.TRAIN:
                raise ProtocolError(f"{header.ref} asks for an evaluation, {envoy} announces an update")
            else:
                run.check_header(header, envoy)
            self._check_fairness(envoy, header.ref, header.fairness)
        turn = self._uploads.turn(envoy, header, _TURN_SECONDS)
        with self._lock:  # received while it waited, over another stream: what has a receipt is not written to again
            return self._receipt_of(envoy, header.ref) or turn

    def upload(self, envoy: m.EnvoyName, parts: Iterator[m.Part]) -> m.Receipt:
        """Take one update; the receipt is given once it is on disk and in the database.

        Raises:
            FederationError: as ``Uploads.receive``, and ``ProtocolError`` if the round closed meanwhile.
        """
        received = self._uploads.receive(envoy, parts, lambda: self.hear(envoy))
        with self._lock:
            self._traffic.count(up=received.header.length)
        return self._submit(answer_of_update(envoy, received, self._uploads.path(envoy).name))

    def report(self, envoy: m.EnvoyName, report: m.MetricsReport) -> m.Receipt:
        """Take the answer to an evaluation.

        Raises:
            ProtocolError: the round does not take an answer of this envoy.
        """
        with self._lock:
            self.hear(envoy)
            kept = self._receipt_of(envoy, report.ref)
            if kept is not None:
                return kept
            _, this = self._open_round(report.ref, envoy)
            if self._sum.present is not None:
                raise ProtocolError(f"{report.ref} takes masked answers alone, {envoy} reports metrics in clear")
            if this.kind is not m.TaskKind.EVALUATE:
                raise ProtocolError(f"{report.ref} asks for an update, {envoy} reports metrics alone")
            self._check_fairness(envoy, report.ref, report.fairness)
            return self._submit(answer_of_report(envoy, report))

    def tell_sum(self, envoy: m.EnvoyName, statement: m.SumStatement) -> m.SumReply:
        """Take what an envoy says in a secure sum; the very same may come again.

        Raises:
            ProtocolError: the round has no secure sum, or its sum does not take this now.
            FederationError: as ``SecureSum.take``.
        """
        with self._lock:
            self.hear(envoy)
            if not self._sum.has_heard(envoy, statement):
                run, this = self._open_round(statement.ref, envoy)
                rounds.check_voice(this, statement.ref, envoy)
                try:
                    self._sum.take(envoy, statement, self._answers, self._now())
                except BadShareError as error:
                    self._expel(run, error)
                    raise
            self._lock.notify_all()
        return m.SumReply()

    def decline(self, envoy: m.EnvoyName, refusal: m.Refusal) -> None:
        """An envoy will not or cannot; the round goes on without it.

        Raises:
            ProtocolError: the round does not wait for this envoy.
        """
        with self._lock:
            self.hear(envoy)
            run, this = self._open_round(refusal.ref, envoy)
            if self._sum.present is not None:
                rounds.check_voice(this, refusal.ref, envoy)
                accused = self._sum.refuse(envoy, refusal, self._now())
                if accused is not None:
                    self._expel(run, accused)
                self._save(rounds.leave(this, envoy))
            else:
                self._save(rounds.decline(this, refusal.ref, envoy))
            self._refusals[envoy] = f"{envoy}: {refusal.error}: {refusal.reason}"
            _LOG.warning(
                "declined task=%s envoy=%s error=%s reason=%s", refusal.ref, envoy, refusal.error, refusal.reason
            )
            self._lock.notify_all()

    def count_download(self, num_bytes: int) -> None:
        """Some bytes went down."""
        with self._lock:
            self._traffic.count(down=num_bytes)

    # ------------------------------------------------------------ operators

    def enqueue(self, record: RunRecord, also: Callable[[Connection], None] = lambda _: None) -> None:
        """Put a run behind the others with what ``also`` keeps of it, and propose it to the sites.

        Raises:
            ProtocolError: another run has the same proposal.
        """
        with self._lock:
            self._queue.check_new(record)
            self._audit.run_submitted(record.run, record.plan, digest_of(record.settings.encode()))
            if record.proposal is not None:
                proposal = proposal_of(record.proposal.content)
                self._audit.proposed(record.run, proposal.digest, record.plan, proposal.proposed_by)
            self._history.enqueue(record, also)
            for envoy, offer in self._queue.offers_of(record, self._attendance.there(self._now()), self._now()):
                self._lines.push([envoy], offer)
            self._lock.notify_all()

    def approved_by(self, record: RunRecord) -> tuple[m.EnvoyName, ...]:
        """Which sites approved what a run proposes, as far as they said so."""
        with self._lock:
            return tuple(sorted(self._queue.approvals.by(record.proposal_digest)))

    def waits_for(self, record: RunRecord) -> str:
        """What a queued run waits for, in words."""
        with self._lock:
            return self._queue.waits_for(record, self._attendance.there(self._now()))

    def steer(self, patch: Patch, document: SignedDocument) -> None:
        """Take a change to a run, whose signature was checked: to stop it at once, all else between its rounds.

        Raises:
            ProtocolError, ConfigError: it cannot be taken now; the message says why.
        """
        with self._lock:
            steering = self._patches.check(patch, document)
            self._audit.patched(patch.run, patch.number, patch.step.value, digest_of(document.content), patch.signed_by)
            self._history.add_patch(patch, document, self._now())
            _LOG.info("patched run=%s number=%d step=%s", patch.run, patch.number, patch.step.value)
            if self._run is not None and self._run.record.run == patch.run:
                self._run.steering = steering
                if self._round is not None:
                    self._save(waits_anew(self._round, self._now()))
            if patch.step is Step.STOP:
                self.stop_run(patch.run, patch.reason)
            self._lock.notify_all()

    def stop_run(self, run: m.RunId, reason: str) -> None:
        """End a run now; the model of its last closed round stays.

        Raises:
            ProtocolError: there is no such run, or it is over.
        """
        ending = stopped(reason)
        with self._lock:
            if self._run is not None and self._run.record.run == run and self._round is not None:
                self._end(self._round, ending)
            else:
                self._history.finish_run(run, ending, self._now())
            self._lock.notify_all()

    def wait_for_change(self, run: m.RunId, timeout_seconds: float = 1.0) -> None:
        """Wait until something happened, or for a while; not at all once the run is over."""
        with self._lock:
            if not self._history.run(run).state.is_over:
                self._lock.wait(timeout_seconds)

    def presence(self, envoy: m.EnvoyName) -> tuple[bool, float]:
        """Is the envoy there, and for how long was it silent?"""
        with self._lock:
            now = self._now()
            return self._attendance.is_there(envoy, now), self._attendance.silent_seconds(envoy, now)

    # ------------------------------------------------------------ the rounds' thread

    def _work(self) -> None:
        while not self._ends:
            try:
                self._turn()
            except StorageError as error:  # nothing has changed; it is tried again once there is room
                _LOG.error("the rounds wait: %s", error)
                with self._lock:
                    self._lock.wait(_STORAGE_SECONDS)
            except Exception:  # noqa: BLE001 - standing still, a director must not look alive: it ends, to be started anew
                _LOG.critical("the rounds cannot go on in this process", exc_info=True)
                self._broken()
                return

    def _turn(self) -> None:
        with self._lock:
            this = self._advance()
            if this is None or this.state is not RoundState.AGGREGATING:
                if not self._ends:
                    self._lock.wait(_TICK_SECONDS)
                return
        self._conclude(this)

    def _advance(self) -> Round | None:
        """One look at the present round: start a run, open it, lose who is gone, close it when it is due."""
        now = self._now()
        if not 0 <= now - self._looked_at <= _STALL_SECONDS:  # this process stood still, or the clock was set
            self._attendance.shift(now - self._looked_at)
        self._looked_at = now
        if self._run is None:
            self._start_next(now)
        run, this = self._run, self._round
        if run is None or this is None or self._is_withheld(run, this, now):
            return None
        if this.state is RoundState.PLANNED:
            planned = self._open(run, this, now)
            if planned is None:
                return None
            this = self._round = planned
        return self._look(run, this, now)

    def _open(self, run: ActiveRun, this: Round, now: float) -> Round | None:
        """Open a planned round once it can be; None where its run is paused, or ends before it."""
        ending = after_expiry(this, run.proposal, now)
        if ending is None and run.steering.pause is not None:
            return None
        try:
            if ending is None:
                return self._opening.open(run, this, now)
        except StorageError:
            raise
        except FederationError as error:  # the model that it was to be rolled back to is gone
            ending = Ending(RunState.FAILED, f"{type(error).__name__}: {error}")
        self._end(this, ending)
        return None

    def _is_withheld(self, run: ActiveRun, this: Round, now: float) -> bool:
        """End a run that may not go on; what its closed rounds gave stays."""
        objection = self._mandates.objection(run.record.run, now)
        if objection is not None:
            self._audit.withheld(run.record.run, objection)
            self._end(this, withheld(this, objection))
        return objection is not None

    def _look(self, run: ActiveRun, this: Round, now: float) -> Round | None:
        """Lose who is gone; close the round when it is due."""
        for envoy in this.waiting:
            if self._attendance.is_gone(envoy, now):
                _LOG.warning("lost task=%s envoy=%s", this.ref, envoy)
                this = rounds.lose(this, envoy)
        if self._sum.present is not None and this.state.takes_answers:
            gone = {envoy for envoy in this.cohort if self._attendance.is_gone(envoy, now)}
            if isinstance(self._sum.present, RelayedSum):
                relayed = self._sum.present
                relayed.is_aggregator_there = self._attendance.is_there(relayed.aggregator, now)
            then = self._sum.advance(this, gone, now)
        else:
            is_training = this.kind is m.TaskKind.TRAIN
            withheld = sum(is_training and not one.num_examples for one in self._answers.values())
            then = rounds.due(this, run.settings.round_policy, now, withheld)
        if then.state is RoundState.FAILED:
            self._fail(run, this, then)
        else:
            self._save(then)
        return self._round

    def _expel(self, run: ActiveRun, error: BadShareError) -> None:
        """A site that did not keep to what it had signed is not asked again in this run."""
        site = m.EnvoyName(error.site)
        with self._lock:
            if site and site not in run.expelled:
                self._audit.expelled(run.record.run, site, str(error))
                run.expelled[site] = str(error)
                self._history.expel(run.record.run, run.expelled)
                _LOG.warning("expelled run=%s envoy=%s reason=%s", run.record.run, site, error)

    def _conclude(self, this: Round) -> None:
        """Sum outside the lock; what the arithmetic refuses fails the round, never the director."""
        run = self._run
        if run is None:
            return
        try:
            if self._sum.present is not None:
                outcome = self._conclusion.secure(
                    run,
                    this,
                    self._sum,
                    self._opening.num_asked(run, this),
                    lambda error: self._expel(run, error),
                    lambda: self._ends or self._round is not this,
                )
            else:
                outcome = self._conclusion.plain(run, this, self._answers.values(), self._opening.num_asked(run, this))
        except StorageError:
            raise
        except FederationError as error:
            with self._lock:
                if isinstance(error, BadShareError):
                    self._expel(run, error)
                if self._round is this:
                    self._fail(run, this, rounds.fail(this, f"{type(error).__name__}: {error}"))
            return
        with self._lock:
            if self._round is this and outcome is not None:
                self._close(run, this, outcome)

    def _close(self, run: ActiveRun, this: Round, outcome: Outcome) -> None:
        now = self._now()
        closed = rounds.close(this)
        progress, run_model = [*run.progress, values_of(outcome.metrics)], None
        back = run.roll_back
        if back is not None:
            line = lineage(self._history.rounds(run.record.run), run.steering, back.to_round)
            progress, run_model = progress_of(line, len(progress)), run.model_after(line)
        began = run.record.started_at or now
        following, ending = after_close(run.steered, closed, progress, began, now, self._out_of_budget(run))
        self._audit.closed(closed.ref, outcome.model, outcome.sum)
        self._traffic.write_down(run.record.run)
        self._history.close_round(
            closed,
            model_out=outcome.model,
            metrics=outcome.metrics,
            optimizer_state=outcome.optimizer_state,
            num_examples=outcome.num_examples,
            now=now,
            next_round=following,
            ending=ending,
            secure_sum=outcome.sum,
            run_model=run_model if ending is not None else None,
        )
        self._uploads.withdraw(closed.ref)
        run.adopt(outcome)  # from here on nothing may fail: it is in the database
        _LOG.info("round closed task=%s received=%d", closed.ref, len(closed.received))
        self._withdraw(closed, closed.cohort - closed.received)
        self._begin(following, ending, "opened")

    def _fail(self, run: ActiveRun, before: Round, failed: Round) -> None:
        now = self._now()
        recorded = with_refusals(failed, self._refusals)
        following, ending = after_failure(run.settings, before, recorded, now, self._out_of_budget(run))
        self._audit.failed(recorded.ref, recorded.reason)
        self._traffic.write_down(run.record.run)
        self._history.fail_round(recorded, now, following, ending)
        _LOG.warning("round failed task=%s reason=%s", recorded.ref, recorded.reason)
        self._withdraw(failed, failed.cohort)
        self._begin(following, ending, f"failed: {recorded.reason}")

    def _end(self, this: Round, ending: Ending) -> None:
        """The run ends with its present round, which gives nothing."""
        failed = rounds.fail(this, ending.reason)
        self._audit.failed(failed.ref, failed.reason)
        self._traffic.write_down(this.ref.run)
        self._history.fail_round(failed, self._now(), None, ending)
        self._withdraw(failed, failed.cohort)
        self._begin(None, ending, f"failed: {ending.reason}")

    def _start_next(self, now: float) -> None:
        queued, over = self._queue.next(self._attendance.there(now), now)
        for record, ending in over:
            self._audit.withheld(record.run, ending.reason)
            self._history.finish_run(record.run, ending, now)
            self._lock.notify_all()
        if queued is None:
            return
        try:
            steering = self._history.steering(queued.run)
            run = ActiveRun(replace(queued, started_at=now), self._artifacts, steering=steering)
            self._sum.start(run, self._opening.willing(run))
        except FederationError as error:
            ending = Ending(RunState.FAILED, f"{type(error).__name__}: {error}")
            self._history.finish_run(queued.run, ending, now)
            return
        first = Round(run.ref, m.TaskKind.TRAIN, now)
        self._history.start_run(queued.run, now, first, run.groups.groups if run.groups else ())
        run.min_cell = self._fairness.min_cell if self._fairness is not None else 0
        self._run = run
        self._begin(first)
        _LOG.info("run started run=%s", queued.run)

    def _resume(self) -> None:
        now = self._now()
        left = left_open(self._history, self._artifacts, self._uploads, now)
        if left is None:
            return
        self._run, self._round, self._answers = left.run, left.round, left.answers
        left.run.min_cell = self._fairness.min_cell if self._fairness is not None else 0
        damaged = left.damaged
        try:
            self._sum.resume(left.run, left.round, now)
        except FederationError as error:
            damaged = damaged or str(error)
        if left.run.steering.stop is not None:  # killed between the patch and what it says
            self._end(left.round, stopped(left.run.steering.stop.reason))
            return
        if self._is_withheld(left.run, left.round, now):
            return
        if damaged:
            self._fail(left.run, left.round, rounds.fail(left.round, damaged))
        _LOG.info("run resumed task=%s state=%s", left.round.ref, left.round.state.value)

    # ------------------------------------------------------------ pieces

    def _check_fairness(self, envoy: m.EnvoyName, ref: m.TaskRef, told: SignedDocument | None) -> None:
        if told is not None:
            if self._fairness is None:
                raise ProtocolError(f"{envoy} publishes by subgroups with {ref}, and was not asked to")
            self._fairness.check(envoy, ref, told)

    def _submit(self, submission: SubmissionRecord) -> m.Receipt:
        with self._lock:
            kept = self._receipt_of(submission.envoy, submission.ref)
            if kept is not None:  # two streams of one update, of which the first was thought broken
                return kept
            _, this = self._open_round(submission.ref, submission.envoy)
            answered = rounds.receive(this, submission.ref, submission.envoy)
            self._history.add_submission(submission, answered)
            self._round = answered
            self._answers[submission.envoy] = submission
            self._lock.notify_all()
        return m.Receipt(submission.ref, submission.digest, submission.length)

    def _out_of_budget(self, run: ActiveRun) -> str | None:
        """Why a run may train no more, by what its plan and its sites say; asked when a round ended."""
        if run.settings.privacy_budget is None:
            return None
        return run.out_of_budget(self._history.rounds(run.record.run), self._history.published(run.record.run))

    def _receipt_of(self, envoy: m.EnvoyName, ref: m.TaskRef) -> m.Receipt | None:
        if self._round is not None and ref == self._round.ref:
            one = self._answers.get(envoy)
        else:
            one = next((x for x in self._history.submissions(ref) if x.envoy == envoy), None)
        return m.Receipt(ref, one.digest, one.length) if one else None

    def _open_round(self, ref: m.TaskRef, envoy: m.EnvoyName) -> tuple[ActiveRun, Round]:
        if self._run is None or self._round is None:
            raise WrongRoundError(f"no round is open; {envoy} answers {ref}")
        return self._run, self._round

    def _open_tasks(self, envoy: m.EnvoyName, held: tuple[m.TaskRef, ...]) -> list[m.WorkItem]:
        run, this = self._run, self._round
        is_asked = run is not None and this is not None and this.state.takes_answers and envoy in this.cohort
        is_asked = is_asked and self._sum.asks(envoy)
        present = this.ref if is_asked and this is not None else None
        items: list[m.WorkItem] = [m.Withdrawal(ref, "this round is over") for ref in held if ref != present]
        is_new = present is not None and present not in held
        if run is not None and this is not None and is_new and envoy in this.waiting | this.lost:
            items.append(run.task_of(this, envoy, self._now()))
        return items + self._sum.items_for(envoy, is_at_work=present in held)

    def _begin(self, following: Round | None, ending: Ending | None = None, outcome: str = "") -> None:
        """What the history says already: another round, or the run's end."""
        self._sum.end(outcome)
        run, self._round = self._run, following
        self._answers.clear()
        self._refusals.clear()
        if run is not None:
            self._tidy(run)
        if run is not None and ending is not None:
            _LOG.info("run ended run=%s state=%s reason=%s", run.record.run, ending.state.value, ending.reason)
            self._run = None
        self._lock.notify_all()

    def _save(self, this: Round) -> None:
        if this is not self._round and this != self._round:
            self._history.save_round(this, self._now())
        self._round = this

    def _withdraw(self, this: Round, envoys: frozenset[m.EnvoyName]) -> None:
        self._lines.push(sorted(envoys), m.Withdrawal(this.ref, this.reason or f"{this.ref} is {this.state.value}"))

    def _tidy(self, run: ActiveRun) -> None:
        """Housekeeping, which a full disk may put off until the next round."""
        try:
            self._retention.tidy(run)
        except FederationError as error:
            _LOG.warning("housekeeping is put off: %s", error)
