"""The director's gRPC door for envoys: decode, ask the coordinator, encode. It decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import grpc

from .. import __version__
from ..utils import messages as m
from ..utils import transport, wire
from ..utils.identity import PeerId, Role
from .doors import Door, OpenCall
from .envoy_calls import Answering, Check, EnvoyCalls
from .standing import Standing

SOFTWARE = f"fedveil {__version__}"
_MEMBERS = (Role.ENVOY, Role.RENEW)
_ANYBODY = (Role.ENVOY, Role.OPERATOR, Role.JOIN, Role.RENEW)  # of this federation: who is it that answers?


class FederationService:
    """All that an envoy may call."""

    def __init__(self, federation: str, calls: EnvoyCalls, standing: Standing) -> None:
        self._federation, self._calls, self._standing = federation, calls, standing

    def handlers(self) -> grpc.GenericRpcHandler:
        """The calls by name, as in ``federation.proto``."""
        door = Door(self._federation, (Role.ENVOY,), self._standing)
        calls = self._calls
        return grpc.method_handlers_generic_handler(
            transport.FEDERATION,
            {
                "Hello": door.unary(self._hello, wire.hello_request_from_wire, wire.hello_reply_to_wire, _ANYBODY),
                "Join": door.unary(calls.join, wire.join_request_from_wire, wire.join_reply_to_wire, (Role.JOIN,)),
                "Renew": door.unary(calls.renew, wire.renew_request_from_wire, wire.join_reply_to_wire, _MEMBERS),
                "Work": door.stream(self._work, wire.work_request_from_wire, wire.work_item_to_wire),
                "Download": door.stream(
                    lambda peer, request, _: calls.download(_envoy(peer), request),
                    wire.download_from_wire,
                    wire.part_to_wire,
                ),
                "Upload": door.upload(lambda peer, parts: calls.upload(_envoy(peer), parts), wire.receipt_to_wire),
            }
            | {name: door.raw(_of_envoy(answer)) for name, answer in calls.answers.items()},
        )

    def _hello(self, _: PeerId, __: m.HelloRequest) -> m.HelloReply:
        return m.HelloReply(self._federation, SOFTWARE, time.time())

    def _work(self, peer: PeerId, request: m.WorkRequest, call: OpenCall) -> Generator[m.WorkItem, None, None]:
        return self._calls.work(_envoy(peer), request, call.check, call.on_end)


def _envoy(peer: PeerId) -> m.EnvoyName:
    return m.EnvoyName(peer.name)


def _of_envoy(answer: Answering) -> Callable[[PeerId, bytes, Check], bytes]:
    return lambda peer, raw, check: answer(_envoy(peer), raw, check)
