"""What both gRPC doors share: the channel's settings, credentials, and the status of every error.

TLS 1.3 alone: gRPC offers 1.2 by default and has no option against it. It reads its list of 1.2 ciphers from the
environment when its core is loaded, so the package's root sets that list, before anything here imports ``grpc``, to one
that only an RSA certificate could serve; with our P-256 certificates 1.3 is left (a test tries 1.2).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc

from . import errors
from .addresses import Address
from .messages import MAX_PART_BYTES
from .proxies import Direct, Proxy, Way, is_on_this_machine

FEDERATION = "fedveil.v1.Federation"
CONTROL = "fedveil.v1.Control"

BEAT_SECONDS = 1.0
"""An envoy says something at least this often."""
SILENCE_SECONDS = 4.0
"""One who said nothing for so long is lost: with a beat a second, at most 5 s after its last word."""

_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_COMMON = [
    *_KEEPALIVE,
    ("grpc.max_receive_message_length", MAX_PART_BYTES + 1024),
    ("grpc.max_send_message_length", MAX_PART_BYTES + 1024),
    ("grpc.max_metadata_size", 16 << 10),
]
SERVER_OPTIONS = [
    *_COMMON,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
]
CHANNEL_OPTIONS = [
    *_COMMON,
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # gRPC gives one attempt this long: slow lines, proxies, loaded machines
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

_STATUS: dict[type[errors.FederationError], grpc.StatusCode] = {
    errors.FederationError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.IdentityError: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotAuthorizedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.MalformedMessageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotInvitedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotApprovedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.DuplicateUpdateError: grpc.StatusCode.ALREADY_EXISTS,
    errors.UnknownArtifactError: grpc.StatusCode.NOT_FOUND,
    errors.UnsendableUpdateError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.StorageError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PlanError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SandboxError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnreachableError: grpc.StatusCode.UNAVAILABLE,
    errors.TooManyCallsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_BY_NAME: dict[str, type[errors.FederationError]] = {name: getattr(errors, name) for name in errors.__all__}
_ERROR_KEY = "fedveil-error"
_PROXY_ANSWER = re.compile(r"HTTP proxy returned response code (\d{3})")
_WANTS_PASSWORD, _FORBIDS = {401, 407}, {403, 405}


def status_of(error: errors.FederationError) -> grpc.StatusCode:
    """The gRPC status of an error: that of its nearest class in the table."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def refuse(context: grpc.ServicerContext, error: errors.FederationError) -> NoReturn:
    """End a call with an error that the other side can read back."""
    context.set_trailing_metadata(((_ERROR_KEY, type(error).__name__),))
    context.abort(status_of(error), str(error))
    raise error  # abort() has raised before this; the type checker does not know


def error_of(failure: grpc.RpcError) -> errors.FederationError:
    """What the other side refused, or why it could not be reached."""
    metadata = dict(failure.trailing_metadata() or ())
    kind = _BY_NAME.get(metadata.get(_ERROR_KEY, ""))
    details = failure.details() or ""
    if kind is not None:
        return kind(details)
    if (answered := _PROXY_ANSWER.search(details)) is not None:
        return errors.UnreachableError(proxy_refusal(int(answered[1])))
    return errors.UnreachableError(f"{failure.code().name.lower().replace('_', ' ')}: {details}")


def proxy_refusal(status: int) -> str:
    """What a proxy means that answers CONNECT with this HTTP status, and whom to ask."""
    if status in _WANTS_PASSWORD:
        return (
            f"the proxy wants a user and a password, or does not take those that it got (HTTP {status});"
            " see [proxy] in envoy.toml, and `envoy doctor`"
        )
    if status in _FORBIDS:
        return (
            f"the proxy does not allow a tunnel to the director's host and port (HTTP {status}); ask IT to allow"
            " CONNECT to it: `envoy doctor --network` prints what to ask for"
        )
    return f"the proxy could not reach the director (HTTP {status}); is the director up, and may the proxy call it?"


@dataclass(frozen=True, slots=True)
class Shown:
    """What a server shows in mutual TLS, and whom it believes; all PEM."""

    chain: bytes
    key: bytes = field(repr=False)
    root: bytes


def server_credentials(first: Shown, renewed: Callable[[], Shown | None]) -> grpc.ServerCredentials:
    """Mutual TLS: a caller without a certificate of this federation's root gets no connection.

    Args:
        first: what is shown to begin with.
        renewed: asked at each handshake: what is shown from now on, or None for what was shown before. Raises nothing.
    """

    def configuration() -> Any:
        shown = renewed()
        return None if shown is None else _configuration(shown)

    return grpc.dynamic_ssl_server_credentials(_configuration(first), configuration, require_client_authentication=True)


def _configuration(shown: Shown) -> Any:
    return grpc.ssl_server_certificate_configuration([(shown.key, shown.chain)], shown.root)


def open_channel(address: str, chain: bytes, key: bytes, root: bytes, way: Way = None) -> grpc.Channel:
    """A channel to ``host:port`` under mutual TLS; it connects, and reconnects, by itself.

    Args:
        address: whom to call.
        chain: PEM of the leaf and its issuer.
        key: PEM of the leaf's key.
        root: PEM of the federation's root.
        way: through this proxy, or directly; by default through the one that the environment names
            (``https_proxy``), but not to this machine itself. ``no_proxy`` of the environment always holds.
    """
    credentials = grpc.ssl_channel_credentials(root, key, chain)
    return grpc.secure_channel(address, credentials, [*CHANNEL_OPTIONS, *_proxy_options(address, way)])


def _proxy_options(address: str, way: Way) -> list[tuple[str, int | str]]:
    if isinstance(way, Proxy):
        options: list[tuple[str, int | str]] = [("grpc.http_proxy", str(way))]
        if way.authorization:  # not in the URL: gRPC cannot read an @ in a password there, and then calls directly
            options.append(("grpc.http_connect_headers", f"Proxy-Authorization:{way.authorization}"))
        return options
    is_direct = isinstance(way, Direct) or is_on_this_machine(Address.parse(address))
    return [("grpc.enable_http_proxy", 0)] if is_direct else []


def keep_memory_low() -> None:
    """Let glibc keep two arenas instead of eight a core.

    Parts of a megabyte pass through many threads; with an arena each, freed memory of one is not reused by the others
    and the resident size grows with the number of envoys. No effect where the C library is another.
    """
    m_arena_max = -8
    mallopt: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_arena_max, 2)
