"""What an envoy may ask a director for, whichever door it comes through: gRPC (``service``) or HTTPS (``rest/sites``).

Each function takes the envoy's name, which its door found out, and a message; it decides nothing, but asks the part of
the director whose matter it is. What is one message in and one out is decoded and encoded here too (``answers``), the
same for both doors. ``check`` raises once a call that stays open may not go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TypeVar

from ..utils import messages as m
from ..utils import wire, wire_sums
from ..utils.artifacts import ArtifactStore
from ..utils.identity import PeerId
from ..utils.roster import Roster
from .coordinator import Coordinator
from .downloads import download
from .membership import roster_reply
from .registrar import Registrar
from .site_heads import SiteHeads
from .standing import LOOK_SECONDS

Check = Callable[[], None]
Answering = Callable[[m.EnvoyName, bytes, Check], bytes]
"""Answers one message of an envoy."""
_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


class EnvoyCalls:
    """The parts of a director that envoys reach; safe to share between threads."""

    def __init__(
        self,
        coordinator: Coordinator,
        artifacts: ArtifactStore,
        registrar: Registrar,
        roster: Callable[[], Roster],
        heads: SiteHeads,
    ) -> None:
        self._coordinator, self._artifacts, self._registrar = coordinator, artifacts, registrar
        self._roster, self._heads = roster, heads
        acknowledge = wire.acknowledgement_to_wire
        self.answers: Mapping[str, Answering] = {
            "NextWork": _answering(self.next_work, wire.work_request_from_wire, wire.work_item_to_wire),
            "RequestUpload": _answering(self._request_upload, wire.header_from_wire, wire.grant_to_wire),
            "ReportMetrics": _answering(self._report, wire.report_from_wire, wire.receipt_to_wire),
            "Decline": _answering(self._decline, wire.refusal_from_wire, acknowledge),
            "TellSum": _answering(self._tell_sum, wire_sums.statement_from_wire, wire_sums.sum_reply_to_wire),
            "FetchRoster": _answering(
                lambda _, __, ___: roster_reply(self._roster()),
                wire_sums.roster_request_from_wire,
                wire_sums.roster_reply_to_wire,
            ),
            "Beat": _answering(self._beat, wire.heartbeat_from_wire, acknowledge),
        }
        """By the name of the call in ``federation.proto``."""

    def join(self, bootstrap: PeerId, request: m.JoinRequest) -> m.JoinReply:
        """Certificates for whoever was invited."""
        return self._registrar.join(bootstrap, request, time.time())

    def renew(self, member: PeerId, request: m.RenewRequest) -> m.JoinReply:
        """New certificates for a member."""
        return self._registrar.renew(member, request, time.time())

    def work(
        self, envoy: m.EnvoyName, request: m.WorkRequest, check: Check, on_end: Callable[[Callable[[], None]], None]
    ) -> Generator[m.WorkItem, None, None]:
        """A line, for as long as it stands; ``on_end`` takes what is to be called when the envoy ended the call."""
        line = self._coordinator.open_line(envoy, request.held, request.approved)
        on_end(line.close)
        try:
            yield m.Idle()  # the line stands
            while not line.is_closed:
                item = line.next(LOOK_SECONDS)
                check()
                if item is not None:
                    yield item
        finally:
            self._coordinator.close_line(line)

    def next_work(self, envoy: m.EnvoyName, request: m.WorkRequest, check: Check) -> m.WorkItem:
        """One item, as soon as there is one; Idle where none comes in time."""
        line = self._coordinator.open_line(envoy, request.held, request.approved, is_poll=True)
        until = time.monotonic() + request.wait_seconds
        try:
            while True:
                left = until - time.monotonic()
                item = line.next(min(max(left, 0.0), LOOK_SECONDS))
                check()
                if item is not None or left <= 0 or line.is_closed:
                    return item or m.Idle()
        finally:
            self._coordinator.close_line(line)

    def download(self, envoy: m.EnvoyName, request: m.DownloadRequest) -> Generator[m.Part, None, None]:
        """An artifact that the envoy's site is asked to work with: an opening, then data.

        Raises:
            UnknownArtifactError: it is none of these.
        """
        self._coordinator.check_fetch(envoy, request.digest)
        return download(self._artifacts, request, self._coordinator.count_download)

    def upload(self, envoy: m.EnvoyName, parts: Iterator[m.Part]) -> m.Receipt:
        """Take one update."""
        return self._coordinator.upload(envoy, parts)

    def _request_upload(self, envoy: m.EnvoyName, header: m.UpdateHeader, _: Check) -> m.Grant:
        return self._coordinator.request_upload(envoy, header)

    def _report(self, envoy: m.EnvoyName, report: m.MetricsReport, _: Check) -> m.Receipt:
        return self._coordinator.report(envoy, report)

    def _tell_sum(self, envoy: m.EnvoyName, statement: m.SumStatement, _: Check) -> m.SumReply:
        return self._coordinator.tell_sum(envoy, statement)

    def _decline(self, envoy: m.EnvoyName, refusal: m.Refusal, _: Check) -> m.Acknowledgement:
        self._coordinator.decline(envoy, refusal)
        return m.Acknowledgement()

    def _beat(self, envoy: m.EnvoyName, heartbeat: m.Heartbeat, _: Check) -> m.Acknowledgement:
        self._coordinator.beat(envoy, heartbeat)
        return m.Acknowledgement(time.time(), self._heads.exchange(envoy, heartbeat.audit_head))


def _answering(
    ask: Callable[[m.EnvoyName, _Asked, Check], _Answer],
    decode: Callable[[bytes], _Asked],
    encode: Callable[[_Answer], bytes],
) -> Answering:
    def answer(envoy: m.EnvoyName, raw: bytes, check: Check) -> bytes:
        answered = ask(envoy, decode(raw), check)
        check()  # it may have waited long
        return encode(answered)

    return answer
