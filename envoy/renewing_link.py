"""A ``Link`` that changes its certificates while it is used.

A channel keeps the certificate that it was opened with, so a new certificate is a new channel. New calls go over it
once it has answered; calls under way end on the old one, which is closed after the last of them. The line down which
work comes ends and is opened again by whoever holds it: the director waits longer for that than it takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..utils import messages as m
from ..utils.errors import FederationError
from ..utils.tensors import Digest
from .client import DirectorClient
from .enrolment import Credentials
from .patience import a_few_times


class RenewingLink:
    """Calls a director over the newest credentials.

    Args:
        dial: opens a channel with some credentials.
        credentials: to begin with.
    """

    def __init__(self, dial: Callable[[Credentials], DirectorClient], credentials: Credentials) -> None:
        self._dial = dial
        self._lock = threading.Lock()
        self._present = dial(credentials)
        self._calls: dict[DirectorClient, int] = {self._present: 0}
        self._is_closed = False

    def adopt(self, credentials: Credentials) -> None:
        """Call with these from now on.

        Raises:
            FederationError: the director does not answer over them; the old ones stay in use.
        """
        new = self._dial(credentials)
        try:
            a_few_times(new.hello)
        except BaseException:
            new.close()
            raise
        with self._lock:
            old, self._present = self._present, new
            self._calls[new] = 0
            is_closed = self._is_closed
        if is_closed:
            new.close()
        old.end_line()
        self._retire(old)

    def work(self, held: tuple[m.TaskRef, ...], approved: tuple[Digest, ...] = ()) -> Iterator[m.WorkItem]:
        """A line; it ends, without an error, when the link changed its certificates: open it again."""
        with self._call() as client:
            try:
                yield from client.work(held, approved)
            except FederationError:
                if client is self._present:
                    raise

    def next_work(
        self, held: tuple[m.TaskRef, ...], wait_seconds: float, approved: tuple[Digest, ...] = ()
    ) -> m.WorkItem:
        """Ask for one item."""
        with self._call() as client:
            return client.next_work(held, wait_seconds, approved)

    def download(self, request: m.DownloadRequest) -> Iterator[m.Part]:
        """Fetch an artifact."""
        with self._call() as client:
            yield from client.download(request)

    def request_upload(self, header: m.UpdateHeader) -> m.Grant:
        """Ask for a turn."""
        with self._call() as client:
            return client.request_upload(header)

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        """Send one update."""
        with self._call() as client:
            return client.upload(parts)

    def report(self, report: m.MetricsReport) -> m.Receipt:
        """Answer an evaluation."""
        with self._call() as client:
            return client.report(report)

    def tell_sum(self, statement: m.SumStatement) -> m.SumReply:
        """Say one thing in a secure sum."""
        with self._call() as client:
            return client.tell_sum(statement)

    def decline(self, refusal: m.Refusal) -> None:
        """Say that there will be no answer."""
        with self._call() as client:
            client.decline(refusal)

    def beat(self, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        """Say that one is there."""
        with self._call() as client:
            return client.beat(heartbeat)

    def close(self) -> None:
        """End all calls and connections, also those that are being left."""
        with self._lock:
            self._is_closed = True
            clients = list(self._calls)
        for client in clients:
            client.close()

    @contextmanager
    def _call(self) -> Iterator[DirectorClient]:
        """One call, on the newest channel; the channel stays open for as long as the call does."""
        with self._lock:
            client = self._present
            self._calls[client] += 1
        try:
            yield client
        finally:
            with self._lock:
                if client in self._calls:
                    self._calls[client] -= 1
            self._retire(client)

    def _retire(self, client: DirectorClient) -> None:
        """Close a channel that nobody calls over any more."""
        with self._lock:
            if client is self._present or self._calls.get(client) != 0:
                return
            del self._calls[client]
        client.close()
