"""``director doctor``: all that a director needs, looked at from its own machine, each with the fix in plain words.

Works beside a running director and without one. It changes nothing: no table is brought up to date, no certificate is
renewed. What sites meet on their way here only ``envoy doctor`` at a site can see. The judging is
``utils/diagnosis.py``'s and ``utils/journey.py``'s.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509

from ..utils.addresses import Address
from ..utils.audit_chain import read_entries
from ..utils.diagnosis import (
    SKEW_TO_NAME_SECONDS,
    Finding,
    failed,
    in_time,
    judge_certificate,
    judge_space,
    passed,
    warned,
)
from ..utils.errors import FederationError, IdentityError
from ..utils.identity import Role, check_issued, expires_at, read_certificate, read_chain
from ..utils.journey import Journey, Step, Trust, findings
from ..utils.probes import is_open_to_others, largest_file, travel, try_disk
from .audit import LOG_FILE, verify_log
from .config import CONFIG_FILE, DirectorConfig, load_config
from .database import HEAD, open_database, try_database
from .founding import ISSUER_FILE, ROOT_FILE, ROOT_KEY_FILE, load_tls
from .identity_store import IdentityStore
from .issuer import issuer_warning
from .operator_client import OperatorClient, announced_address

_LEAVES = ("director.pem", "operator.pem", "operator.identity.pem")
_AT_NEED = "is this machine's clock right? If so: the next start, or the next command, issues it anew from the issuer"
_TIME_ERROR = 5  # of adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 256  # struct timex has 208


def examine(folder: Path, clock: Callable[[], float]) -> Iterator[Finding]:
    """Every check, in the order in which they would be repaired.

    Args:
        folder: the director's.
        clock: seconds since 1970.
    """
    try:
        config = load_config(folder)
    except FederationError as error:
        yield failed("settings", str(error), f"correct {folder / CONFIG_FILE}; the keys are in director/README.md")
        return
    yield passed("settings", f"{folder / CONFIG_FILE} is right: federation {config.federation}")
    yield from _permissions(folder)
    yield from _certificates(folder, clock())
    try:
        root = read_certificate((folder / ROOT_FILE).read_bytes(), ROOT_FILE)
        leaf = read_chain((folder / "director.pem").read_bytes(), "director.pem")[0]
    except (OSError, IdentityError):
        root, leaf = None, None  # said above
    if root is not None and leaf is not None:
        yield from _addresses(config, leaf)
        yield from _port(folder, config, root, clock)
    yield from _clock(folder, clock())
    found, sites = _database(folder, config)
    yield found
    yield _disk(folder, config, sites)
    yield _audit(folder)


# ------------------------------------------------------------ the folder


def _permissions(folder: Path) -> Iterator[Finding]:
    keys = [*sorted(folder.glob("*.key.pem")), *sorted((folder / "ca").glob("*.key.pem")), folder / CONFIG_FILE]
    open_ones = [path for path in keys if is_open_to_others(path)]
    for path in open_ones:
        yield failed("permissions", f"others than its owner may read or write {path}", f"chmod 600 {path}")
    if is_open_to_others(folder):
        yield warned("permissions", f"others than its owner may enter {folder}", f"chmod 700 {folder}")
    elif not open_ones:
        yield passed("permissions", "keys are readable by their owner alone")
    if (folder / ROOT_KEY_FILE).exists():
        yield warned(
            "permissions",
            f"{folder / ROOT_KEY_FILE} still lies on this machine",
            "keep it and its passphrase offline: whoever has both can make sites that this federation believes."
            " The director works without it",
        )


def _certificates(folder: Path, now: float) -> Iterator[Finding]:
    """Root and issuer must be good; the leaves are issued anew by whoever needs them next, while the issuer is good."""
    held: dict[str, x509.Certificate] = {}
    for name in (ROOT_FILE, ISSUER_FILE, *_LEAVES):
        is_leaf = name in _LEAVES
        try:
            held[name] = read_chain((folder / name).read_bytes(), name)[0]
        except FileNotFoundError:
            if is_leaf:
                yield warned("certificates", f"{folder / name} is not there", _AT_NEED)
            else:
                yield failed("certificates", f"{folder / name} is not there", "restore it from a backup")
        except (OSError, IdentityError) as error:
            yield failed("certificates", f"{folder / name} cannot be read: {error}", "restore it from a backup")
        else:
            found = judge_certificate(held[name], name, now, _AT_NEED if is_leaf else _renewal(name))
            is_over = is_leaf and now > expires_at(held[name])
            yield warned(found.check, found.what, found.fix) if is_over else found
    if ISSUER_FILE in held and now < expires_at(held[ISSUER_FILE]):
        warning = issuer_warning(held[ISSUER_FILE], now)
        if warning is not None:
            yield warned("certificates", warning, _renewal(ISSUER_FILE))
    if ROOT_FILE in held and ISSUER_FILE in held:
        try:
            check_issued(held[ISSUER_FILE], held[ROOT_FILE], "the issuer")
        except IdentityError as error:
            yield failed("certificates", f"{ISSUER_FILE}: {error}", "restore root and issuer from one backup")


def _renewal(name: str) -> str:
    if name == ROOT_FILE:
        return "found the federation anew with `director init` in another folder; every site joins again"
    return "`director ca renew` makes another issuer, with the root's offline key and its passphrase"


def _disk(folder: Path, config: DirectorConfig, sites: int) -> Finding:
    seen = try_disk(folder)
    if seen.trouble:
        return failed(
            "disk",
            f"nothing can be written to {folder}: {seen.trouble}",
            "make room, or let the user that runs the director write there; rounds wait meanwhile",
        )
    copies = (
        sites + config.keep_models + 2
    )  # an update each, the models that are kept, one in the making, its optimizer
    return judge_space(seen.free_bytes, largest_file(folder / "artifacts"), copies, str(folder))


def _database(folder: Path, config: DirectorConfig) -> tuple[Finding, int]:
    """Can it be written? And how many sites are in it; 0 where nobody knows."""
    url = config.database_url(folder)
    try:
        revision = try_database(url)
        if revision is None:
            return passed("database", "there is none yet; the first start makes it"), 0
        if revision != HEAD:
            found = passed("database", f"can be written; the next start brings it from {revision} to {HEAD}")
            return found, 0
        engine = open_database(url, durable=False)
        try:
            members = [one for one in IdentityStore(engine).identities() if one.role == Role.ENVOY.value]
        finally:
            engine.dispose()
    except FederationError as error:
        return failed("database", str(error), "make room on its disk; is it the right [database] url, and is it up?"), 0
    return passed("database", f"can be written; {len(members)} sites joined"), len(members)


def _audit(folder: Path) -> Finding:
    if not (folder / LOG_FILE).exists():
        return passed("audit", "there is no log yet; the first start begins it")
    try:
        found = verify_log(folder)
    except FederationError as error:
        return failed(
            "audit",
            str(error),
            f'keep {LOG_FILE} as it is, for whoever asks; tell the sites. See "Audit log" in director/README.md',
        )
    return passed("audit", f"{found.entries} entries, whole")


# ------------------------------------------------------------ clock


def _clock(folder: Path, now: float) -> Iterator[Finding]:
    """Nobody is asked for the time; but it may not go back, and something should keep it right."""
    fix = "let this machine take its time from a time server (NTP): `timedatectl` shows whether it does"
    try:
        times = (dt.datetime.fromisoformat(entry.time) for entry in read_entries(folder / LOG_FILE))
        last = max((one.timestamp() for one in times), default=0.0)
    except (FederationError, OSError, ValueError):
        last = 0.0  # there is no log, or it is damaged: said elsewhere
    if last > now + SKEW_TO_NAME_SECONDS:
        yield failed("clock", f"this machine's clock is {in_time(last - now)} behind its own audit log", fix)
    elif _is_synchronised() is False:
        yield warned("clock", "nothing keeps this machine's clock right, says its kernel", fix)
    else:
        yield passed("clock", "does not go back; whether sites agree with it is said by `envoy doctor` there")


def _is_synchronised() -> bool | None:
    """What the kernel says; None where it cannot be asked."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    state = int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))  # all zeros: read, change nothing
    return None if state < 0 else state != _TIME_ERROR


