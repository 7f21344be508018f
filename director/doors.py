"""What the two gRPC doors share: who calls, may it, and how an error leaves.

The caller's name comes from its certificate alone. Every call passes ``_admit``: that is where a registry of revoked
certificates will be asked, once there is one. Each call holds a thread for as long as it lasts, an upload that never
begins too, so one name has at most ``MAX_CALLS`` of them: it can hold up itself, and nobody else.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import grpc

from ..utils.artifacts import ArtifactStore
from ..utils.errors import FederationError, IdentityError, NotAuthorizedError, ProtocolError, TooManyCallsError
from ..utils.identity import PeerId, Role, parse_spiffe
from ..utils.messages import PART_BYTES, Data, DownloadRequest, Opening, Part
from ..utils.transport import refuse
from ..utils.wire import part_from_wire

_LOG = logging.getLogger(__name__)
MAX_CALLS = 8  # at once, of one name: an envoy has five, and after a cut some that the director has yet to miss
_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


def caller(context: grpc.ServicerContext, federation: str) -> PeerId:
    """Who calls, by the certificate of its connection.

    Raises:
        IdentityError: no SPIFFE identity, or one of another federation.
    """
    named = context.auth_context().get("peer_spiffe_id", ())
    if len(named) != 1:
        raise IdentityError("the certificate carries no SPIFFE identity")
    peer = parse_spiffe(named[0].decode("utf-8", "replace"))
    if peer.federation != federation:
        raise IdentityError(f"{peer} belongs to another federation than {federation}")
    return peer


class Door:
    """Turns plain functions into gRPC handlers for callers of some roles.

    Each function gets the caller and the decoded message; one that streams its answer also a way to register what is
    to happen when the call ends.
    """

    def __init__(self, federation: str, roles: Collection[Role]) -> None:
        self._federation, self._roles = federation, roles
        self._lock = threading.Lock()
        self._calls: Counter[PeerId] = Counter()

    def unary(
        self,
        ask: Callable[[PeerId, _Asked], _Answer],
        decode: Callable[[bytes], _Asked],
        encode: Callable[[_Answer], bytes],
        roles: Collection[Role] = (),
    ) -> grpc.RpcMethodHandler:
        """One message in, one out."""

        def call(raw: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                with self._admit(context, roles) as peer:
                    return encode(ask(peer, decode(raw)))
            except FederationError as error:
                self._refuse(context, error)

        return grpc.unary_unary_rpc_method_handler(call)

    def upload(
        self, take: Callable[[PeerId, Iterator[Part]], _Answer], encode: Callable[[_Answer], bytes]
    ) -> grpc.RpcMethodHandler:
        """Parts in, one message out."""

        def call(raws: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            try:
                with self._admit(context) as peer:
                    return encode(take(peer, map(part_from_wire, raws)))
            except FederationError as error:
                self._refuse(context, error)

        return grpc.stream_unary_rpc_method_handler(call)

    def stream(
        self,
        answer: Callable[[PeerId, _Asked, Callable[[Callable[[], None]], None]], Iterator[_Answer]],
        decode: Callable[[bytes], _Asked],
        encode: Callable[[_Answer], bytes],
    ) -> grpc.RpcMethodHandler:
        """One message in, many out; the third argument registers what is to happen when the call ends."""

        def call(raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            def on_end(callback: Callable[[], None]) -> None:
                if not context.add_callback(callback):
                    callback()  # it ended already

            try:
                with self._admit(context) as peer:
                    for item in answer(peer, decode(raw), on_end):
                        yield encode(item)
            except FederationError as error:
                self._refuse(context, error)

        return grpc.unary_stream_rpc_method_handler(call)

    @contextmanager
    def _admit(self, context: grpc.ServicerContext, roles: Collection[Role] = ()) -> Iterator[PeerId]:
        """One call of a caller, from its start to the end of its thread's work."""
        peer = self._peer(context, roles)
        with self._lock:
            if self._calls[peer] >= MAX_CALLS:
                raise TooManyCallsError(f"{peer} has {MAX_CALLS} calls open already: too many calls at once; end one")
            self._calls[peer] += 1
        try:
            yield peer
        finally:
            with self._lock:
                self._calls[peer] -= 1
                self._calls += Counter()  # forget who has none

    def _peer(self, context: grpc.ServicerContext, roles: Collection[Role]) -> PeerId:
        peer = caller(context, self._federation)
        allowed = roles or self._roles
        if peer.role not in allowed:
            raise NotAuthorizedError(
                f"{peer} may not do this; it is for {', '.join(sorted(role.value for role in allowed))}"
            )
        return peer

    def _refuse(self, context: grpc.ServicerContext, error: FederationError) -> NoReturn:
        _LOG.info("refused error=%s reason=%s", type(error).__name__, error)
        refuse(context, error)


def download(
    artifacts: ArtifactStore, request: DownloadRequest, count: Callable[[int], None] = lambda _: None
) -> Iterator[Part]:
    """An artifact from an offset on: an opening, then data.

    Raises:
        UnknownArtifactError: it is not here.
        ProtocolError: the offset lies behind its end.
    """
    length = artifacts.size(request.digest)
    if request.offset > length:
        raise ProtocolError(f"a download from {request.offset} on of {length} bytes")
    yield Opening(length, request.offset, digest=request.digest)
    with artifacts.path(request.digest).open("rb", buffering=0) as file:
        file.seek(request.offset)
        while content := file.read(PART_BYTES):
            count(len(content))
            yield Data(content)
