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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..gradient_leakage.vae.codec import round_seed
from ..utils import messages as m
from ..utils.data_spec import DataKind
from ..utils.errors import FederationError, NotInvitedError, ProtocolError, StorageError, UnsendableUpdateError
from ..utils.plan_bundle import Bundle
from ..utils.secure_sum.handover import is_handover
from ..utils.transport import BEAT_SECONDS
from .aggregating import Aggregating, AggregatorIdentity
from .audit import SiteAudit
from .config import EnvoyConfig, Work
from .datasets import DatasetRegistry
from .dispatch import Dispatch
from .edge import Edge
from .fetching import Fetcher
from .journal import DATABASE_FILE, FinishedWork, Journal
from .link import Link
from .mailbox import Mailbox
from .orders import CodecOrder, WorkOrder, WorkResult
from .patience import Patience
from .payload import Payloads
from .policy import Measures
from .privacy_guard import PrivacyGuard
from .protection import Gatekeeper
from .refusals import refusal_of
from .site_events import SiteEvents, Unlogged
from .summing import Occasion, SumIdentity, Summing
from .trainer import Trainer
from .witnessing import Witnessing

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 25.0
_MAX_MODEL_BYTES = 4 << 30
_MAX_TASKS = 5  # one at work and four that wait; a director asks for one at a time


@dataclass(slots=True)
class _Commission:
    """A task on its way through this envoy."""

    task: m.Task
    withdrawn: threading.Event = field(default_factory=threading.Event)
    mailbox: Mailbox = field(default_factory=Mailbox)  # of its secure sum

    def withdraw(self) -> None:
        """Nobody waits for it any more."""
        self.withdrawn.set()
        self.mailbox.close()


@dataclass(frozen=True, slots=True)
class EnvoyStatus:
    """What ``envoy status`` shows."""

    name: str
    is_connected: bool
    task: str
    rounds_received: int
    last_receipt_at: float | None
    last_error: str


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
    ) -> None:
        self._events: SiteEvents = audit or Unlogged()
        self._witnessing = Witnessing(audit)
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
        )
        sums = config.secure_aggregation
        self._summing = Summing(name, identity, sums, self._journal, self._payloads, self._dispatch)
        self._datasets = DatasetRegistry(folder / "datasets")
        self._fetcher = Fetcher(link, folder, _MAX_MODEL_BYTES)
        self._aggregating = Aggregating(name, aggregator, sums, self._fetcher, self._dispatch, folder / "work")
        self._ended = threading.Event()
        self._lock = threading.RLock()  # `end` may come as a signal to the thread that holds it
        self._commissions: dict[m.TaskRef, _Commission] = {}
        self._tasks: queue.SimpleQueue[_Commission | None] = queue.SimpleQueue()
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
        while (commission := self._tasks.get()) is not None:
            self._perform(commission)
            with self._lock:
                self._commissions.pop(commission.task.ref, None)
        for thread in threads:
            thread.join(timeout=2.0)
        self._trainer.close()
        self._privacy.close()
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
        return EnvoyStatus(self._name, self._connected, at_work, number, last, self._last_error)

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
            yield from self._link.work(self._held())
            return
        patience = Patience(self._ended)
        while not self._ended.is_set():
            item = self._link.next_work(self._held(), _POLL_SECONDS)
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
            case m.Idle() | m.Offer():
                pass

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
                    heartbeat = m.Heartbeat(self._held(), audit_head=self._witnessing.own_head())
                    self._witnessing.see(self._link.beat(heartbeat))
                except (ProtocolError, StorageError) as error:  # the director does not believe this site's log, or
                    self._last_error = f"{type(error).__name__}: {error}"  # the director's head cannot be kept here
                    self._witnessing.complain(str(error))
                except FederationError as error:
                    _LOG.debug("no answer to a heartbeat: %s", error)

    # ------------------------------------------------------------ one task

    def _perform(self, commission: _Commission) -> None:
        task = commission.task
        if commission.withdrawn.is_set():
            return
        self._at_work = task.ref
        self._witnessing.round_changed()
        patience = Patience(commission.withdrawn)
        try:
            self._check(task)
            measures = self._edge.admit(task)
            self._dispatch.settle(task, patience, self._edge.may_leave)
            done = self._edge.finished(task, measures)
            if done is None or not (self._edge.is_intact(done) or self._dispatch.is_known(done, task, patience)):
                done = self._work(commission, measures, patience)
            if task.sum is not None:
                self._summing.take_part(self._occasion(commission, patience), done)
            else:
                self._dispatch.send(task, done, commission.withdrawn, patience)
            _LOG.info("received task=%s", task.ref)
        except FederationError as error:
            if commission.withdrawn.is_set():
                _LOG.info("dropped task=%s", task.ref)
            else:
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

    def _check(self, task: m.Task) -> None:
        self._witnessing.check(task)
        if self._name not in task.cohort:
            raise NotInvitedError(f"{task.ref} is addressed to others than {self._name}")
        if len(task.cohort) < task.min_participants:
            raise ProtocolError(f"{task.ref} has {len(task.cohort)} envoys, fewer than its own minimum")
        if len(set(task.cohort)) < len(task.cohort):
            raise ProtocolError(f"{task.ref} names an envoy twice in its cohort of {len(task.cohort)}")
        self._config.secure_aggregation.check(task)
        self._summing.admit(task)

    def _work(self, commission: _Commission, measures: Measures, patience: Patience) -> FinishedWork:
        task = commission.task
        bundle = self._fetcher.plan(task.ref, patience)
        model = self._fetcher.model(task, bundle, patience)
        if task.kind is m.TaskKind.EVALUATE:
            charge = self._privacy.reserve(task, bundle.manifest, measures)
            return self._edge.pass_metrics(task, charge.settle(self._run(commission, bundle, model)))
        codec = self._fetcher.codec(task, bundle, patience) if measures.encodes else None
        passage = self._edge.open(task, bundle, model, measures, codec)
        size = (bundle.layout if codec is None else codec.payload_layout).size
        charge = self._privacy.reserve(task, bundle.manifest, measures, size)
        return self._edge.pass_update(passage, charge.settle(self._run(commission, bundle, model)))

    def _occasion(self, commission: _Commission, patience: Patience) -> Occasion:
        task = commission.task
        layout = self._fetcher.plan(task.ref, patience).layout
        if task.codec is not None:
            layout = self._fetcher.codec(task, self._fetcher.plan(task.ref, patience), patience).payload_layout
        sizes = tuple(entry.size for entry in layout.entries)
        return Occasion(task, sizes, commission.mailbox, commission.withdrawn, patience)

    def _run(self, commission: _Commission, bundle: Bundle, model: Path) -> WorkResult:
        order = self._order(commission.task, bundle, model)
        seconds = max(commission.task.seconds_left, 1.0)
        limit = min(self._config.training.max_train_seconds or seconds, seconds)
        self._log_access(commission.task, order)
        result = self._trainer.run(order, limit, commission.withdrawn)
        if order.dataset is not None and result.num_examples > order.dataset.num_examples:
            raise UnsendableUpdateError("the plan names more examples than the dataset has; nothing was sent")
        return result

    def _log_access(self, task: m.Task, order: WorkOrder) -> None:
        """Before the plan runs: which data it may read, and under what."""
        name, records = (order.dataset.name, order.dataset.num_examples) if order.dataset is not None else ("", 0)
        self._events.accessed(task.ref, task.kind, name, records, proposal=task.proposal)

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
        )
