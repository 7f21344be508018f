"""Looks at the network and the disk for a doctor, and gives values; ``journey`` and ``diagnosis`` judge them.

The handshakes here carry nothing: no certificate of this site is shown, no message is sent. A first one believes
everything, to see who is there; a second one believes the federation's root alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import ssl
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509

from .addresses import Address
from .journey import Journey, Step, Stop, TlsSeen, Trouble, Trust
from .proxies import Proxy

_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME
_DATES = {9, 10}  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED
_NAMES = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
_MAX_ANSWER_BYTES = 16 << 10


class _StopError(Exception):
    def __init__(self, stop: Stop) -> None:
        super().__init__(stop)
        self.stop = stop


def travel(address: Address, proxy: Proxy | None, root_pem: bytes, *, timeout_seconds: float = 8.0) -> Journey:
    """Call a director's address, as far as it goes.

    Args:
        address: with a port.
        proxy: through this one; None: directly.
        root_pem: the federation's root, which the certificate that is shown is held against.
        timeout_seconds: of each step.
    """
    journey = Journey(address, proxy)
    try:
        target = proxy.address if proxy is not None else address
        journey = replace(journey, resolved=_resolve(target))
        seen, presented = _handshake(address, proxy, None, timeout_seconds)
        trust = _trust(address, proxy, root_pem, timeout_seconds)
        return replace(journey, tls=TlsSeen(*seen, x509.load_der_x509_certificate(presented), trust))
    except _StopError as error:
        return replace(journey, stop=error.stop)


def reach(address: Address, *, timeout_seconds: float = 4.0) -> Journey:
    """Open a connection directly, and hang up."""
    journey = Journey(address)
    try:
        journey = replace(journey, resolved=_resolve(address))
        _connect(address, timeout_seconds).close()
    except _StopError as error:
        return replace(journey, stop=error.stop)
    return journey


def open_line(address: Address, proxy: Proxy | None, timeout_seconds: float) -> socket.socket:
    """A connection to a director's address, before anything is said.

    Raises:
        OSError: it does not stand.
    """
    try:
        return _open(address, proxy, timeout_seconds)
    except _StopError as error:
        raise ConnectionError(error.stop.trouble.value) from error


def undated_context(root_pem: bytes) -> ssl.SSLContext:
    """Believes certificates of this root for the name that is called, whatever their dates are."""
    context = _believing(root_pem)
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    return context


def _resolve(target: Address) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        trouble = Trouble.NO_SERVER if error.errno == socket.EAI_AGAIN else Trouble.UNKNOWN
        raise _StopError(Stop(Step.NAME, trouble)) from error
    except UnicodeError as error:
        raise _StopError(Stop(Step.NAME, Trouble.UNKNOWN)) from error
    return tuple(sorted({str(one[4][0]) for one in found}))


def _connect(target: Address, timeout_seconds: float) -> socket.socket:
    try:
        return socket.create_connection((target.host, target.port or 0), timeout_seconds)
    except ConnectionRefusedError as error:
        raise _StopError(Stop(Step.PORT, Trouble.REFUSED)) from error
    except TimeoutError as error:
        raise _StopError(Stop(Step.PORT, Trouble.SILENT)) from error
    except socket.gaierror as error:
        raise _StopError(Stop(Step.NAME, Trouble.UNKNOWN)) from error
    except OSError as error:
        raise _StopError(Stop(Step.PORT, Trouble.NO_WAY)) from error


def _open(address: Address, proxy: Proxy | None, timeout_seconds: float) -> socket.socket:
    """A line to the director's address."""
    if proxy is None:
        return _connect(address, timeout_seconds)
    line = _connect(proxy.address, timeout_seconds)
    try:
        status = _ask_for_tunnel(line, address, proxy)
    except OSError as error:
        line.close()
        raise _StopError(Stop(Step.PROXY, Trouble.HUNG_UP)) from error
    except ValueError as error:
        line.close()
        raise _StopError(Stop(Step.PROXY, Trouble.NOT_HTTP)) from error
    if not 200 <= status < 300:
        line.close()
        raise _StopError(Stop(Step.PROXY, Trouble.ANSWER, status))
    return line


