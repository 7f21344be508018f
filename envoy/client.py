"""The envoy's gRPC door: the only connections of a site, and all of them outbound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from .. import __version__
from ..utils import messages as m
from ..utils import transport, wire, wire_sums
from ..utils.errors import UnreachableError
from ..utils.join_file import JoinFile
from ..utils.proxies import Way
from ..utils.tensors import Digest

SOFTWARE = f"fedveil {__version__}"
_CALL_SECONDS = 60.0  # longer than the director holds any call
_Answer = TypeVar("_Answer")


class DirectorClient:
    """A ``Link`` over mutual TLS; reconnects by itself.

    Args:
        address: host:port of the director.
        chain: PEM of the leaf and its issuer.
        key: PEM of the leaf's key.
        root: PEM of the federation's root.
        way: through a proxy, or directly; by default as the environment says.
    """

    def __init__(self, address: str, chain: bytes, key: bytes, root: bytes, way: Way = None) -> None:
        self._channel = transport.open_channel(address, chain, key, root, way)
        self._line: Any = None
        self._has_no_line = False
        call = self._channel.unary_unary
        self._next_work: Callable[..., m.WorkItem] = call(
            _path("NextWork"), wire.work_request_to_wire, wire.work_item_from_wire
        )
        self._request: Callable[..., m.Grant] = call(_path("RequestUpload"), wire.header_to_wire, wire.grant_from_wire)
        self._report: Callable[..., m.Receipt] = call(
            _path("ReportMetrics"), wire.report_to_wire, wire.receipt_from_wire
        )
        self._decline: Callable[..., m.Acknowledgement] = call(
            _path("Decline"), wire.refusal_to_wire, wire.acknowledgement_from_wire
        )
        self._beat: Callable[..., m.Acknowledgement] = call(
            _path("Beat"), wire.heartbeat_to_wire, wire.acknowledgement_from_wire
        )
        self._join: Callable[..., m.JoinReply] = call(
            _path("Join"), wire.join_request_to_wire, wire.join_reply_from_wire
        )
        self._renew: Callable[..., m.JoinReply] = call(
            _path("Renew"), wire.renew_request_to_wire, wire.join_reply_from_wire
        )
        self._fetch_roster: Callable[..., m.RosterReply] = call(
            _path("FetchRoster"), wire_sums.roster_request_to_wire, wire_sums.roster_reply_from_wire
        )
        self._tell_sum: Callable[..., m.SumReply] = call(
            _path("TellSum"), wire_sums.statement_to_wire, wire_sums.sum_reply_from_wire
        )
        self._hello: Callable[..., m.HelloReply] = call(
            _path("Hello"), wire.hello_request_to_wire, wire.hello_reply_from_wire
        )
        stream = self._channel.unary_stream
        self._work = stream(_path("Work"), wire.work_request_to_wire, wire.work_item_from_wire)
        self._download = stream(_path("Download"), wire.download_to_wire, wire.part_from_wire)
        self._upload: Callable[..., m.Receipt] = self._channel.stream_unary(
            _path("Upload"), wire.part_to_wire, wire.receipt_from_wire
        )

    def hello(self, seconds: float = 10.0) -> m.HelloReply:
        """Ask who answers, and what its clock says."""
        return _answered(self._hello, m.HelloRequest(), seconds)

    def join(self, request: m.JoinRequest) -> m.JoinReply:
        """Ask for certificates, over a bootstrap certificate."""
        return _answered(self._join, request, 30.0)

    def renew(self, request: m.RenewRequest) -> m.JoinReply:
        """Ask for new certificates, over the leaf or the renewal certificate."""
        return _answered(self._renew, request, 30.0)

    def work(self, held: tuple[m.TaskRef, ...], approved: tuple[Digest, ...] = ()) -> Iterator[m.WorkItem]:
        """Open a line."""
        with _in_our_words():
            line = self._line = self._work(m.WorkRequest(SOFTWARE, held, approved=approved))
        if self._has_no_line:
            line.cancel()
        return _streamed(lambda: line)

    def next_work(
        self, held: tuple[m.TaskRef, ...], wait_seconds: float, approved: tuple[Digest, ...] = ()
    ) -> m.WorkItem:
        """Ask for one item."""
        asked = m.WorkRequest(SOFTWARE, held, wait_seconds, approved)
        return _answered(self._next_work, asked, wait_seconds + _CALL_SECONDS)

    def download(self, request: m.DownloadRequest) -> Iterator[m.Part]:
        """Fetch an artifact."""
        return _streamed(lambda: self._download(request))

    def request_upload(self, header: m.UpdateHeader) -> m.Grant:
        """Ask for a turn."""
        return _answered(self._request, header, _CALL_SECONDS)

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        """Send one update; it takes as long as the line needs."""
        return _answered(self._upload, iter(parts), None)

    def report(self, report: m.MetricsReport) -> m.Receipt:
        """Answer an evaluation."""
        return _answered(self._report, report, _CALL_SECONDS)

    def tell_sum(self, statement: m.SumStatement) -> m.SumReply:
        """Say one thing in a secure sum."""
        return _answered(self._tell_sum, statement, _CALL_SECONDS)

    def decline(self, refusal: m.Refusal) -> None:
        """Say that there will be no answer."""
        _answered(self._decline, refusal, _CALL_SECONDS)

    def beat(self, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        """Say that one is there; the answer holds the director's clock."""
        return _answered(self._beat, heartbeat, _CALL_SECONDS)

    def roster(self) -> m.RosterReply:
        """Who is in the federation, by the director's word alone."""
        return _answered(self._fetch_roster, m.RosterRequest(), _CALL_SECONDS)

    def end_line(self) -> None:
        """End the line that is open, and open none any more; calls that are under way go on."""
        self._has_no_line = True
        if self._line is not None:
            self._line.cancel()

    def close(self) -> None:
        """End all calls and the connection."""
        self._channel.close()


def bootstrap_client(join: JoinFile, address: str, way: Way = None) -> DirectorClient:
    """A client that may join, and nothing else."""
    return DirectorClient(address, join.chain, join.bootstrap_key, join.root, way)


def _path(method: str) -> str:
    return f"/{transport.FEDERATION}/{method}"


def _answered(call: Callable[..., _Answer], asked: object, timeout: float | None) -> _Answer:
    with _in_our_words():
        return call(asked, timeout=timeout)


def _streamed(call: Callable[[], Any]) -> Iterator[Any]:
    with _in_our_words():
        answers = call()
        try:
            yield from answers
        finally:
            answers.cancel()


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as failure:
        raise transport.error_of(failure) from failure
    except ValueError as error:  # all that gRPC says of a channel that this side closed, before the call or amid it
        if not any(words in str(error).lower() for words in ("closed channel", "channel closed")):
            raise
        raise UnreachableError("this connection was closed") from error
