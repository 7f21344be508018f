"""Where a director is found: ``host:port``, as configuration, join files and certificates must agree on it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TypeAlias

from .errors import ConfigError

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?")
_ALL_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")


@dataclass(frozen=True, slots=True)
class Address:
    """A host, and a port where one was given.

    >>> str(Address.parse("[::1]:9443")), str(Address.parse("director.example.org").with_port(9443))
    ('[::1]:9443', 'director.example.org:9443')
    """

    host: str  # a DNS name or an IP address, without brackets
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``.

        Raises:
            ConfigError: it is none of these.
        """
        bracketed = _BRACKETED.fullmatch(text)
        host, port = bracketed.groups() if bracketed else _split(text)
        address = cls(host, None if port is None else int(port))
        is_v6 = address.ip is not None and address.ip.version == 6
        if bool(bracketed) != is_v6 or (address.ip is None and not _is_host_name(host)):
            raise ConfigError(f"{text!r} is no address; expected host:port, for instance director.example.org:9443")
        if address.port is not None and address.port > 65535:
            raise ConfigError(f"{text!r}: a port is at most 65535")
        return address

    @property
    def ip(self) -> IpAddress | None:
        """The IP address, or None for a DNS name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def with_port(self, port: int) -> Address:
        """The same host; its own port, or this one where it has none.

        Raises:
            ConfigError: that leaves port 0, which cannot be dialled.
        """
        chosen = self.port or port
        if not chosen:
            raise ConfigError(f"{self.host} is announced without a port while the port is only chosen at the start")
        return Address(self.host, chosen)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def _split(text: str) -> tuple[str, str | None]:
    host, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise ConfigError(f"{text!r} is no address; expected host:port, with an IPv6 host in square brackets")
    return host, port if colon else None


def _is_host_name(host: str) -> bool:
    """Letters, digits, hyphens and dots; what looks like an IPv4 address must be one."""
    return bool(_HOST_NAME.fullmatch(host)) and not _ALL_DIGITS_AND_DOTS.fullmatch(host)
