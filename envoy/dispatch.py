"""Sends what was made ready, until the director has it: updates, metrics, refusals.

Whatever goes out comes from the journal and from ``Payloads``, where ``edge`` left it; nothing here reads what training
wrote.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..utils import fairness
from ..utils import messages as m
from ..utils.errors import DigestMismatchError, FederationError, ProtocolError, StorageError, UnreachableError
from ..utils.privacy.values import PublishedEpsilon
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest, digest_of
from .journal import FinishedWork, Journal
from .link import Link
from .patience import Patience, asking_the_director
from .payload import Payloads
from .site_events import SiteEvents, Unlogged
from .site_state import adopt_state

_LOG = logging.getLogger(__name__)


def _publishes_nothing(_: m.TaskRef) -> PublishedEpsilon | None:
    return None


class Dispatch:
    """The way out.

    Args:
        name: this envoy's.
        link: the director.
        journal: what was made ready, and what has a receipt.
        payloads: the bytes.
        state_folder: what a receipt puts in force.
        complain: told in words why the director cannot be reached.
        published: what the site tells of its privacy ledger with a task's update.
        events: the site's log; what leaves, and what is refused, stands there first.
        publishes_leakage: the score of the leak test is told too.
        signer: the federation's name, and what signs by the identity key; without it, nothing is told by subgroups.
    """

    def __init__(
        self,
        name: m.EnvoyName,
        link: Link,
        journal: Journal,
        payloads: Payloads,
        state_folder: Path,
        complain: Callable[[str], None],
        published: Callable[[m.TaskRef], PublishedEpsilon | None] = _publishes_nothing,
        events: SiteEvents | None = None,
        *,
        publishes_leakage: bool = False,
        signer: tuple[str, Callable[[bytes], bytes]] | None = None,
    ) -> None:
        self._signer = signer
        self._published, self._events = published, events or Unlogged()
        self._publishes_leakage = publishes_leakage
        self._name, self._link, self._journal, self._payloads = name, link, journal, payloads
        self._state_folder, self._complain = state_folder, complain

    def send(self, task: m.Task, done: FinishedWork, withdrawn: threading.Event, patience: Patience) -> None:
        """Until there is a receipt. What is under a sum's masks never comes this way.

        Raises:
            ProtocolError: nobody waits for it any more, or it is part of a secure sum.
            DigestMismatchError: the director holds another update of this envoy.
            StorageError: it cannot be logged that it leaves; it does not.
            FederationError: what the director refuses.
        """
        if done.is_summed:
            raise ProtocolError(f"the answer to {done.ref} was made for a secure sum; it does not leave in the clear")
        self._events.sent(task.ref, done.kind.value if done.digest else "metrics", done.digest, done.length)
        self._log_fairness(task.ref)
        if done.digest is None:
            report = m.MetricsReport(task.ref, done.result.metrics, self._fairness(task.ref))
            patience.insist(partial(self._report, report))
        else:
            try:
                receipt = patience.insist(lambda: self._send(task, done, withdrawn))
            except DigestMismatchError:  # the director had the beginning of an earlier training; it starts anew
                receipt = patience.insist(lambda: self._send(task, done, withdrawn))
            if receipt.digest != done.digest:
                raise DigestMismatchError(f"the director holds another update of {self._name} for {task.ref}")
        self.keep_receipt(done)

    def settle(self, task: m.Task, patience: Patience, may_leave: Callable[[FinishedWork], bool]) -> None:
        """Ask again for receipts of the run that were lost on their way: what counted has its local state in force."""
        for done in self._journal.unreceived(task.ref.run):
            told = done.masked_digest if done.is_summed else done.digest
            if done.ref == task.ref or told is None or not may_leave(done):
                continue
            with contextlib.suppress(ProtocolError):  # its round closed without it
                answer = patience.insist(partial(self._request_upload, header_of(done, task.layout), done.trained_ref))
                if isinstance(answer, m.Receipt) and answer.digest == told:
                    self.keep_receipt(done)

    def is_known(self, done: FinishedWork, task: m.Task, patience: Patience) -> bool:
        """Has the director still what it gave a receipt for? One that lost it, in a restored backup, asks again."""
        if not done.is_received or done.is_summed:
            return False
        answer = patience.insist(partial(self._request_upload, header_of(done, task.layout), done.trained_ref))
        return isinstance(answer, m.Receipt) and answer.digest == done.digest

    def decline(self, refusal: m.Refusal, patience: Patience) -> None:
        """Say that a task is not done here; also where the disk has no room to log it."""
        try:
            self._events.refused(refusal.ref, refusal.error, refusal.reason)
        except StorageError as error:
            _LOG.error("audit: %s", error)
        try:
            patience.insist(lambda: self._link.decline(refusal))
        except FederationError as refused:
            _LOG.info("the director no longer waits for task=%s: %s", refusal.ref, refused)

    def tell_sum(self, statement: m.SumStatement, patience: Patience) -> bytes:
        """Say one thing in a secure sum, until it is heard; gives what the director answers with.

        Raises:
            ProtocolError: nobody waits for it any more, or the director refuses it.
        """

        def told() -> m.SumReply:
            with self._asking():
                return self._link.tell_sum(statement)

        return patience.insist(told).content

    def upload_masked(
        self,
        header: m.UpdateHeader,
        parts: Callable[[m.Turn], Iterator[m.Part]],
        trained: m.TaskRef,
        withdrawn: threading.Event,
        patience: Patience,
    ) -> m.Receipt:
        """Send masked words, until the director has all of them; ``parts`` makes them anew for each try.

        ``trained`` is the attempt that the work was done in: the ledger knows it by that.

        Raises:
            ProtocolError: nobody waits for them any more.
            StorageError: it cannot be logged that they leave; they do not.
            FederationError: what the director refuses.
        """
        self._events.sent(header.ref, header.payload.value, None, header.length)
        self._log_fairness(header.ref)
        return patience.insist(lambda: self._upload(header, parts, trained, withdrawn))

    def keep_receipt(self, done: FinishedWork) -> None:
        """The answer counts: what was trained beside it is in force at this site, and nobody asks again."""
        if not done.is_withheld:  # its update counted for nothing, so the local state before it stays in force
            adopt_state(self._state_folder, done.trained_ref)  # first: with the receipt in the journal, nobody asks
        self._journal.receive(done.ref)

    def _send(self, task: m.Task, done: FinishedWork, withdrawn: threading.Event) -> m.Receipt:
        header = header_of(done, task.layout)
        return self._upload(header, lambda turn: self._parts(turn, done, withdrawn), done.trained_ref, withdrawn)

    def _upload(
        self,
        header: m.UpdateHeader,
        parts: Callable[[m.Turn], Iterator[m.Part]],
        trained: m.TaskRef,
        withdrawn: threading.Event,
    ) -> m.Receipt:
        grant = self._request_upload(header, trained)
        while isinstance(grant, m.Wait):
            if withdrawn.is_set():
                raise ProtocolError(f"{header.ref} was withdrawn")
            grant = self._request_upload(header, trained)
        if isinstance(grant, m.Receipt):
            return grant
        own: list[FederationError] = []  # this site's, raised while parts were made: the line only says that it broke
        try:
            with self._asking():
                return self._link.upload(_watched(parts(grant), own))
        except FederationError:
            if own:
                raise own[0] from None
            raise

    def _parts(self, turn: m.Turn, done: FinishedWork, withdrawn: threading.Event) -> Iterator[m.Part]:
        if done.digest is None or turn.offset > done.length:
            raise ProtocolError(f"the director wants {turn.ref} from {turn.offset} on, it has {done.length} bytes")
        view = self._payloads.view(done.file, done.digest, done.length)
        yield m.Opening(done.length, turn.offset, turn.grant)
        for start in range(turn.offset, done.length, turn.part_bytes):
            if withdrawn.is_set():
                return
            yield m.Data(view[start : start + turn.part_bytes])
        yield m.Closing(done.digest)

    def _request_upload(self, header: m.UpdateHeader, trained: m.TaskRef) -> m.Grant:
        score = self._journal.leakage_score(header.ref) if self._publishes_leakage else None
        told = replace(
            header,
            privacy=self._published(trained),
            leakage_score=score,
            fairness=self._fairness(header.ref),
        )
        with self._asking():
            return self._link.request_upload(told)

    def _fairness(self, ref: m.TaskRef) -> SignedDocument | None:
        """What is published by subgroups with an answer that was made ready; each time the same bytes."""
        done = self._journal.finished(ref)
        if self._signer is None or done is None or done.result.fairness is None:
            return None
        federation, sign = self._signer
        return fairness.sign(fairness.Statement(federation, self._name, ref, done.result.fairness), sign)

    def _log_fairness(self, ref: m.TaskRef) -> None:
        document = self._fairness(ref)
        if document is not None:
            self._events.published(ref, digest_of(document.content))

    def _report(self, report: m.MetricsReport) -> m.Receipt:
        with self._asking():
            return self._link.report(report)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            with asking_the_director():
                yield
        except UnreachableError as error:
            self._complain(str(error))
            raise


def _watched(parts: Iterator[m.Part], own: list[FederationError]) -> Iterator[m.Part]:
    try:
        yield from parts
    except FederationError as error:
        own.append(error)
        raise


def header_of(done: FinishedWork, layout: Digest) -> m.UpdateHeader:
    """What is said of an update before its bytes; of one in a secure sum neither examples nor metrics."""
    if done.is_summed:
        return masked_header(done, layout, done.masked_length)
    return m.UpdateHeader(
        ref=done.ref,
        layout=layout,
        length=done.length,
        num_examples=done.result.num_examples,
        metrics=done.result.metrics,
        payload=done.kind,
        codec=done.codec,
    )


def masked_header(done: FinishedWork, layout: Digest, num_bytes: int) -> m.UpdateHeader:
    """What is said of masked words before they leave: how many, and nothing of what is under the masks."""
    return m.UpdateHeader(
        ref=done.ref,
        layout=layout,
        length=num_bytes,
        num_examples=0,
        metrics=(),
        payload=m.PayloadKind.MASKED,
        codec=done.codec,
    )
