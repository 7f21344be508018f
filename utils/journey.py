"""How far a call to a director comes, step by step, and what it means where it stops.

``probes`` walks and gives a ``Journey``; ``findings`` judges it: name, port, proxy, TLS, in words for a hospital's IT.
Pure; ``now`` is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from cryptography import x509
from cryptography.x509.oid import NameOID

from .addresses import Address
from .diagnosis import Finding, failed, in_time, passed, warned
from .identity import expires_at, when
from .proxies import Proxy


class Step(Enum):
    """Where a call can end; the value is the check's name."""

    NAME = "dns"
    PORT = "port"
    PROXY = "proxy"
    TLS = "tls"


class Trouble(Enum):
    """Why it ended there."""

    UNKNOWN = "unknown"  # no such name
    NO_SERVER = "no server"  # nobody resolves names
    REFUSED = "refused"
    SILENT = "silent"
    NO_WAY = "no way"
    ANSWER = "answer"  # the proxy's, with an HTTP status
    NOT_HTTP = "not HTTP"
    NOT_TLS = "not TLS"
    HUNG_UP = "hung up"


class Trust(Enum):
    """What the certificate that was shown is worth."""

    TRUSTED = "trusted"
    OTHER_AUTHORITY = "another authority"
    OTHER_NAME = "another name"
    OUT_OF_TIME = "out of time"  # right in all but its dates, by this machine's clock


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of a call that did not arrive."""

    step: Step
    trouble: Trouble
    status: int = 0  # HTTP, of a proxy's answer


@dataclass(frozen=True, slots=True)
class TlsSeen:
    """What a handshake showed."""

    version: str  # "TLSv1.3"
    protocol: str  # ALPN; empty: none
    certificate: x509.Certificate
    trust: Trust


@dataclass(frozen=True, slots=True)
class Journey:
    """One call to a director's address."""

    address: Address
    proxy: Proxy | None = None
    resolved: tuple[str, ...] = ()  # of the proxy's name where there is one, else of the director's
    tls: TlsSeen | None = None
    stop: Stop | None = None

    @property
    def has_port(self) -> bool:
        """Did a connection to the address stand, directly or through the proxy?"""
        return self.stop is None or self.stop.step is Step.TLS


def findings(journey: Journey, pinned: x509.Certificate, now: float) -> Iterator[Finding]:
    """A line a step, up to the one where it stopped.

    Args:
        journey: what was seen.
        pinned: the federation's root.
        now: this machine's clock.
    """
    yield _name(journey)
    if journey.stop is not None and journey.stop.step is Step.NAME:
        return
    if journey.proxy is None:
        yield _port(journey)
    else:
        yield _proxy(journey, journey.proxy)
    if journey.has_port:
        yield from _tls(journey, pinned, now)


def _name(journey: Journey) -> Finding:
    target = journey.proxy.address if journey.proxy is not None else journey.address
    whose = "the proxy" if journey.proxy is not None else "the director"
    if journey.stop is not None and journey.stop.step is Step.NAME:
        if journey.stop.trouble is Trouble.NO_SERVER:
            return failed(
                "dns",
                f"no name server answers, asked for {target.host}",
                "this machine's name servers (DNS) are out of reach: IT looks at /etc/resolv.conf and the network",
            )
        return failed(
            "dns",
            f"{target.host} ({whose}) is a name that is not known here",
            f"ask IT to let the name {target.host} be resolved from this machine; or the operator whether it is"
            " misspelt" + ("; see [proxy] in envoy.toml" if journey.proxy is not None else ""),
        )
    if target.ip is not None:
        return passed("dns", f"{target.host} ({whose}) is an address: no name to look up")
    beyond = "; the proxy looks up the director's name" if journey.proxy is not None else ""
    return passed("dns", f"{target.host} ({whose}) is {', '.join(journey.resolved)}{beyond}")


