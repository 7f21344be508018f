"""The envoy at work: take a task, fetch what it needs, train, send what may leave; again, until it is told to end.

Three threads: one holds the line down which work is pushed, one says that the envoy is there, and the caller's does
one task after the other. A line that breaks is opened again for as long as it takes. What may leave is ``edge``'s to
say; it is journalled before ``dispatch`` sends it, so that nothing is trained twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..gradient_leakage.vae.codec import round_seed
from ..utils import messages as m
from ..utils.data_spec import DataKind
from ..utils.errors import (
    FederationError,
    NotApprovedError,
    NotInvitedError,
    ProtocolError,
    StorageError,
    UnsendableUpdateError,
    VetoedError,
)
from ..utils.plan_bundle import Bundle
from ..utils.secure_sum.handover import is_handover
from ..utils.tensors import Digest, digest_of
from ..utils.transport import BEAT_SECONDS
from .aggregating import Aggregating, AggregatorIdentity
from .approval_guard import Admission, Approvals
from .audit import SiteAudit
from .config import EnvoyConfig, Work
from .datasets import DatasetRegistry
from .dispatch import Dispatch
from .edge import Edge
from .fairness_book import FairnessBook
from .fetching import Fetcher
from .journal import DATABASE_FILE, FinishedWork, Journal
from .link import Link
from .mailbox import Mailbox
from .orders import CodecOrder, WorkOrder, WorkResult
from .patience import Patience
from .payload import Payloads
from .plan_scan import require_allowed, scan
from .policy import Measures
from .privacy_guard import PrivacyGuard
from .protection import Gatekeeper
from .records import DatasetRecord
from .refusals import refusal_of
from .site_events import SiteEvents, Unlogged
from .site_state import forget_pending
from .subgroups import Asked
from .summing import Occasion, SumIdentity, Summing
from .trainer import Trainer
from .witnessing import Witnessing

_LOG = logging.getLogger(__name__)
_VETOED = "this site's data manager ended it"
_LEAST_DIGITS = 8  # of a digest that tells a task
_POLL_SECONDS = 25.0
_MAX_MODEL_BYTES = 4 << 30
_MAX_TASKS = 5  # one at work and four that wait; a director asks for one at a time
_MAX_OFFERS = 16  # whose plans wait to be fetched
_END_SECONDS = 2.0  # in which local work ends that was vetoed


@dataclass(slots=True)
class _Commission:
    """A task on its way through this envoy."""

    task: m.Task
    withdrawn: threading.Event = field(default_factory=threading.Event)
    mailbox: Mailbox = field(default_factory=Mailbox)  # of its secure sum
    veto: VetoedError | None = None  # as the director is told it
    over: threading.Event = field(default_factory=threading.Event)  # nothing of it runs here any more

    def check(self) -> None:
        """Between two steps: is it wanted still?

        Raises:
            ProtocolError, VetoedError: it is not; nothing more of it is done.
        """
        if self.veto is not None:
            raise self.veto
        if self.withdrawn.is_set():
            raise ProtocolError(f"{self.task.ref} was withdrawn")

    def withdraw(self) -> None:
        """Nobody waits for it any more."""
        self.withdrawn.set()
        self.mailbox.close()


@dataclass(frozen=True, slots=True)
class _Offered:
    """What is proposed, and is to be fetched so that it can be looked at."""

    ref: m.TaskRef  # of its plan; no task
    codec: Digest | None
    proposal: Digest


@dataclass(frozen=True, slots=True)
class EnvoyStatus:
    """What ``envoy status`` shows."""

    name: str
    is_connected: bool
    task: str
    rounds_received: int
    last_receipt_at: float | None
    last_error: str
    not_approved: int = 0  # tasks that were declined since the start, for want of an approval or for going beyond it


class Session:
    """One envoy, from start to end.

    Args:
        name: as in its certificate.
        folder: where plans, models, journal, datasets and site state lie.
        link: the director.
        trainer: does the local work.
        config: of this envoy.
        gatekeeper: of the leak test; without one, a policy with an audit lets nothing out.
        identity: of secure sums; without one, this envoy takes part in none.
        aggregator: as whom it opens the sums of others; without it, it opens none.
        audit: the site's log; without it, nothing is logged, and no heads of logs are exchanged.
        approvals: what its data manager approved; nothing else runs.
    """

    def __init__(
        self,
        name: m.EnvoyName,
        folder: Path,
        link: Link,
        trainer: Trainer,
        config: EnvoyConfig,
        gatekeeper: Gatekeeper | None = None,
        identity: SumIdentity | None = None,
        aggregator: AggregatorIdentity | None = None,
        audit: SiteAudit | None = None,
        *,
        approvals: Approvals,
    ) -> None:
        self._events: SiteEvents = audit or Unlogged()
        self._witnessing = Witnessing(audit)
        self._approvals, self._gatekeeper = approvals, gatekeeper
        self._name, self._folder, self._link, self._trainer, self._config = name, folder, link, trainer, config
        self._journal, self._payloads = Journal(folder / DATABASE_FILE), Payloads(folder / "work")
        self._edge = Edge(config.protection, self._journal, self._payloads, folder / "state", gatekeeper)
        self._privacy = PrivacyGuard(folder, self._events)
        self._dispatch = Dispatch(
            name,
            link,
            self._journal,
            self._payloads,
            folder / "state",
            self._complain,
            self._privacy.published,
            self._events,
            publishes_leakage=config.protection is not None and config.protection.publish_leakage,
            signer=(identity.federation, identity.sign) if identity is not None and config.fairness.publish else None,
        )
        self._may_sign, self._book = identity is not None, FairnessBook(folder)
        sums = config.secure_aggregation
        self._summing = Summing(name, identity, sums, self._journal, self._payloads, self._dispatch)
        self._datasets = DatasetRegistry(folder / "datasets")
        self._fetcher = Fetcher(link, folder, _MAX_MODEL_BYTES, approvals.kept)
        self._aggregating = Aggregating(name, aggregator, sums, self._fetcher, self._dispatch, folder / "work")
        self._ended = threading.Event()
        self._lock = threading.RLock()  # `end` may come as a signal to the thread that holds it
        self._commissions: dict[m.TaskRef, _Commission] = {}
        self._tasks: queue.SimpleQueue[_Commission | _Offered | None] = queue.SimpleQueue()
        self._offers, self._not_approved = set[Digest](), 0
        self._connected = self._left = False
        self._at_work: m.TaskRef | None = None
        self._last_error = ""

    def run(self) -> None:
        """Work until ``end`` is called, from another thread or a signal handler."""
        if self._config.protection is None:
            _LOG.warning("envoy.toml has no [protection] table: every task will be declined")
        threads = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._beat)]
        for thread in threads:
            thread.start()
        while (asked := self._tasks.get()) is not None:
            if isinstance(asked, _Offered):
                self._fetch(asked)
                continue
            self._perform(asked)
            with self._lock:
                self._commissions.pop(asked.task.ref, None)
            asked.over.set()
        for thread in threads:
            thread.join(timeout=2.0)
        self._trainer.close()
        self._privacy.close()
        self._approvals.close()
        self._journal.close()

    def end(self) -> None:
        """Stop: what is being trained is given up, what was trained stays in the journal."""
        self._ended.set()
        self._witnessing.wake()
        with self._lock:
            for commission in self._commissions.values():
                commission.withdraw()
        self._tasks.put(None)
        self._aggregating.end()
        self._link.close()

    def status(self) -> EnvoyStatus:
        """What this envoy does now."""
        number, last = self._journal.count()
        at_work = str(self._at_work) if self._at_work else ""
        error, refused = self._last_error, self._not_approved
        return EnvoyStatus(self._name, self._connected, at_work, number, last, error, refused)

    # ------------------------------------------------------------ the data manager's word

    def veto(self, named: str, reason: str, by: str, *, tell: bool = False) -> tuple[str, ...]:
        """End local work at once, and take the approval back; the round goes on without this site.

        What was sent already cannot be taken back; of a secure sum that was begun, this site says nothing more.

        Args:
            named: a run, RUN/ROUND, or the beginning of a plan's or proposal's digest; empty: the task at work.
            reason: one line; it is signed, and kept here.
            by: who says so.
            tell: let the director have the reason too.

        Returns:
            The tasks that were ended, in words.

        Raises:
            NotApprovedError: nothing here is named so.
            StorageError: it was ended, but that could not be written down.
        """
        told = reason if tell and reason else _VETOED
        with self._lock:
            chosen = [one for one in self._commissions.values() if self._is_named(one.task, named)]
            proposals = {one.task.proposal for one in chosen if one.task.proposal is not None}
            for one in chosen:
                one.veto = VetoedError(told)
                one.withdraw()
            is_at_work = any(one.task.ref == self._at_work for one in chosen)
        if is_at_work and self._gatekeeper is not None:
            self._gatekeeper.interrupt()
        if not chosen and named:
            proposals = {self._approvals.named(named)}
        elif not chosen:
            raise NotApprovedError("nothing is at work here; name a run, RUN/ROUND, or the digest of a proposal")
        try:
            self._approvals.veto(proposals, named or str(chosen[0].task.ref), reason, by)
        finally:
            self._witnessing.wake()
            _LOG.warning("vetoed what=%s tasks=%d", named or "the task at work", len(chosen))
            deadline = time.monotonic() + _END_SECONDS
            for one in chosen:
                one.over.wait(max(0.0, deadline - time.monotonic()))
        return tuple(str(one.task.ref) for one in chosen)

    def veto_all(self, reason: str, by: str, *, tell: bool = False) -> tuple[str, ...]:
        """End all that is held here, as ``veto`` ends one task."""
        with self._lock:
            runs = sorted({one.task.ref.run for one in self._commissions.values()})
        return tuple(ref for run in runs for ref in self.veto(run, reason, by, tell=tell))

    def _is_named(self, task: m.Task, named: str) -> bool:
        ref, digests = task.ref, (task.ref.plan, task.proposal or "")
        if not named:
            return ref == self._at_work
        is_digest = len(named) >= _LEAST_DIGITS and any(digest.startswith(named) for digest in digests)
        return named in {ref.run, f"{ref.run}/{ref.round}"} or is_digest

    def _complain(self, text: str) -> None:
        self._last_error = text

    # ------------------------------------------------------------ the line

    def _listen(self) -> None:
        patience = Patience(self._ended)
        while not self._ended.is_set():
            try:
                for item in self._items():
                    if not self._connected:
                        _LOG.info("connected envoy=%s", self._name)
                        self._connected = True
                        self._trainer.warm_up()
                        self._leave_last_sum()
                    patience.succeed()
                    self._take(item)
            except FederationError as error:
                if not self._ended.is_set():
                    self._report_break(error)
            except Exception:  # noqa: BLE001 - an envoy that no longer listens would look alive
                _LOG.exception("the line to the director is opened again")
            self._connected = False
            if not patience.pause():
                return

    def _items(self) -> Iterator[m.WorkItem]:
        if self._config.work is Work.STREAM:
            yield from self._link.work(self._held(), self._approvals.approved())
            return
        patience = Patience(self._ended)
        while not self._ended.is_set():
            item = self._link.next_work(self._held(), _POLL_SECONDS, self._approvals.approved())
            is_news = self._is_news(item)
            yield item
            if is_news:
                patience.succeed()
            else:  # answered at once with what is known here already: asked again at once, it would be for ever
                patience.pause()

    def _is_news(self, item: m.WorkItem) -> bool:
        with self._lock:
            match item:
                case m.Task():
                    return item.ref not in self._commissions
                case m.Withdrawal(ref):
                    return ref in self._commissions and not self._commissions[ref].withdrawn.is_set()
                case m.SumItem(_, content) if is_handover(content):
                    return self._aggregating.is_news(item)
                case m.SumItem(ref, content):
                    return ref in self._commissions and self._commissions[ref].mailbox.is_news(content)
                case m.Idle() | m.Offer():
                    return True

    def _take(self, item: m.WorkItem) -> None:
        match item:
            case m.Task():
                with self._lock:
                    if item.ref in self._commissions:
                        return
                    has_room = len(self._commissions) < _MAX_TASKS
                    commission = _Commission(item)
                    if has_room:
                        self._commissions[item.ref] = commission
                if has_room:
                    self._tasks.put(commission)
                else:
                    self._turn_away(item.ref)
            case m.Withdrawal(ref, reason):
                with self._lock:
                    held = self._commissions.get(ref)
                if held is not None:
                    _LOG.info("withdrawn task=%s reason=%s", ref, reason)
                    held.withdraw()
            case m.SumItem():
                self._take_item(item)
            case m.Offer():
                self._take_offer(item)
            case m.Idle():
                pass

    def _take_offer(self, offer: m.Offer) -> None:
        """Keep it for the data manager; its plan is fetched between two tasks."""
        before = self._approvals.approved()
        try:
            proposal = self._approvals.offer(offer)
        except FederationError as error:
            digest = digest_of(offer.proposal.content)
            if digest not in self._offers:  # a line that breaks and opens again says it once more
                _LOG.warning("not kept proposal=%s run=%s error=%s", digest, offer.run, error)
                self._offers = {digest, *sorted(self._offers)[:_MAX_OFFERS]}
            return
        if self._approvals.approved() != before:  # approved as it came
            self._witnessing.wake()
        if proposal is not None:
            _LOG.info("offered proposal=%s study=%s; see `envoy plan show`", proposal.digest, proposal.study)
            self._tasks.put(_Offered(m.TaskRef(offer.run, 1, 1, proposal.plan), proposal.codec, proposal.digest))

    def _fetch(self, offered: _Offered) -> None:
        """Have a proposal's plan here. One that is not right can be seen, and not approved."""
        try:
            bundle = self._fetcher.proposed(offered.ref, offered.codec, Patience(self._ended))
            if self._approvals.came(offered.proposal, bundle.manifest):
                _LOG.info("approved unasked proposal=%s plan=%s", offered.proposal, bundle.manifest.name)
                self._witnessing.wake()
        except FederationError as error:
            if not self._ended.is_set():
                self._complain(f"plan {offered.ref.plan[:12]}… was proposed and is not here: {error}")
                _LOG.warning("not fetched plan=%s error=%s", offered.ref.plan, error)
        except Exception:  # noqa: BLE001 - one offer must not end the envoy
            _LOG.exception("not fetched plan=%s", offered.ref.plan)

    def _take_item(self, item: m.SumItem) -> None:
        """What is said in a sum, to the task that takes part in it; an order, to this envoy as an aggregator."""
        if is_handover(item.content):
            self._aggregating.take(item)
            return
        with self._lock:
            held = self._commissions.get(item.ref)
        if held is not None:
            held.mailbox.put(item.content)
        else:
            self._leave_sum(item.ref)

    def _leave_last_sum(self) -> None:
        """Once a process: say that the sum that the one before it was killed in need not wait for this site."""
        last, self._left = (None if self._left else self._summing.last_left()), True
        if last is not None and last not in self._held():
            self._leave_sum(last)

    def _leave_sum(self, ref: m.TaskRef) -> None:
        if (error := self._summing.left_behind(ref)) is not None:
            _LOG.warning("declined task=%s error=%s", ref, error)
            with contextlib.suppress(FederationError):  # the round is over; or it is asked again on the next line
                self._link.decline(refusal_of(ref, error))

    def _turn_away(self, ref: m.TaskRef) -> None:
        error = ProtocolError(f"{_MAX_TASKS} tasks are here already; {ref} is one too many")
        _LOG.warning("declined task=%s error=%s", ref, error)
        with contextlib.suppress(FederationError):  # said once; whoever floods is not waited for
            self._link.decline(refusal_of(ref, error))

    def _held(self) -> tuple[m.TaskRef, ...]:
        with self._lock:
            return tuple(self._commissions)

    def _report_break(self, error: FederationError) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self._last_error:
            _LOG.warning("no line to the director: %s; trying again", text)
        self._last_error = text

    def _beat(self) -> None:
        while not self._ended.is_set():
            self._witnessing.pause(BEAT_SECONDS)
            if self._connected and not self._ended.is_set():
                try:
                    heartbeat = m.Heartbeat(self._held(), self._approvals.approved(), self._witnessing.own_head())
                    self._witnessing.see(self._link.beat(heartbeat))
                except (ProtocolError, StorageError) as error:  # the director does not believe this site's log, or
                    self._last_error = f"{type(error).__name__}: {error}"  # the director's head cannot be kept here
                    self._witnessing.complain(str(error))
                except FederationError as error:
                    _LOG.debug("no answer to a heartbeat: %s", error)

    # ------------------------------------------------------------ one task

    def _perform(self, commission: _Commission) -> None:
        task = commission.task
        if commission.withdrawn.is_set() and commission.veto is None:
            return
        self._at_work = task.ref
        self._witnessing.round_changed()
        patience = Patience(commission.withdrawn)
        try:
            commission.check()
            admission = self._check(task)
            measures = self._edge.admit(task)
            self._dispatch.settle(task, patience, self._edge.may_leave)
            done = self._edge.finished(task, measures)
            if done is None or not (self._edge.is_intact(done) or self._dispatch.is_known(done, task, patience)):
                done = self._work(commission, admission, measures, patience)
            commission.check()
            if task.sum is not None:
                self._summing.take_part(self._occasion(commission, patience), done)
            else:
                self._dispatch.send(task, done, commission.withdrawn, patience)
            _LOG.info("received task=%s", task.ref)
        except FederationError as error:
            if commission.veto is not None:
                self._leave(commission, commission.veto)
            elif commission.withdrawn.is_set():
                _LOG.info("dropped task=%s", task.ref)
            else:
                self._not_approved += isinstance(error, NotApprovedError)
                self._last_error = f"{type(error).__name__}: {error}"
                _LOG.warning("declined task=%s error=%s", task.ref, self._last_error)
                self._dispatch.decline(refusal_of(task.ref, error), patience)
        except Exception as error:  # noqa: BLE001 - one task must not end the envoy; all of it stays in the site's log
            self._last_error = f"{type(error).__name__} in the envoy itself; see its log"
            _LOG.exception("declined task=%s", task.ref)
            self._dispatch.decline(m.Refusal(task.ref, FederationError.__name__, self._last_error), patience)
        finally:
            self._at_work = None
            self._witnessing.round_changed()

    def _leave(self, commission: _Commission, veto: VetoedError) -> None:
        """Wipe what a vetoed task left, and tell the director that there will be no answer."""
        ref = commission.task.ref
        self._last_error = f"{ref} was vetoed"
        try:
            self._journal.forget(ref)
            self._payloads.wipe()
            forget_pending(self._folder / "state", ref)
        except FederationError as error:
            self._last_error = f"{ref} was vetoed, and not all of it could be wiped: {error}"
            _LOG.exception("not wiped task=%s", ref)
        commission.over.set()
        self._dispatch.decline(refusal_of(ref, veto), Patience(self._ended))

    def _check(self, task: m.Task) -> Admission:
        self._witnessing.check(task)
        if self._name not in task.cohort:
            raise NotInvitedError(f"{task.ref} is addressed to others than {self._name}")
        if len(task.cohort) < task.min_participants:
            raise ProtocolError(f"{task.ref} has {len(task.cohort)} envoys, fewer than its own minimum")
        if len(set(task.cohort)) < len(task.cohort):
            raise ProtocolError(f"{task.ref} names an envoy twice in its cohort of {len(task.cohort)}")
        admission = self._approvals.admit(task)
        self._config.secure_aggregation.check(task)
        self._summing.admit(task)
        return admission

    def _work(
        self, commission: _Commission, admission: Admission, measures: Measures, patience: Patience
    ) -> FinishedWork:
        task = commission.task
        bundle = self._fetcher.plan(task.ref, patience)
        require_allowed(scan(bundle, self._config.approval.imports), bundle.manifest.name)
        model = self._fetcher.model(task, bundle, patience)
        if task.kind is m.TaskKind.EVALUATE:
            self._approvals.begin(task, admission, bundle.manifest)
            charge = self._privacy.reserve(task, bundle.manifest, measures, limit=admission.spending)
            result = charge.settle(self._run(commission, admission, bundle, model))
            commission.check()
            return self._edge.pass_metrics(task, result)
        codec = self._fetcher.codec(task, bundle, patience) if measures.encodes else None
        passage = self._edge.open(task, bundle, model, measures, codec)
        size = (bundle.layout if codec is None else codec.payload_layout).size
        commission.check()
        self._approvals.begin(task, admission, bundle.manifest)
        charge = self._privacy.reserve(task, bundle.manifest, measures, size, admission.spending)
        result = charge.settle(self._run(commission, admission, bundle, model))
        commission.check()
        return self._edge.pass_update(passage, result)

    def _occasion(self, commission: _Commission, patience: Patience) -> Occasion:
        task = commission.task
        layout = self._fetcher.plan(task.ref, patience).layout
        if task.codec is not None:
            layout = self._fetcher.codec(task, self._fetcher.plan(task.ref, patience), patience).payload_layout
        sizes = tuple(entry.size for entry in layout.entries)
        return Occasion(task, sizes, commission.mailbox, commission.withdrawn, patience)

    def _run(self, commission: _Commission, admission: Admission, bundle: Bundle, model: Path) -> WorkResult:
        order = replace(self._order(commission.task, bundle, model), settings=admission.settings)
        seconds = max(commission.task.seconds_left, 1.0)
        limit = min(self._config.training.max_train_seconds or seconds, seconds)
        self._log_access(commission.task, admission, order)
        result = self._trainer.run(order, limit, commission.withdrawn)
        if order.dataset is not None and result.num_examples > order.dataset.num_examples:
            raise UnsendableUpdateError("the plan names more examples than the dataset has; nothing was sent")
        return result

    def _log_access(self, task: m.Task, admission: Admission, order: WorkOrder) -> None:
        """Before the plan runs: which data it may read, and under what."""
        name, records = (order.dataset.name, order.dataset.num_examples) if order.dataset is not None else ("", 0)
        self._events.accessed(
            task.ref,
            task.kind,
            name,
            records,
            proposal=task.proposal,
            purpose=admission.purpose,
            legal_basis=admission.legal_basis,
        )

    def _order(self, task: m.Task, bundle: Bundle, model: Path) -> WorkOrder:
        data = bundle.manifest.data
        dataset = self._datasets.get(data.name) if data.kind is not DataKind.NONE else None
        codec = None
        if bundle.manifest.privacy is not None and task.kind is m.TaskKind.TRAIN and task.codec is not None:
            codec = CodecOrder(self._fetcher.codec_path, task.codec, round_seed(task.ref, task.model, task.codec))
        return WorkOrder(
            ref=task.ref,
            kind=task.kind,
            seed=task.seed,
            envoy=self._name,
            bundle=bundle.folder,
            dataset=dataset,
            index_path=self._datasets.index_path(dataset) if dataset else None,
            model_path=model,
            update_path=self._payloads.update_path,
            state_folder=self._folder / "state",
            device=self._config.training.device.value,
            threads=self._config.training.threads or os.cpu_count() or 1,
            codec=codec,
            fairness=self._fairness(task, bundle, dataset),
        )

    def _fairness(self, task: m.Task, bundle: Bundle, dataset: DatasetRecord | None) -> Asked | None:
        """What is to be told by subgroups with this task's answer: where the site publishes, and is asked to."""
        policy, floor = self._config.fairness, task.fairness_min_cell
        if not (policy.publish and floor and self._may_sign) or dataset is None or bundle.manifest.privacy is not None:
            return None
        asked = Asked(policy.subgroups, max(policy.min_cell, floor))
        try:
            reason = self._book.enter(dataset, self._datasets.index(dataset.name), asked)
        except StorageError as error:
            reason = str(error)
        if reason:
            _LOG.warning("nothing is told by subgroups with task=%s: %s", task.ref, reason)
        return None if reason else asked