def _ask_for_tunnel(line: socket.socket, address: Address, proxy: Proxy) -> int:
    """The HTTP status of the answer to CONNECT.

    Raises:
        OSError: it hung up, or said nothing.
        ValueError: no HTTP.
    """
    login = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    line.sendall(f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{login}\r\n".encode("ascii"))
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = line.recv(1)  # what follows the head is the director's
        if not piece and not answer.startswith(b"HTTP/"):
            raise ConnectionResetError("it hung up")
        answer += piece
        if not answer.startswith(b"HTTP/1."[: len(answer)]) or len(answer) > _MAX_ANSWER_BYTES:
            raise ValueError("no HTTP")
        if not piece:
            break
    words = answer.split(b" ", 2)
    return int(words[1][:3])


def _handshake(
    address: Address, proxy: Proxy | None, context: ssl.SSLContext | None, timeout_seconds: float
) -> tuple[tuple[str, str], bytes]:
    """TLS version and ALPN, and the certificate that is shown; without a context whoever shows it is believed.

    Raises:
        ssl.SSLCertVerificationError: the context does not believe it.
    """
    if context is None:
        context = _context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with _open(address, proxy, timeout_seconds) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=address.host) as line:
                return (line.version() or "", line.selected_alpn_protocol() or ""), line.getpeercert(
                    binary_form=True
                ) or b""
        except ssl.SSLCertVerificationError:
            raise
        except ssl.SSLError as error:
            is_tls = error.reason not in {
                "WRONG_VERSION_NUMBER",
                "HTTP_REQUEST",
                "UNKNOWN_PROTOCOL",
                "RECORD_LAYER_FAILURE",
            }
            raise _StopError(Stop(Step.TLS, Trouble.HUNG_UP if is_tls else Trouble.NOT_TLS)) from error
        except TimeoutError as error:
            raise _StopError(Stop(Step.TLS, Trouble.SILENT)) from error
        except OSError as error:
            raise _StopError(Stop(Step.TLS, Trouble.HUNG_UP)) from error


def _trust(address: Address, proxy: Proxy | None, root_pem: bytes, timeout_seconds: float) -> Trust:
    """What the certificate is worth against the pinned root; dates are looked at last."""
    try:
        _handshake(address, proxy, _believing(root_pem), timeout_seconds)
    except ssl.SSLCertVerificationError as error:
        code = error.verify_code
    else:
        return Trust.TRUSTED
    if code in _DATES:  # is it right in all else?
        try:
            _handshake(address, proxy, undated_context(root_pem), timeout_seconds)
        except ssl.SSLCertVerificationError as error:
            code = error.verify_code
        else:
            return Trust.OUT_OF_TIME
    return Trust.OTHER_NAME if code in _NAMES else Trust.OTHER_AUTHORITY


def _believing(root_pem: bytes) -> ssl.SSLContext:
    context = _context()
    context.load_verify_locations(cadata=root_pem.decode("ascii"))
    return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # to see an inspecting proxy that knows no better
    context.set_alpn_protocols(["h2"])
    return context


@dataclass(frozen=True, slots=True)
class DiskSeen:
    """What a trial in a folder showed."""

    free_bytes: int
    trouble: str = ""  # why nothing can be written and flushed there; empty: it can


def try_disk(folder: Path) -> DiskSeen:
    """Write 64 KiB into a folder, flush them to the disk, and take them away again."""
    path = folder / f".doctor-{secrets.token_hex(8)}"
    trouble = ""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            written = file.write(bytes(1 << 16))
            os.fsync(file.fileno())
        if written != 1 << 16:
            trouble = "No space left on device"
    except OSError as error:
        trouble = error.strerror or type(error).__name__
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        free, trouble = 0, trouble or error.strerror or type(error).__name__
    return DiskSeen(free, trouble)


def is_open_to_others(path: Path) -> bool:
    """May anybody but its owner read, write or enter it? False where it is not there."""
    try:
        return os.name == "posix" and bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    except OSError:
        return False


def largest_file(folder: Path) -> int:
    """Bytes of the largest file below a folder; 0 where there is none."""
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it may be gone meanwhile
            sizes.append(path.stat().st_size)
    return max(sizes)
