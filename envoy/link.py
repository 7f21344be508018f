"""What an envoy can say to a director, whatever carries it: gRPC in ``client``, plain calls in a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ..utils import messages as m
from ..utils.tensors import Digest


class Link(Protocol):
    """The director, as an envoy sees it.

    Every method raises what the director refused (``FederationError``), and ``UnreachableError`` where there is no
    answer; the caller tries again.
    """

    def work(self, held: tuple[m.TaskRef, ...], approved: tuple[Digest, ...] = ()) -> Iterator[m.WorkItem]:
        """Open a line; it gives work as it comes, first of all Idle: it stands. Ends or raises when it breaks."""
        ...

    def next_work(
        self, held: tuple[m.TaskRef, ...], wait_seconds: float, approved: tuple[Digest, ...] = ()
    ) -> m.WorkItem:
        """Ask for one item and wait for it at most so long."""
        ...

    def download(self, request: m.DownloadRequest) -> Iterator[m.Part]:
        """An opening, then data; a part's content is only good until the next."""
        ...

    def request_upload(self, header: m.UpdateHeader) -> m.Grant:
        """Ask for a turn."""
        ...

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        """Send one update."""
        ...

    def report(self, report: m.MetricsReport) -> m.Receipt:
        """Answer an evaluation."""
        ...

    def tell_sum(self, statement: m.SumStatement) -> m.SumReply:
        """Say one thing in a secure sum; the reply may hold the next item at once."""
        ...

    def decline(self, refusal: m.Refusal) -> None:
        """Say that there will be no answer."""
        ...

    def beat(self, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        """Say that one is there; the answer holds the director's clock."""
        ...

    def close(self) -> None:
        """End all that is open."""
        ...
