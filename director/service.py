"""The director's gRPC door for envoys: decode, ask the coordinator, encode. It decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

import grpc

from .. import __version__
from ..utils import messages as m
from ..utils import transport, wire, wire_sums
from ..utils.artifacts import ArtifactStore
from ..utils.identity import PeerId, Role
from ..utils.roster import Roster
from .coordinator import Coordinator
from .doors import Door, OpenCall, download
from .membership import roster_reply
from .registrar import Registrar
from .site_heads import SiteHeads
from .standing import LOOK_SECONDS, Standing

SOFTWARE = f"fedveil {__version__}"
_MEMBERS = (Role.ENVOY, Role.RENEW)
_ANYBODY = (Role.ENVOY, Role.OPERATOR, Role.JOIN, Role.RENEW)  # of this federation: who is it that answers?


class FederationService:
    """All that an envoy may call."""

    def __init__(
        self,
        federation: str,
        coordinator: Coordinator,
        artifacts: ArtifactStore,
        registrar: Registrar,
        roster: Callable[[], Roster],
        heads: SiteHeads,
        standing: Standing,
    ) -> None:
        self._federation, self._roster, self._heads, self._standing = federation, roster, heads, standing
        self._coordinator, self._artifacts, self._registrar = coordinator, artifacts, registrar

    def handlers(self) -> grpc.GenericRpcHandler:
        """The calls by name, as in ``federation.proto``."""
        door = Door(self._federation, (Role.ENVOY,), self._standing)
        acknowledge = wire.acknowledgement_to_wire
        return grpc.method_handlers_generic_handler(
            transport.FEDERATION,
            {
                "Hello": door.unary(self._hello, wire.hello_request_from_wire, wire.hello_reply_to_wire, _ANYBODY),
                "Join": door.unary(self._join, wire.join_request_from_wire, wire.join_reply_to_wire, (Role.JOIN,)),
                "Renew": door.unary(self._renew, wire.renew_request_from_wire, wire.join_reply_to_wire, _MEMBERS),
                "Work": door.stream(self._work, wire.work_request_from_wire, wire.work_item_to_wire),
                "NextWork": door.unary(self._next_work, wire.work_request_from_wire, wire.work_item_to_wire),
                "Download": door.stream(self._download, wire.download_from_wire, wire.part_to_wire),
                "RequestUpload": door.unary(self._request_upload, wire.header_from_wire, wire.grant_to_wire),
                "Upload": door.upload(self._upload, wire.receipt_to_wire),
                "ReportMetrics": door.unary(self._report, wire.report_from_wire, wire.receipt_to_wire),
                "Decline": door.unary(self._decline, wire.refusal_from_wire, acknowledge),
                "TellSum": door.unary(self._tell_sum, wire_sums.statement_from_wire, wire_sums.sum_reply_to_wire),
                "FetchRoster": door.unary(
                    lambda _, __: roster_reply(self._roster()),
                    wire_sums.roster_request_from_wire,
                    wire_sums.roster_reply_to_wire,
                ),
                "Beat": door.unary(self._beat, wire.heartbeat_from_wire, acknowledge),
            },
        )

    def _hello(self, _: PeerId, __: m.HelloRequest) -> m.HelloReply:
        return m.HelloReply(self._federation, SOFTWARE, time.time())

    def _join(self, peer: PeerId, request: m.JoinRequest) -> m.JoinReply:
        return self._registrar.join(peer, request, time.time())

    def _renew(self, peer: PeerId, request: m.RenewRequest) -> m.JoinReply:
        return self._registrar.renew(peer, request, time.time())

    def _work(self, peer: PeerId, request: m.WorkRequest, call: OpenCall) -> Generator[m.WorkItem, None, None]:
        line = self._coordinator.open_line(_envoy(peer), request.held, request.approved)
        call.on_end(line.close)
        try:
            yield m.Idle()  # the line stands
            while not line.is_closed:
                item = line.next(LOOK_SECONDS)
                call.check()
                if item is not None:
                    yield item
        finally:
            self._coordinator.close_line(line)

    def _next_work(self, peer: PeerId, request: m.WorkRequest) -> m.WorkItem:
        line = self._coordinator.open_line(_envoy(peer), request.held, request.approved, is_poll=True)
        try:
            return line.next(request.wait_seconds) or m.Idle()
        finally:
            self._coordinator.close_line(line)

    def _download(self, peer: PeerId, request: m.DownloadRequest, _: OpenCall) -> Generator[m.Part, None, None]:
        self._coordinator.hear(_envoy(peer))
        return download(self._artifacts, request, self._coordinator.count_download)

    def _request_upload(self, peer: PeerId, header: m.UpdateHeader) -> m.Grant:
        return self._coordinator.request_upload(_envoy(peer), header)

    def _upload(self, peer: PeerId, parts: Iterator[m.Part]) -> m.Receipt:
        return self._coordinator.upload(_envoy(peer), parts)

    def _report(self, peer: PeerId, report: m.MetricsReport) -> m.Receipt:
        return self._coordinator.report(_envoy(peer), report)

    def _tell_sum(self, peer: PeerId, statement: m.SumStatement) -> m.SumReply:
        return self._coordinator.tell_sum(_envoy(peer), statement)

    def _decline(self, peer: PeerId, refusal: m.Refusal) -> m.Acknowledgement:
        self._coordinator.decline(_envoy(peer), refusal)
        return m.Acknowledgement()

    def _beat(self, peer: PeerId, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        envoy = _envoy(peer)
        self._coordinator.beat(envoy, heartbeat)
        return m.Acknowledgement(time.time(), self._heads.exchange(envoy, heartbeat.audit_head))


def _envoy(peer: PeerId) -> m.EnvoyName:
    return m.EnvoyName(peer.name)
