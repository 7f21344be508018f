"""The envoy's HTTPS door: a ``Link`` for sites out of which nothing but HTTP/1.1 gets. All connections are outbound.

The same messages as over gRPC, in the bodies of POSTs. Work comes by long polls: each waits for one item. Who calls is
said by an API key of the site's organization; the certificates are for what the site signs, and for when it changes to
gRPC.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar
from urllib.parse import quote

from .. import __version__
from ..utils import messages as m
from ..utils import wire, wire_sums
from ..utils.errors import MalformedMessageError
from ..utils.part_frames import framed
from ..utils.proxies import Way
from ..utils.rest_calls import RestCalls, proxy_to
from ..utils.tensors import Digest
from .enrolment import Credentials
from .patience import Patience

SOFTWARE = f"fedveil {__version__}"
SITES = "/api/v1/federated/sites"
_POLL_SECONDS = 25.0
_CALL_SECONDS = 60.0  # longer than the director holds any call
_MESSAGE, _STREAM = "application/x-protobuf", "application/x-protobuf-stream"
_MAX_SEEN = 10_000
_Answer = TypeVar("_Answer")


class RestLink:
    """A ``Link`` over HTTPS; connects again by itself.

    Args:
        url: ``https://host:port`` of the director's REST API.
        api_key: of the organization whose envoy this is.
        root_pem: the federation's root.
        name: of the envoy.
        way: through a proxy, or directly; by default as the environment says.

    Raises:
        ConfigError: no https URL, or a root that is none.
    """

    def __init__(self, url: str, api_key: str, root_pem: bytes, name: str, way: Way = None) -> None:
        self._calls = RestCalls(url, api_key, root_pem, proxy_to(url, way))
        self._path = f"{SITES}/{quote(name, safe='')}"
        self._ended = threading.Event()
        self._approved: tuple[Digest, ...] = ()  # as the site said last

    def work(self, held: tuple[m.TaskRef, ...], approved: tuple[Digest, ...] = ()) -> Iterator[m.WorkItem]:
        """Long polls for as long as they are answered; Idle first: the line stands."""
        self._approved = approved
        seen, patience = _Seen(held), Patience(self._ended)
        item = self.next_work(held, 0.0, approved)
        if not isinstance(item, m.Idle):
            yield m.Idle()
        while True:
            if seen.is_news(item):
                patience.succeed()
                yield item
            else:  # answered at once with what was said before: asked again at once, it would be for ever
                patience.pause()
            if self._ended.is_set():
                return
            item = self.next_work(seen.held, _POLL_SECONDS, self._approved)

    def next_work(
        self, held: tuple[m.TaskRef, ...], wait_seconds: float, approved: tuple[Digest, ...] = ()
    ) -> m.WorkItem:
        """Ask for one item."""
        asked = wire.work_request_to_wire(m.WorkRequest(SOFTWARE, held, wait_seconds, approved))
        return self._asked("work", asked, wire.work_item_from_wire, wait_seconds + _CALL_SECONDS)

    def download(self, request: m.DownloadRequest) -> Iterator[m.Part]:
        """Fetch an artifact, from an offset on."""
        asked = wire.download_to_wire(request)
        with self._calls.open("POST", f"{self._path}/parts", asked, headers={"Content-Type": _MESSAGE}) as answer:
            announced = answer.headers.get("content-length", "")
            if not announced.isdecimal():
                raise MalformedMessageError("a download that does not say how long it is")
            yield m.Opening(request.offset + int(announced), request.offset, digest=request.digest)
            for piece in answer.iter_raw(m.PART_BYTES):
                yield m.Data(piece)

    def request_upload(self, header: m.UpdateHeader) -> m.Grant:
        """Ask for a turn."""
        return self._asked("turns", wire.header_to_wire(header), wire.grant_from_wire)

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        """Send one update; it takes as long as the line needs."""
        pieces = (framed(wire.part_to_wire(part)) for part in parts)
        return wire.receipt_from_wire(self._calls.send("POST", f"{self._path}/updates", pieces, _STREAM))

    def report(self, report: m.MetricsReport) -> m.Receipt:
        """Answer an evaluation."""
        return self._asked("reports", wire.report_to_wire(report), wire.receipt_from_wire)

    def tell_sum(self, statement: m.SumStatement) -> m.SumReply:
        """Say one thing in a secure sum."""
        return self._asked("statements", wire_sums.statement_to_wire(statement), wire_sums.sum_reply_from_wire)

    def decline(self, refusal: m.Refusal) -> None:
        """Say that there will be no answer."""
        self._asked("refusals", wire.refusal_to_wire(refusal), wire.acknowledgement_from_wire)

    def beat(self, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        """Say that one is there, and what the site approved by now; the answer holds the director's clock."""
        self._approved = heartbeat.approved
        return self._asked("beats", wire.heartbeat_to_wire(heartbeat), wire.acknowledgement_from_wire)

    def renew(self, request: m.RenewRequest) -> m.JoinReply:
        """Ask for new certificates."""
        return self._asked("renewals", wire.renew_request_to_wire(request), wire.join_reply_from_wire)

    def roster(self) -> m.RosterReply:
        """Who is in the federation, by the director's word alone."""
        return wire_sums.roster_reply_from_wire(self._calls.send("GET", f"{self._path}/roster", b"", _MESSAGE))

    def adopt(self, _: Credentials) -> None:
        """New certificates change nothing here: the key says who calls."""

    def close(self) -> None:
        """End all calls and connections."""
        self._ended.set()
        self._calls.close()

    def _asked(
        self, call: str, content: bytes, read: Callable[[bytes], _Answer], seconds: float = _CALL_SECONDS
    ) -> _Answer:
        return read(self._calls.send("POST", f"{self._path}/{call}", content, _MESSAGE, read_seconds=seconds))


class _Seen:
    """What came down one line: each poll opens it anew, and it begins with all that is open for the site."""

    def __init__(self, held: tuple[m.TaskRef, ...]) -> None:
        self._held = dict.fromkeys(held)
        self._said = dict[tuple[m.TaskRef, str], None]()

    @property
    def held(self) -> tuple[m.TaskRef, ...]:
        """Tasks that came and were not withdrawn."""
        return tuple(self._held)

    def is_news(self, item: m.WorkItem) -> bool:
        """Did it not come before?"""
        match item:
            case m.Task(ref):
                is_new = ref not in self._held
                self._held[ref] = None
                return is_new
            case m.Withdrawal(ref):
                self._said = {one: None for one in self._said if one[0] != ref}
                return self._held.pop(ref, True) is None
            case m.SumItem(ref, content):
                said = ref, hashlib.sha256(content).hexdigest()
                is_new = said not in self._said
                self._said[said] = None
                while len(self._said) > _MAX_SEEN:
                    del self._said[next(iter(self._said))]
                return is_new
            case m.Idle() | m.Offer():
                return True