# ------------------------------------------------------------ the network


def _addresses(config: DirectorConfig, leaf: x509.Certificate) -> Iterator[Finding]:
    """Do the names that sites dial stand in the certificate, and are they known?"""
    named = _named(leaf)
    for address in map(Address.parse, config.addresses):
        if address.host not in named:
            yield failed(
                "addresses",
                f"{address.host} is announced to sites, and the director's certificate is not for it",
                "delete director.pem and start the director again: it issues itself another, for all that is announced",
            )
            continue
        if address.ip is not None:
            yield passed("addresses", f"{address.host} is in the certificate")
            continue
        try:
            known = sorted({str(one[4][0]) for one in socket.getaddrinfo(address.host, None)})
        except (socket.gaierror, UnicodeError):
            yield warned(
                "addresses",
                f"{address.host} is a name that is not known on this machine",
                "do the sites know it (`envoy doctor --join FILE` there)? If not, correct the DNS entry",
            )
        else:
            yield passed("addresses", f"{address.host} is {', '.join(known)}, and in the certificate")


def _port(
    folder: Path, config: DirectorConfig, root: x509.Certificate, clock: Callable[[], float]
) -> Iterator[Finding]:
    listen = config.listen_address
    if not listen.port:
        try:
            listen = Address(listen.host, Address.parse(announced_address(folder)).port)
        except FederationError:
            yield passed("port", "any port that is free is taken at the start")
            return
    local = Address(_called(listen.host), listen.port)
    journey = travel(local, None, (folder / ROOT_FILE).read_bytes(), timeout_seconds=4.0)
    if journey.stop is not None and journey.stop.step is not Step.TLS:
        yield (
            _free(listen) if config.listen_address.port else passed("port", "no director runs; any free port is taken")
        )
        return
    yield from _answering(folder, config, journey, listen, root, clock)


