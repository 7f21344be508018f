"""The way out of a network: directly, or through an HTTP proxy that opens tunnels (CONNECT, RFC 9110 section 9.3.6).

A tunnel carries the same mutual TLS from end to end, so the proxy sees whom a site calls and how much, and no more.
gRPC reads proxies from the environment by itself; ``proxy_of_environment`` says which one it will take, so that a
doctor need not guess. Nothing here opens a connection.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote

from .addresses import Address
from .errors import ConfigError

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""In the order in which gRPC looks; in lower case alone."""
EXEMPTING_VARIABLES = ("no_grpc_proxy", "no_proxy")
_URL = re.compile(r"http://(?:(?P<userinfo>[^/]*)@)?(?P<address>[^@/]+)/?")


@dataclass(frozen=True, slots=True)
class Direct:
    """Without a proxy, whatever the environment says."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, and who asks it. Neither user nor password is in its repr or its text.

    Raises:
        ConfigError: the user holds a colon, or one of them a control character: RFC 7617 cannot say that.
    """

    address: Address  # with a port
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.address.port:
            raise ConfigError(f"the proxy {self.address} has no port, expected for instance http://{self.address}:3128")
        if ":" in self.user or re.search(r"[\x00-\x1f\x7f]", self.user + self.password):
            raise ConfigError("the proxy's user holds a colon, or user or password a control character")

    @property
    def authorization(self) -> str:
        """The value of ``Proxy-Authorization`` (RFC 7617), a secret; empty without a user."""
        if not self.user:
            return ""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")

    def __str__(self) -> str:
        return f"http://{self.address}"


Way: TypeAlias = Direct | Proxy | None
"""None: as the environment says, which never sends a call to this machine itself through a proxy."""


def read_proxy(url: str) -> Proxy:
    """A proxy from ``http://host:port`` or ``http://user:password@host:port``.

    >>> str(read_proxy("http://proxy.hospital.example:3128"))
    'http://proxy.hospital.example:3128'

    Raises:
        ConfigError: it is none; the message does not repeat it, since it may hold a password.
    """
    match = _URL.fullmatch(url)
    if match is None:
        kind = " of a scheme that is not supported (TLS to the proxy itself)" if url.startswith("https://") else ""
        raise ConfigError(f"that is no proxy{kind}; expected http://HOST:PORT")
    user, _, password = (match["userinfo"] or "").partition(":")
    return Proxy(Address.parse(match["address"]), unquote(user), unquote(password))


def is_on_this_machine(address: Address) -> bool:
    """Loopback, by name or number."""
    return address.host == "localhost" if address.ip is None else address.ip.is_loopback


def is_exempt(address: Address, exempt: Iterable[str]) -> bool:
    """Is a host among those that are reached without a proxy? As gRPC reads ``no_proxy``.

    Args:
        address: of the host.
        exempt: names (with all that end with them, in any case), IP addresses, or networks as ``10.0.0.0/8``.

    >>> is_exempt(Address("director.hospital.example"), [".hospital.example", "10.0.0.0/8"])
    True
    """
    host = address.host.lower()
    return any(
        host.endswith(entry) or (address.ip is not None and address.ip in network)
        for entry, network in ((one.strip().lower(), _network(one.strip())) for one in exempt)
        if entry
    )


def proxy_of_environment(address: Address, environ: Mapping[str, str]) -> tuple[str, Proxy] | None:
    """The proxy that gRPC takes for an address, with the variable that names it; None where it takes none.

    Raises:
        ConfigError: the variable holds no proxy; the message names the variable.
    """
    if is_on_this_machine(address):
        return None
    variable = next((name for name in PROXY_VARIABLES if environ.get(name)), None)
    exempting = next((environ[name] for name in EXEMPTING_VARIABLES if environ.get(name)), "")
    if variable is None or is_exempt(address, exempting.split(",")):
        return None
    try:
        return variable, read_proxy(environ[variable])
    except ConfigError as error:
        raise ConfigError(f"{variable} in the environment: {error}") from error


class _Nothing:
    """A network without addresses."""

    def __contains__(self, _: object) -> bool:
        return False


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | _Nothing:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return _Nothing()
