"""A ``Link`` that says what came of what was sent: the director's receipts, and what this site refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ...utils import messages as m
from ...utils.tensors import Digest
from ..link import Link


class NotingLink:
    """Calls another link, and tells two listeners.

    Args:
        link: carries everything.
        received: is told each receipt of an update.
        refused: is told each refusal, before the director is.
    """

    def __init__(self, link: Link, received: Callable[[m.Receipt], None], refused: Callable[[m.Refusal], None]) -> None:
        self._link, self._received, self._refused = link, received, refused

    def work(self, held: tuple[m.TaskRef, ...], approved: tuple[Digest, ...] = ()) -> Iterator[m.WorkItem]:
        """Open a line."""
        return self._link.work(held, approved)

    def next_work(
        self, held: tuple[m.TaskRef, ...], wait_seconds: float, approved: tuple[Digest, ...] = ()
    ) -> m.WorkItem:
        """Ask for one item."""
        return self._link.next_work(held, wait_seconds, approved)

    def download(self, request: m.DownloadRequest) -> Iterator[m.Part]:
        """Fetch an artifact."""
        return self._link.download(request)

    def request_upload(self, header: m.UpdateHeader) -> m.Grant:
        """Ask for a turn; the director may have the update already."""
        grant = self._link.request_upload(header)
        if isinstance(grant, m.Receipt):
            self._received(grant)
        return grant

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        """Send one update."""
        receipt = self._link.upload(parts)
        self._received(receipt)
        return receipt

    def report(self, report: m.MetricsReport) -> m.Receipt:
        """Answer an evaluation."""
        return self._link.report(report)

    def tell_sum(self, statement: m.SumStatement) -> m.SumReply:
        """Say one thing in a secure sum."""
        return self._link.tell_sum(statement)

    def decline(self, refusal: m.Refusal) -> None:
        """Say that there will be no answer; whoever waits here hears it first."""
        self._refused(refusal)
        self._link.decline(refusal)

    def beat(self, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        """Say that one is there."""
        return self._link.beat(heartbeat)

    def close(self) -> None:
        """End all that is open."""
        self._link.close()
