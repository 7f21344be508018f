"""What the two gRPC doors share: who calls, may it, and how an error leaves.

The caller's name comes from its certificate alone; ``admission`` says whether that is still good, and how many calls
one name may have open.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import grpc

from ..utils.errors import FederationError, IdentityError, NotAuthorizedError
from ..utils.identity import PeerId, Role, parse_spiffe
from ..utils.messages import Part
from ..utils.transport import refuse
from ..utils.wire import part_from_wire
from .admission import Admission
from .standing import Standing

_LOG = logging.getLogger(__name__)
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


def certificate_of(context: grpc.ServicerContext) -> str:
    """SHA-256 of the caller's certificate, as ``x509`` counts it.

    Raises:
        IdentityError: the connection has none.
    """
    shown = context.auth_context().get("x509_pem_cert", ())
    if len(shown) != 1:
        raise IdentityError("a connection without a certificate")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown[0].decode("ascii"))).hexdigest()


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call whose answer is streamed."""

    _context: grpc.ServicerContext
    check: Callable[[], None]  # may it go on? Whoever waits for something to say asks from time to time

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call this when the call ends; at once if it has."""
        if not self._context.add_callback(callback):
            callback()


class Door:
    """Turns plain functions into gRPC handlers for callers of some roles.

    Each function gets the caller and the decoded message; one that streams its answer also the call as it stays open.

    Args:
        federation: callers of another are refused.
        roles: who may call, where a call does not say otherwise.
        standing: who was revoked.
    """

    def __init__(self, federation: str, roles: Collection[Role], standing: Standing) -> None:
        self._federation, self._roles, self._admission = federation, roles, Admission(standing)

    def unary(
        self,
        ask: Callable[[PeerId, _Asked], _Answer],
        decode: Callable[[bytes], _Asked],
        encode: Callable[[_Answer], bytes],
        roles: Collection[Role] = (),
    ) -> grpc.RpcMethodHandler:
        """One message in, one out."""

        def answer(peer: PeerId, raw: bytes, check: Callable[[], None]) -> bytes:
            answered = ask(peer, decode(raw))
            check()  # it may have waited long
            return encode(answered)

        return self.raw(answer, roles)

    def raw(
        self, answer: Callable[[PeerId, bytes, Callable[[], None]], bytes], roles: Collection[Role] = ()
    ) -> grpc.RpcMethodHandler:
        """One message in, one out, by a function that reads the one and writes the other."""

        def call(raw: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                with self._admit(context, roles) as (peer, check):
                    return answer(peer, raw, check)
            except FederationError as error:
                self._refuse(context, error)

        return grpc.unary_unary_rpc_method_handler(call)

    def upload(
        self, take: Callable[[PeerId, Iterator[Part]], _Answer], encode: Callable[[_Answer], bytes]
    ) -> grpc.RpcMethodHandler:
        """Parts in, one message out."""

        def call(raws: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            try:
                with self._admit(context) as (peer, check):
                    return encode(take(peer, _parts(raws, check)))
            except FederationError as error:
                self._refuse(context, error)

        return grpc.stream_unary_rpc_method_handler(call)

    def stream(
        self,
        answer: Callable[[PeerId, _Asked, OpenCall], Generator[_Answer, None, None]],
        decode: Callable[[bytes], _Asked],
        encode: Callable[[_Answer], bytes],
    ) -> grpc.RpcMethodHandler:
        """One message in, many out."""

        def call(raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                with (
                    self._admit(context) as (peer, check),
                    closing(answer(peer, decode(raw), OpenCall(context, check))) as items,
                ):
                    for item in items:
                        check()
                        yield encode(item)
            except FederationError as error:
                self._refuse(context, error)

        return grpc.unary_stream_rpc_method_handler(call)

    @contextmanager
    def _admit(
        self, context: grpc.ServicerContext, roles: Collection[Role] = ()
    ) -> Iterator[tuple[PeerId, Callable[[], None]]]:
        """One call of a caller, from its start to the end of its thread's work; and a check that it may go on."""
        peer = self._peer(context, roles)
        with self._admission.admit(peer, certificate_of(context)) as check:
            yield peer, check

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


def _parts(raws: Iterator[bytes], check: Callable[[], None]) -> Iterator[Part]:
    """Parts as they come, from a caller who may still send them."""
    for raw in raws:
        check()
        yield part_from_wire(raw)