def _port(journey: Journey) -> Finding:
    target = journey.address
    if journey.stop is None or journey.stop.step is Step.TLS:
        return passed("port", f"{target} answers")
    return failed("port", _unreached(target, journey.stop.trouble), _firewall_fix(target, journey.stop.trouble))


def _unreached(target: Address, trouble: Trouble) -> str:
    match trouble:
        case Trouble.REFUSED:
            return f"{target} refuses connections: the machine is there, and nothing listens on the port"
        case Trouble.SILENT:
            return f"{target} does not answer: most often a firewall that drops what it does not allow"
        case _:
            return f"there is no way to {target} in this network"


def _firewall_fix(target: Address, trouble: Trouble) -> str:
    if trouble is Trouble.REFUSED:
        return (
            f"ask the operator whether the director runs and listens on port {target.port}; some firewalls refuse, too"
        )
    return (
        f"ask IT to allow outbound TCP to {target} (`envoy doctor --network` prints the request), or name the"
        " hospital's proxy in [proxy] of envoy.toml"
    )


def _proxy(journey: Journey, proxy: Proxy) -> Finding:
    stop, target = journey.stop, journey.address
    if stop is None or stop.step is Step.TLS:
        who = "" if not proxy.user else f" as {proxy.user}"
        return passed("proxy", f"{proxy} opens a tunnel to {target}{who}")
    if stop.step is Step.PORT:
        return failed(
            "proxy",
            _unreached(proxy.address, stop.trouble).replace(
                "nothing listens on the port", "no proxy listens on the port"
            ),
            "ask IT for the proxy's right host and port; they stand in [proxy] of envoy.toml, or in the environment",
        )
    if stop.trouble is Trouble.ANSWER:
        return _proxy_answer(stop.status, proxy, target)
    return failed(
        "proxy",
        f"{proxy.address} answers, but not as an HTTP proxy",
        "ask IT for the HTTP proxy's port (often 3128 or 8080); no SOCKS proxy, and none that wants TLS to itself",
    )


def _proxy_answer(status: int, proxy: Proxy, target: Address) -> Finding:
    if status in {401, 407} and proxy.user:
        return failed(
            "proxy",
            f"{proxy} does not take the password of {proxy.user} (HTTP {status})",
            "put the right password into the first line of the file that [proxy] password_file names; is the account"
            " locked or its password expired? Only Basic authentication is supported, not Kerberos or NTLM",
        )
    if status in {401, 407}:
        return failed(
            "proxy",
            f"{proxy} wants a user and a password (HTTP {status}), and none is set",
            "ask IT for an account for this machine; set user and password_file in [proxy] of envoy.toml",
        )
    if status in {403, 405}:
        return failed(
            "proxy",
            f"{proxy} does not allow a tunnel to {target} (HTTP {status})",
            f"ask IT to allow CONNECT to {target} on the proxy: `envoy doctor --network` prints the request",
        )
    return failed(
        "proxy",
        f"{proxy} could not reach {target} (HTTP {status})",
        f"the proxy cannot resolve the name, its own firewall stops it, or no director listens: ask IT to try {target}"
        " from the proxy, and the operator whether the director runs",
    )


