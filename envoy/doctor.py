"""``envoy doctor``: everything that a site needs, looked at from this machine, each with the fix in plain words.

Reads also what ``envoy start`` would refuse (an expired certificate, a clock that is off), since that is what it is
asked about. It changes nothing; of the network it uses handshakes, and the call ``Hello``. The judging is
``utils/diagnosis.py``'s and ``utils/journey.py``'s.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from ..utils.addresses import Address
from ..utils.bare_hello import bare_hello
from ..utils.diagnosis import (
    Finding,
    failed,
    judge_certificate,
    judge_clock,
    judge_space,
    passed,
    warned,
)
from ..utils.errors import ConfigError, DatasetError, FederationError, IdentityError, JoinFileError, StorageError
from ..utils.identity import expires_at, read_certificate, read_chain
from ..utils.join_file import MAX_JOIN_FILE_BYTES, read_join_file
from ..utils.journey import Journey, Trust, direct_too, findings, without_proxy
from ..utils.private_files import MAX_PRIVATE_BYTES
from ..utils.probes import is_open_to_others, largest_file, reach, travel, try_disk
from ..utils.proxies import Proxy, proxy_of_environment
from .accepted_roster import accepted_roster
from .client import DirectorClient
from .config import CONFIG_FILE, EnvoyConfig, load_config
from .datasets import DatasetRegistry
from .enrolment import CREDENTIALS_FILE, JOINING_FILE, load_credentials
from .policy import SumRule
from .records import DatasetFormat, DatasetRecord
from .sandbox.policy import Tier
from .sandbox.probing import probe_tiers

_COPIES = 4  # of a model: it, the update, the payload, what a code lost
_LEAF, _IDENTITY, _RENEWAL = "this site's certificate", "this site's identity", "the certificate to renew by"
_RENEWED = "`envoy start` renews it, and keeps renewing it while it runs; `envoy renew` does so now"
_ANEW = "ask the federation's operator for a new join file (`director invite`), and join with a new folder"


@dataclass(frozen=True, slots=True)
class Papers:
    """What a site shows and believes, before it joined or after; not checked."""

    federation: str
    addresses: tuple[str, ...]  # host:port
    root: bytes  # PEM
    chain: bytes  # PEM
    key: bytes = field(repr=False)  # PEM
    certificates: tuple[tuple[str, bytes], ...]  # names and PEM, of those that end


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a doctor takes from the world, so that a test can put something else there."""

    environ: Mapping[str, str]
    clock: Callable[[], float] = time.time


def examine(folder: Path, join_file: Path | None, around: Surroundings) -> Iterator[Finding]:
    """Every check, in the order in which they would be repaired.

    Args:
        folder: the envoy's; before joining it may not be there.
        join_file: before joining: the invitation.
        around: environment and clock.
    """
    config, found = _settings(folder)
    yield found
    papers, found = (
        _papers_of_join(join_file, around.clock()) if join_file else _papers_of_member(folder, around.clock())
    )
    yield found
    if join_file is None:
        yield _protection(config)
        yield from _permissions(folder)
    if config is not None:
        yield _sandbox(folder, config)
    if papers is not None:
        yield from _certificates(papers, around.clock(), is_member=join_file is None)
        yield from _network(folder, config, papers, around)
    yield _disk(folder)
    if join_file is None:
        yield from _datasets(folder)
        yield _roster(folder, config, around.clock())


def directors_of(folder: Path, join_file: Path | None) -> tuple[str, tuple[Address, ...]]:
    """The federation, and where its director is called.

    Raises:
        FederationError: neither joined nor invited, or the settings cannot be read.
    """
    papers, found = _papers_of_join(join_file, time.time()) if join_file else _papers_of_member(folder, time.time())
    if papers is None:
        raise IdentityError(f"{found.what}; {found.fix}")
    return papers.federation, tuple(map(Address.parse, load_config(folder).dialled(papers.addresses)))


