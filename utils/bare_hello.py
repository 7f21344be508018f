"""``Hello`` to a director whose certificate is right in all but its dates, as this machine's clock has them.

gRPC cannot leave the dates out, and a doctor has to know whose clock is wrong: so this one call is said by hand, in
HTTP/2 (RFC 9113, headers as RFC 7541 literals) over TLS that checks authority, name and use. Nothing else is ever said
this way, and the answer is believed for nothing but a finding.
"""

from __future__ import annotations

import os
import ssl
import struct

from . import transport, wire
from .addresses import Address
from .errors import FederationError
from .messages import HelloReply
from .probes import open_line, undated_context
from .proxies import Proxy

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_POST, _HTTPS = b"\x83", b"\x87"  # of the static table
_AUTHORITY, _PATH, _CONTENT_TYPE, _NEW_NAME = b"\x01", b"\x04", b"\x0f\x10", b"\x00"
_MAX_FRAME, _MAX_FRAMES = 1 << 14, 64


def bare_hello(
    address: Address, proxy: Proxy | None, root: bytes, chain: bytes, key: bytes, *, timeout_seconds: float = 8.0
) -> HelloReply | None:
    """Who answers, and what its clock says; None where it does not.

    Args:
        address: of the director, with a port.
        proxy: through this one; None: directly.
        root: PEM, the only authority that is believed.
        chain: PEM, of the caller.
        key: PEM, of the caller's leaf.
        timeout_seconds: of each step.
    """
    context = undated_context(root)
    _show(context, chain, key)
    try:
        plain = open_line(address, proxy, timeout_seconds)
        with plain, context.wrap_socket(plain, server_hostname=address.host) as line:
            line.sendall(_request(str(address)))
            return _reply(line)
    except (OSError, FederationError):
        return None


def _show(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    """Python reads certificates from files alone: one in memory, without a name."""
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, chain + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _request(authority: str) -> bytes:
    path = f"/{transport.FEDERATION}/Hello"
    headers = (
        _POST
        + _HTTPS
        + _PATH
        + _text(path)
        + _AUTHORITY
        + _text(authority)
        + _CONTENT_TYPE
        + _text("application/grpc")
        + _NEW_NAME
        + _text("te")
        + _text("trailers")
    )
    asked = _frame(_HEADERS, _END_HEADERS, 1, headers) + _frame(_DATA, _END_STREAM, 1, bytes(5))  # an empty message
    return _PREFACE + _frame(_SETTINGS, 0, 0, b"") + asked


def _text(text: str) -> bytes:
    raw = text.encode("ascii")
    if len(raw) >= 0x7F:
        return b"\x7f" + bytes([len(raw) - 0x7F]) + raw  # at most 254: a host name has 253
    return bytes([len(raw)]) + raw


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def _reply(line: ssl.SSLSocket) -> HelloReply | None:
    """The one message of the answer."""
    said = b""
    for _ in range(_MAX_FRAMES):
        head = _read(line, 9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        if length > _MAX_FRAME:
            return None
        content = _read(line, length)
        if kind == _SETTINGS and not flags & _ACK:
            line.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            line.sendall(_frame(_PING, _ACK, 0, content))
        elif kind == _DATA:
            said += content[1 : len(content) - content[0]] if flags & _PADDED else content
        if kind in {_RESET, _GOAWAY} or (kind in {_DATA, _HEADERS} and flags & _END_STREAM):
            break
    if len(said) < 5 or said[0] or int.from_bytes(said[1:5], "big") != len(said) - 5:
        return None
    return wire.hello_reply_from_wire(said[5:])


def _read(line: ssl.SSLSocket, count: int) -> bytes:
    pieces = b""
    while len(pieces) < count:
        piece = line.recv(count - len(pieces))
        if not piece:
            raise ConnectionResetError("it hung up")
        pieces += piece
    return pieces