def _tls(journey: Journey, pinned: x509.Certificate, now: float) -> Iterator[Finding]:
    host, stop, seen = journey.address.host, journey.stop, journey.tls
    exempt = f"ask IT to exempt {host} from TLS inspection (SSL decryption): mutual TLS cannot pass it"
    if stop is not None:
        if stop.trouble is Trouble.NOT_TLS:
            yield failed(
                "tls",
                f"what answers at {journey.address} does not speak TLS",
                "that is no director, but a web server or another service; check host and port with the operator",
            )
        else:
            word = "is cut" if stop.trouble is Trouble.HUNG_UP else "falls silent"
            yield failed(
                "tls",
                f"the connection to {journey.address} {word} when TLS begins",
                f"most often a firewall that looks into connections: {exempt}, and to let TLS 1.3 through",
            )
        return
    if seen is None:
        return
    match seen.trust:
        case Trust.OTHER_AUTHORITY:
            yield _other_authority(journey, seen, pinned, exempt)
            return
        case Trust.OTHER_NAME:
            named = ", ".join(_names(seen.certificate)) or "no host"
            yield failed(
                "tls",
                f"the director's certificate is not for {host}: it names {named}",
                "dial one of those names (addresses in envoy.toml), or ask the operator to add this one to the"
                " director's addresses and to renew its certificate",
            )
            return
        case Trust.OUT_OF_TIME:
            yield _out_of_time(seen.certificate, now)
            return
        case Trust.TRUSTED:
            pass
    if seen.version != "TLSv1.3":
        yield failed("tls", f"{seen.version} was agreed upon; a director speaks TLS 1.3 alone", exempt)
    elif seen.protocol != "h2":
        yield failed("tls", "HTTP/2 was not agreed upon (ALPN): something in between takes it out", exempt)
    else:
        yield passed("tls", f"{seen.version}, HTTP/2, and the certificate is of this federation")


def _other_authority(journey: Journey, seen: TlsSeen, pinned: x509.Certificate, exempt: str) -> Finding:
    """Somebody else's certificate: an inspecting proxy, another server, or the same federation set up anew."""
    issuer, host = _common_name(seen.certificate.issuer), journey.address.host
    federation = _common_name(pinned.subject).removesuffix(" root")
    if issuer in {f"{federation} issuer", f"{federation} root"}:
        return failed(
            "tls",
            f"{host} shows a certificate of a federation called {federation!r}, but of another root than this site's",
            "compare the root's fingerprint with the operator by phone. If the federation was set up anew, this site"
            " needs a new join file; if not, somebody stands in between",
        )
    return failed(
        "tls",
        f"{host} shows a certificate issued by {issuer!r}, not by this federation: most often a proxy or firewall that"
        " opens TLS to inspect it",
        f"{exempt}. If IT inspects nothing there, {journey.address} is another server: check the address",
    )


def _out_of_time(certificate: x509.Certificate, now: float) -> Finding:
    begin, end = certificate.not_valid_before_utc.timestamp(), expires_at(certificate)
    if now < begin:
        return failed(
            "tls",
            f"the director's certificate is good from {when(begin)} on, and it is {when(now)} here: this clock is"
            f" at least {in_time(begin - now)} behind",
            "set this machine's clock; `timedatectl` shows whether it takes its time from a time server (NTP)",
        )
    if now > end:
        return failed(
            "tls",
            f"the director's certificate ended on {when(end)}, and this machine's clock says {when(now)}:"
            f" {in_time(now - end)} later",
            "is this machine's clock right? If so, the operator restarts the director, which renews its certificate"
            " (`director doctor` says more)",
        )
    return failed(
        "tls",
        f"a certificate above the director's is out of time; this machine's clock says {when(now)}",
        "is this machine's clock right? If so, the operator renews the federation's issuer",
    )


def direct_too(journey: Journey) -> Finding:
    """Of a site behind a proxy: can the director be reached without it? Either is well."""
    if journey.has_port:
        return passed("port", f"{journey.address} also answers directly; [proxy] could be left out, if IT agrees")
    return passed("port", f"{journey.address} is not reachable directly, only through the proxy")


def without_proxy(variable: str, host: str) -> Finding:
    """The environment names a proxy in a way that gRPC does not read."""
    return warned(
        "proxy",
        f"{variable} is set in the environment, but only https_proxy in lower case is read",
        f"name the proxy in [proxy] of envoy.toml if {host} is to be reached through it",
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _common_name(name: x509.Name) -> str:
    """Its common name in printable text, at most 80 characters; it is a stranger's."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    text = str(found[0].value) if found else name.rfc4514_string()
    return "".join(one if one.isprintable() else "?" for one in text)[:80]
