"""Calls of a director's REST API: HTTPS that believes one root alone, and refusals as the errors that they were.

The researcher's client and the sites that speak REST share it. Certificates of the system's authorities are never
believed where a root is given, and verification cannot be turned off.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Self

import httpx

from . import errors
from .addresses import Address
from .proxies import Direct, Proxy, Way, is_on_this_machine, proxy_of_environment
from .transport import proxy_refusal

PROBLEM = "urn:fedveil:problem:"
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
_MOST_PROBLEM_BYTES = 1 << 20
_PAGE = 200  # things that are asked for at once
_NOTHING: Mapping[str, str] = MappingProxyType({})
_BY_NAME = {name: getattr(errors, name) for name in errors.__all__}
_BY_STATUS: Mapping[int, type[errors.FederationError]] = {
    400: errors.MalformedMessageError,
    401: errors.IdentityError,
    403: errors.NotAuthorizedError,
    404: errors.UnknownEntityError,
    409: errors.ProtocolError,
    412: errors.ChangedMeanwhileError,
    413: errors.ConfigError,
    422: errors.ConfigError,
    429: errors.TooManyCallsError,
}


class RestCalls:
    """A connection to one director; safe to share between threads, and to be closed.

    Args:
        url: as ``https://host:port``.
        bearer: a session's token or an API key; "" before signing in.
        root: the federation's root certificate, PEM.
        proxy: the way out; None: directly, whatever the environment says.

    Raises:
        ConfigError: no https URL.
        IdentityError: the root is no PEM certificate.
    """

    def __init__(self, url: str, bearer: str, root: bytes, proxy: Proxy | None = None) -> None:
        if not url.startswith("https://"):
            raise errors.ConfigError(f"{url[:200]!r}: expected the director's URL, https://host:port")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            tls.load_verify_locations(cadata=root.decode("ascii"))
        except (ValueError, ssl.SSLError) as error:
            raise errors.IdentityError("the federation's root is no PEM certificate") from error
        way = None
        if proxy is not None:
            signed_in = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            way = httpx.Proxy(str(proxy), headers=signed_in)
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            verify=tls,
            proxy=way,
            trust_env=False,
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            headers={"User-Agent": "fedveil"},
        )
        self.bearer = bearer
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is open at once, calls of other threads too, and make no more calls."""
        with self._lock:
            self._is_closed = True
            held = list(self._sockets)
        for one in held:  # closing alone would leave a thread that reads waiting
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)
        self._http.close()

    def json(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str | int | float] = MappingProxyType({}),
        headers: Mapping[str, str] = _NOTHING,
    ) -> Any:
        """One call with a JSON body, or without one, and its answer; None where that is empty.

        Raises:
            FederationError: as the director refused it.
            UnreachableError: there was no answer, or it was none of a director's.
        """
        content = None if body is None else json.dumps(body).encode()
        told = {"Content-Type": "application/json", **headers} if content is not None else dict(headers)
        with self.open(method, path, content, params=params, headers=told) as answer:
            raw = _whole(answer)
        try:
            return json.loads(raw) if raw else None
        except ValueError as error:
            raise errors.UnreachableError(
                f"{self.url} answered {method} {path} with something that is no JSON"
            ) from error

    def items(self, path: str) -> Iterator[dict[str, Any]]:
        """All things of a list, page by page.

        Raises:
            FederationError: as ``json``, also in the midst.
        """
        after: str | None = ""
        while after is not None:
            params: dict[str, str | int] = {"limit": _PAGE} | ({"after": after} if after else {})
            page = self.json("GET", path, params=params)
            yield from page["items"]
            after = page["next"]

    def send(
        self,
        method: str,
        path: str,
        content: bytes | Iterable[bytes],
        media_type: str,
        headers: Mapping[str, str] = _NOTHING,
        read_seconds: float | None = READ_SECONDS,
    ) -> bytes:
        """One call with bytes, and the bytes that it answers.

        Raises:
            FederationError, UnreachableError: as ``json``.
        """
        told = {"Content-Type": media_type, **headers}
        with self.open(method, path, content, headers=told, read_seconds=read_seconds) as answer:
            return _whole(answer)

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        content: bytes | Iterable[bytes] | None = None,
        *,
        params: Mapping[str, str | int | float] = MappingProxyType({}),
        headers: Mapping[str, str] = _NOTHING,
        read_seconds: float | None = READ_SECONDS,
    ) -> Iterator[httpx.Response]:
        """One call whose answer is read as it comes.

        Args:
            method: GET, POST, ...
            path: from the first slash on.
            content: the body; pieces are sent as they come.
            params: of the query.
            headers: beside who asks.
            read_seconds: the longest silence; None: as long as it takes.

        Raises:
            FederationError, UnreachableError: as ``json``; the latter also while the answer is read.
        """
        told = {"Authorization": f"Bearer {self.bearer}"} if self.bearer else {}
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, read=read_seconds)
        try:
            if self._is_closed:
                raise errors.UnreachableError(f"the connection to {self.url} was closed")
            with self._http.stream(
                method,
                path,
                content=content,
                params=dict(params),
                headers={**told, **headers},
                timeout=timeout,
                extensions={"trace": self._opened},
            ) as answer:
                if not answer.is_success and answer.status_code != httpx.codes.NOT_MODIFIED:
                    raise refused(answer.status_code, _whole(answer, _MOST_PROBLEM_BYTES), self.url)
                yield answer
        except httpx.ProxyError as error:
            status = str(error).partition(" ")[0]
            said = proxy_refusal(int(status)) if status.isdecimal() else f"the proxy: {error}"
            raise errors.UnreachableError(said) from error
        except (httpx.HTTPError, httpx.StreamError, ssl.SSLError) as error:
            raise errors.UnreachableError(self._why(error)) from error
        except (RuntimeError, ValueError, OSError) as error:  # all that is said of a connection closed meanwhile
            if not self._is_closed:
                raise
            raise errors.UnreachableError(self._why(error)) from error

    def _why(self, error: Exception) -> str:
        if self._is_closed:
            return f"the connection to {self.url} was closed"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return (
                f"{self.url} shows no certificate of this federation's root for that host: is it the director, and is"
                f" the root the one that its operator reads out? {error}"
            )
        return f"{self.url} does not answer: {error or type(error).__name__}"

    def _opened(self, event: str, about: dict[str, Any]) -> None:
        """Told of each step of each call: remembers the sockets."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        opened = about["return_value"].get_extra_info("socket")
        if isinstance(opened, socket.socket):
            with self._lock:
                self._sockets = {one for one in self._sockets if one.fileno() >= 0} | {opened}
            if self._is_closed:
                raise httpx.ConnectError("it was closed meanwhile")


def proxy_to(url: str, way: Way) -> Proxy | None:
    """The proxy on the way to a director's URL, if any: as a site set it, or as the environment says.

    Raises:
        ConfigError: no https URL, or a variable that holds no proxy.
    """
    if way is None:
        address = address_of(url)
        found = None if is_on_this_machine(address) else proxy_of_environment(address, os.environ)
        return None if found is None else found[1]
    return None if isinstance(way, Direct) else way


def address_of(url: str) -> Address:
    """Host and port of ``https://host[:port]``.

    >>> str(address_of("https://director.example:8443"))
    'director.example:8443'

    Raises:
        ConfigError: it is no such URL.
    """
    host = url.removeprefix("https://").rstrip("/")
    if host == url.rstrip("/"):
        raise errors.ConfigError("url: expected https://HOST:PORT, as the director's operator says it")
    address = Address.parse(host)
    return address if address.port else address.with_port(443)


def refused(status: int, raw: bytes, url: str) -> errors.FederationError:
    """What an answer refuses: the director's own error, by its name; of a stranger's answer, what its status means."""
    try:
        said = json.loads(raw)
        kind, detail = str(said["type"]), str(said["detail"])
    except (ValueError, KeyError, TypeError):
        return errors.UnreachableError(f"{url} answered with HTTP {status}, and not as a director does")
    named = _BY_NAME.get(kind.removeprefix(PROBLEM)) if kind.startswith(PROBLEM) else None
    if named is None:
        named = _BY_STATUS.get(status, errors.UnreachableError)
    error: errors.FederationError = named(detail)
    return error


def _whole(answer: httpx.Response, most: int | None = None) -> bytes:
    raw = bytearray()
    for piece in answer.iter_bytes():
        raw += piece
        if most is not None and len(raw) > most:
            break
    return bytes(raw)