def proxy_to(folder: Path, address: Address, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy that the envoy takes to an address.

    Raises:
        ConfigError: it is named, but not right; or its password cannot be read.
    """
    way = load_config(folder).way_to(str(address), folder)
    if way is not None:
        return way if isinstance(way, Proxy) else None
    named = proxy_of_environment(address, environ)
    return named[1] if named is not None else None


def source_of(address: Address) -> str:
    """This machine, as the one who is called sees it before any translation: its name and its own address."""
    ip = "address unknown"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:  # sends nothing
            line.connect((address.host, address.port or 443))
            ip = str(line.getsockname()[0])
    except OSError:
        pass
    return f"{socket.gethostname()} ({ip})"


# ------------------------------------------------------------ what lies in the folder


def _settings(folder: Path) -> tuple[EnvoyConfig | None, Finding]:
    path = folder / CONFIG_FILE
    try:
        config = load_config(folder)
    except ConfigError as error:
        return None, failed("settings", str(error), f"correct {path}; the keys are in envoy/README.md")
    return config, passed("settings", f"{path} is right" if path.exists() else f"{path} is not there: all defaults")


def _papers_of_join(path: Path, now: float) -> tuple[Papers | None, Finding]:
    try:
        join = read_join_file(path, now)
        found = passed("papers", f"{path}: {join.name} is invited to {join.federation}")
    except JoinFileError as error:
        found = failed(
            "papers", str(error), "is this machine's clock right? If so, ask the operator for a new join file"
        )
    try:
        fields = _texts(path, MAX_JOIN_FILE_BYTES)
        papers = Papers(
            fields["federation"],
            tuple(map(str, fields["addresses"])),
            fields["root"].encode(),
            (fields["bootstrap"] + fields["issuer"]).encode(),
            fields["bootstrap_key"].encode(),
            (("the invitation", fields["bootstrap"].encode()),),
        )
        read_certificate(papers.root, "the root")
    except (KeyError, TypeError, AttributeError, FederationError):
        return None, found
    return papers, found


def _papers_of_member(folder: Path, now: float) -> tuple[Papers | None, Finding]:
    path = folder / CREDENTIALS_FILE
    if not path.exists():
        begun = " (a join was begun and not answered)" if (folder / JOINING_FILE).exists() else ""
        return None, failed(
            "papers",
            f"{folder} has not joined a federation yet{begun}",
            "`envoy doctor --join FILE` checks this machine before that, `envoy join FILE` joins; or name the --folder",
        )
    try:
        fields = _texts(path, MAX_PRIVATE_BYTES)
        leaf, renewal = fields["chain"].encode(), fields.get("renewal_chain", "").encode()
        others = ((_IDENTITY, fields["identity_certificate"].encode()), (_RENEWAL, renewal))
        # Once the leaf is over, the director is asked with what renews it.
        is_over = bool(renewal) and now > expires_at(read_chain(leaf, _LEAF)[0])
        papers = Papers(
            fields["peer"].split("/")[2],
            tuple(fields["addresses"].split()),
            fields["root"].encode(),
            renewal if is_over else leaf,
            fields["renewal_key" if is_over else "leaf_key"].encode(),
            ((_LEAF, leaf), *((name, pem) for name, pem in others if pem)),
        )
        read_certificate(papers.root, "the root")
    except (KeyError, IndexError, TypeError, AttributeError, FederationError) as error:
        reason = str(error) if isinstance(error, FederationError) else "something is missing"
        return None, failed("papers", f"{path} is damaged: {reason}", f"restore it from a backup, or {_ANEW}")
    return papers, passed("papers", f"{fields['peer']} of {papers.federation}")


def _texts(path: Path, limit: int) -> dict[str, str]:
    """A JSON object, read whoever else may read it.

    Raises:
        IdentityError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(limit))
    except OSError as error:
        raise IdentityError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise IdentityError("it is no JSON") from error
    if not isinstance(document, dict):
        raise IdentityError("it is no JSON object")
    return document


def _protection(config: EnvoyConfig | None) -> Finding:
    if config is None:
        return failed("protection", "the settings cannot be read, so nothing leaves", f"correct {CONFIG_FILE} first")
    if config.protection is None:
        return failed(
            "protection",
            "envoy.toml has no [protection] table: every task is declined",
            'add one, for instance chain = ["check", "encode", "clip", "noise"]: see "Protection" in envoy/README.md',
        )
    steps = [step.value for step in config.protection.chain]
    if "noise" not in steps:
        return warned(
            "protection",
            f"[protection] is {', '.join(steps)}: no step of it bounds what an update says of a patient",
            'consider "clip" and "noise": see "Protection" in envoy/README.md',
        )
    return passed("protection", f"[protection] is {', '.join(steps)}")


def _permissions(folder: Path) -> Iterator[Finding]:
    paths = [folder / CREDENTIALS_FILE, folder / JOINING_FILE, *sorted(folder.glob("*.sqlite"))]
    open_ones = [path for path in paths if is_open_to_others(path)]
    for path in open_ones:
        yield failed("permissions", f"others than its owner may read or write {path}", f"chmod 600 {path}")
    if not open_ones:
        yield passed("permissions", "keys and records are readable by their owner alone")