def _answering(
    folder: Path,
    config: DirectorConfig,
    journey: Journey,
    listen: Address,
    root: x509.Certificate,
    clock: Callable[[], float],
) -> Iterator[Finding]:
    """Somebody listens: is it this director?"""
    seen = journey.tls
    if seen is None or seen.trust is Trust.OTHER_AUTHORITY:
        yield failed(
            "port",
            f"{listen} is taken by another program",
            f"`ss -ltnp | grep :{listen.port}` says by which; end it, or set another port as listen in director.toml,"
            " and tell the sites",
        )
        return
    if seen.trust is Trust.OUT_OF_TIME:
        yield from (one for one in findings(journey, root, clock()) if one.check == Step.TLS.value)
        return
    yield passed("port", f"{listen} answers with a certificate of this federation")
    try:
        # The certificate may be for the announced name alone: then that is called, as operators do.
        called = None if seen.trust is Trust.OTHER_NAME else str(journey.address)
        with OperatorClient(folder, called, clock(), load_tls(folder, Role.OPERATOR, clock())) as client:
            said = client.hello()
    except FederationError as error:
        if seen.trust is Trust.OTHER_NAME:
            yield warned(
                "director",
                f"this machine does not reach the director by the name that it announces: {error}",
                "well if only the sites can (address translation): `envoy doctor --join FILE` there looks",
            )
            return
        yield failed("director", f"it does not answer its operator: {error}", "look at the lines above, and at its log")
        return
    if said.federation != config.federation:
        yield failed("director", f"that of {said.federation} listens here", "choose another port for one of the two")
        return
    yield passed("director", f"{said.federation} answers, {said.software}")


def _free(listen: Address) -> Finding:
    """Nobody listens: could a director?"""
    family = socket.AF_INET6 if listen.ip is not None and listen.ip.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((listen.host, listen.port or 0))
    except PermissionError:
        fix = "take a port from 1024 on, or let this user bind lower ones (setcap cap_net_bind_service)"
        return failed("port", f"this user may not listen on {listen}", fix)
    except OSError as error:
        return failed(
            "port",
            f"nobody could listen on {listen}: {error.strerror or error}",
            "is listen in director.toml an address of this machine? 0.0.0.0 is every one",
        )
    return passed("port", f"{listen} is free; no director runs")


def _called(host: str) -> str:
    """Where a program that listens on this host is called from its own machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on


def _named(leaf: x509.Certificate) -> set[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