def _sandbox(folder: Path, config: EnvoyConfig) -> Finding:
    """Which box plans run in here; each tier is tried."""
    minimum = config.sandbox.minimum
    tried = probe_tiers(config.sandbox, folder if folder.is_dir() else None)
    best = next(one for one in tried if one.works)
    lacking = [one for one in tried if not one.works]
    what = "; ".join(f"{one.tier.value} does not: {one.reason}" for one in lacking)
    fix = "; or ".join(one.fix for one in lacking if one.fix)
    if not best.tier.meets(minimum):
        return failed("sandbox", f"no box of {minimum.value} or better works here, so no plan runs: {what}", fix)
    if best.tier is Tier.NONE:
        return warned("sandbox", f"plans run in no box, as envoy.toml allows: {what}", fix)
    if lacking:
        return warned("sandbox", f"plans run in {best.tier.value}; {what}", f"{fix}, for the stronger box")
    return passed("sandbox", f"plans run in {best.tier.value}")


def _certificates(papers: Papers, now: float, *, is_member: bool) -> Iterator[Finding]:
    """A leaf that is over is no failure as long as identity and renewal certificate are good: the start renews it."""
    held: dict[str, x509.Certificate] = {}
    for name, pem in papers.certificates:
        try:
            held[name] = read_chain(pem, name)[0]
        except IdentityError as error:
            yield failed("certificates", str(error), f"restore {CREDENTIALS_FILE} from a backup, or {_ANEW}")
    good = {name for name, certificate in held.items() if now <= expires_at(certificate)}
    can_renew = good >= {_IDENTITY, _RENEWAL}
    for name, certificate in held.items():
        found = judge_certificate(certificate, name, now, _RENEWED if can_renew or name in good else _ANEW)
        is_renewed = is_member and can_renew and name not in good
        yield warned(found.check, found.what, found.fix) if is_renewed else found


def _disk(folder: Path) -> Finding:
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    seen = try_disk(there)
    if seen.trouble:
        return failed(
            "disk",
            f"nothing can be written to {there}: {seen.trouble}",
            "make room, or let the user that runs the envoy write there",
        )
    models = max(largest_file(folder / "work"), largest_file(folder / "plans")) if folder.is_dir() else 0
    return judge_space(seen.free_bytes, models, _COPIES, str(there))


def _datasets(folder: Path) -> Iterator[Finding]:
    registry = DatasetRegistry(folder / "datasets")
    try:
        records = registry.list()
    except (DatasetError, StorageError) as error:
        yield failed("datasets", str(error), "`envoy data add` it again")
        return
    if not records:
        yield warned("datasets", "none was added yet", "`envoy data add NAME PATH`")
    for record in records:
        try:
            yield _dataset(registry, record)
        except (DatasetError, StorageError) as error:
            yield failed("datasets", str(error), f"`envoy data add {record.name} PATH --replace`")


def _dataset(registry: DatasetRegistry, record: DatasetRecord) -> Finding:
    """A cheap look: are the files there, and as old and as long as they were? Contents are not read."""
    path = Path(record.path)
    check = f"`envoy data check {record.name}` compares contents; `envoy data add ... --replace` records them anew"
    if not path.exists():
        fix = f"is the disk or share mounted, and may this user enter it? {check}"
        return failed("datasets", f"{record.name}: {path} is not there", fix)
    try:
        if record.format is DatasetFormat.IMAGE_FOLDER:
            amiss = sum(_size(path / one.id) != one.size for one in registry.index(record.name).examples)
            if amiss:
                whole = record.num_train + record.num_validation + record.num_test
                what = f"{record.name}: {amiss} of {whole} files are missing or of another length than recorded"
                return failed("datasets", what, check)
        else:
            with path.open("rb") as file:
                file.read(1)
            if path.stat().st_mtime > record.added_at:
                return warned("datasets", f"{record.name}: {path} was written after it was recorded", check)
    except OSError as error:
        fix = "let the user that runs the envoy read it"
        return failed("datasets", f"{record.name}: {path} cannot be read: {error.strerror}", fix)
    return passed("datasets", f"{record.name} is there, with the lengths and dates that were recorded")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _roster(folder: Path, config: EnvoyConfig | None, now: float) -> Finding:
    try:
        accepted = accepted_roster(folder, load_credentials(folder, now).public_identity)
    except IdentityError as error:
        return failed("roster", str(error), "`envoy roster fetch`, then `envoy roster accept DIGEST`")
    if accepted is not None:
        return passed("roster", f"{len(accepted.entries)} envoys accepted")
    is_required = config is None or config.secure_aggregation.rule is SumRule.REQUIRED
    say = failed if is_required else warned
    return say(
        "roster",
        "this site has accepted no roster, so it sums with nobody"
        + (" and declines every task" if is_required else ""),
        "`envoy roster fetch`, compare the fingerprints by phone, then `envoy roster accept DIGEST`",
    )


# ------------------------------------------------------------ the network


def _network(folder: Path, config: EnvoyConfig | None, papers: Papers, around: Surroundings) -> Iterator[Finding]:
    """The first address is the one that the envoy dials; a line each for the others."""
    pinned = read_certificate(papers.root, "the root")
    try:
        first, *others = map(Address.parse, (config or EnvoyConfig()).dialled(papers.addresses))
    except (ConfigError, ValueError) as error:
        yield failed("dns", f"the director's addresses cannot be read: {error}", f"restore {CREDENTIALS_FILE}")
        return
    try:
        proxy = proxy_to(folder, first, around.environ) if config is not None else None
    except ConfigError as error:
        yield failed("proxy", str(error), "correct [proxy] in envoy.toml, or the variable in the environment")
        return
    yield from _around_the_proxy(config, first, proxy, around.environ)
    journey = travel(first, proxy, papers.root)
    yield from findings(journey, pinned, around.clock())
    if proxy is not None:
        yield direct_too(reach(first))
    if journey.tls is not None and journey.tls.trust is Trust.OUT_OF_TIME:
        yield from _whose_clock(papers, first, proxy, around.clock)
    elif journey.stop is None:
        yield from _director(folder, config, papers, first, around.clock)
    for other in others:
        yield _other(travel(other, proxy, papers.root), pinned, around.clock())


def _around_the_proxy(
    config: EnvoyConfig | None, address: Address, proxy: Proxy | None, environ: Mapping[str, str]
) -> Iterator[Finding]:
    """What is set, and not done."""
    settings = config.proxy if config is not None else None
    if settings is not None and isinstance(proxy, Proxy):
        exempted = next((name for name in ("no_grpc_proxy", "no_proxy") if environ.get(name)), None)
        as_if = {"https_proxy": str(proxy), "no_proxy": environ.get(exempted, "") if exempted else ""}
        if exempted and proxy_of_environment(address, as_if) is None:
            yield failed(
                "proxy",
                f"{exempted} in the environment names {address.host}: the proxy of envoy.toml is gone around",
                f"take {address.host} out of {exempted} where the envoy is started, or [proxy] out of envoy.toml",
            )
    if proxy is None and settings is None:
        shouted = next((name for name in ("HTTPS_PROXY", "HTTP_PROXY") if environ.get(name)), None)
        if shouted is not None and not environ.get(shouted.lower()):
            yield without_proxy(shouted, address.host)


def _director(
    folder: Path, config: EnvoyConfig | None, papers: Papers, address: Address, clock: Callable[[], float]
) -> Iterator[Finding]:
    """Who answers, and what its clock says."""
    way = (config or EnvoyConfig()).way_to(str(address), folder)
    client = DirectorClient(str(address), papers.chain, papers.key, papers.root, way)
    before, asked = clock(), time.monotonic()
    try:
        said = client.hello()
    except FederationError as error:
        yield failed(
            "director",
            f"it does not let this site in: {error}",
            "is this site's certificate over, or was it revoked? See the lines above, and ask the operator",
        )
        return
    finally:
        client.close()
    half = (time.monotonic() - asked) / 2
    if said.federation != papers.federation:
        yield failed("director", f"it is that of {said.federation}, expected {papers.federation}", _ANEW)
        return
    yield passed("director", f"{said.federation} answers, {said.software}")
    yield judge_clock(before + half - said.now, "the director's")


def _whose_clock(
    papers: Papers, address: Address, proxy: Proxy | None, clock: Callable[[], float]
) -> Iterator[Finding]:
    """The director's certificate is not good by this clock: is the clock wrong, or is the certificate?"""
    said = bare_hello(address, proxy, papers.root, papers.chain, papers.key)
    if said is not None:
        yield judge_clock(clock() - said.now, "the director's")


def _other(journey: Journey, pinned: x509.Certificate, now: float) -> Finding:
    """One line for an address that is not dialled."""
    wrong = [one for one in findings(journey, pinned, now) if one.fix]
    if not wrong:
        return passed("port", f"{journey.address} answers too")
    return warned(wrong[0].check, f"another address: {wrong[0].what}", wrong[0].fix)
