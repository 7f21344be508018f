"""Over real sockets: certificates are renewed while calls go on, and after weeks in which the machine was off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedveil.director import own_leaves, server_certificate
from fedveil.director.config import load_config
from fedveil.director.database import open_database
from fedveil.director.founding import init_federation, load_issuer
from fedveil.director.identity_store import IdentityStore
from fedveil.director.registrar import Registrar
from fedveil.director.revocations import Revocations
from fedveil.director.server import Director
from fedveil.envoy.client import DirectorClient
from fedveil.envoy.config import EnvoyConfig
from fedveil.envoy.enrolment import Credentials, load_credentials, prepare_join, save_credentials
from fedveil.envoy.renewal import prepare_renewal
from fedveil.envoy.renewing import connect, over_the_network, renew, usable_credentials
from fedveil.envoy.renewing_link import RenewingLink
from fedveil.utils import messages as m
from fedveil.utils.certificates import certificate_pem, make_root
from fedveil.utils.errors import (
    FederationError,
    IdentityError,
    NotAuthorizedError,
    UnreachableError,
)
from fedveil.utils.identity import PeerId, Role, peer_of, read_certificate
from fedveil.utils.tensors import digest_of

DAY = 86_400.0
ELEMENTS = 10_000


def joined(director_folder: Path, address: str, folder: Path, now: float, name: str = "site-a") -> Credentials:
    """A member that joined at some time, also long ago."""
    issuer, root = load_issuer(director_folder, time.time())
    engine = open_database(f"sqlite:///{director_folder / 'director.sqlite'}", durable=False)
    try:
        registrar = Registrar("lungs", issuer, root, IdentityStore(engine), Revocations(engine))
        join = registrar.invite(name, f"Clinic {name}", Role.ENVOY, [address], 3600.0, now)
        request, keys = prepare_join(folder, join)
        bootstrap = peer_of(read_certificate(join.bootstrap, "bootstrap"))
        return save_credentials(folder, join, keys, registrar.join(bootstrap, request, now), now)
    finally:
        engine.dispose()


def revoke(director_folder: Path, name: str) -> None:
    engine = open_database(f"sqlite:///{director_folder / 'director.sqlite'}", durable=False)
    Revocations(engine).revoke(name, "left", time.time())
    engine.dispose()


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """A director, and its address."""
    director = Director(folder, load_config(folder))
    try:
        yield f"127.0.0.1:{director.port}"
    finally:
        director.close()


@pytest.fixture
def old(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A federation that was made 310 days ago: its own certificate expired, too."""
    folder = tmp_path / "director"
    init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time() - 310 * DAY, listen="127.0.0.1:0")
    with running(folder) as address:
        yield folder, address


def client_of(held: Credentials, *, renewing: bool = False) -> DirectorClient:
    shown = (held.renewal_chain, held.renewal_key) if renewing else (held.chain, held.leaf_key)
    return DirectorClient(held.addresses[0], *shown, held.root)


def asked(held: Credentials, call: Callable[[DirectorClient], object], *, renewing: bool = False) -> object:
    client = client_of(held, renewing=renewing)
    try:
        return call(client)
    finally:
        client.close()


# after a while


@pytest.mark.parametrize("days", [14, 100, 300])
def test_a_site_that_was_off_comes_back_by_itself(days: int, old: tuple[Path, str], tmp_path: Path):
    folder, address = old
    held = joined(folder, address, tmp_path / "site", time.time() - days * DAY)
    with pytest.raises(UnreachableError):
        asked(held, lambda client: client.hello(5.0))  # its leaf opens nothing any more
    credentials, link, renewer = connect(tmp_path / "site", EnvoyConfig(), time.time())  # as `envoy start` does
    assert credentials.expires_at > time.time()
    assert credentials.identity_key == held.identity_key
    link.beat(m.Heartbeat())
    renewer.look()  # nothing is due
    assert load_credentials(tmp_path / "site", time.time()) == credentials
    link.close()


def test_the_commands_renew_a_site_that_was_off(old: tuple[Path, str], tmp_path: Path):
    folder, address = old
    joined(folder, address, tmp_path / "site", time.time() - 14 * DAY)

    def envoy(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedveil.envoy", *arguments, "--folder", str(tmp_path / "site")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert "expired on" in envoy("identity", "show").stdout
    done = envoy("renew")
    assert done.returncode == 0, done.stderr
    assert "spiffe://lungs/envoy/site-a is certified until" in done.stdout
    assert "renewed from" in envoy("identity", "show").stdout
    revoke(folder, "site-a")
    refused = envoy("renew")
    assert refused.returncode == 1
    assert "NotAuthorizedError" in refused.stderr


def test_without_a_director_an_expired_site_waits_for_one(tmp_path: Path):
    folder = tmp_path / "director"
    init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time() - 20 * DAY, listen="127.0.0.1:0")
    with running(folder) as address:
        held = joined(folder, address, tmp_path / "site", time.time() - 14 * DAY)
    credentials, link, renewer = connect(tmp_path / "site", EnvoyConfig(), time.time())
    assert credentials == held
    with pytest.raises(UnreachableError):
        renewer.look()
    (folder / "director.toml").write_text(
        (folder / "director.toml").read_text().replace('"127.0.0.1:0"', f'"{address}"'), "utf-8"
    )
    with running(folder):
        renewer.look()
        link.beat(m.Heartbeat())
        link.close()


# who may, and what else


def test_a_certificate_to_renew_by_is_good_for_renew_and_hello_alone(federation, tmp_path: Path):
    held = joined(federation.folder, federation.address, tmp_path / "site", time.time())
    calls: list[Callable[[DirectorClient], object]] = [
        lambda client: client.beat(m.Heartbeat()),
        lambda client: next(client.work(())),
        lambda client: client.roster(),
        lambda client: client.next_work((), 0.0),
        lambda client: next(client.download(m.DownloadRequest("ab" * 32))),
    ]
    for call in calls:
        with pytest.raises(NotAuthorizedError, match="renew/site-a may not do this"):
            asked(held, call, renewing=True)
    assert asked(held, lambda client: client.hello(), renewing=True).federation == "lungs"
    request, _ = prepare_renewal(held, time.time())
    assert asked(held, lambda client: client.renew(request), renewing=True).name == "site-a"


def test_a_member_without_a_certificate_to_renew_by_gets_one(federation, tmp_path: Path):
    held = joined(federation.folder, federation.address, tmp_path / "site", time.time())
    old = replace(held, renewal_chain=b"", renewal_key=b"")
    new = renew(tmp_path / "site", old, over_the_network(old, EnvoyConfig(), tmp_path), time.time())
    assert new.renewal_certificate is not None
    assert peer_of(new.renewal_certificate) == PeerId("lungs", Role.RENEW, "site-a")


def test_another_s_request_and_a_late_one_are_refused(federation, tmp_path: Path):
    now = time.time()
    held = joined(federation.folder, federation.address, tmp_path / "a", now)
    other = joined(federation.folder, federation.address, tmp_path / "b", now, "site-b")
    request, _ = prepare_renewal(other, now)
    with pytest.raises(IdentityError, match="did not sign"):
        asked(held, lambda client: client.renew(request))
    for late, said in ((DAY, "1440 min behind"), (3600.0, "60 min behind"), (-3600.0, "60 min ahead")):
        request, _ = prepare_renewal(held, now - late)
        with pytest.raises(IdentityError, match=said):
            asked(held, lambda client, request=request: client.renew(request))
    request, _ = prepare_renewal(held, now)
    for _ in range(2):  # replayed: certificates for the same keys
        asked(held, lambda client: client.renew(request))
    asked(held, lambda client: client.beat(m.Heartbeat()))  # what was replaced is good until it ends


def test_a_director_of_another_authority_hears_no_request(federation, tmp_path: Path):
    held = joined(federation.folder, federation.address, tmp_path / "site", time.time())
    betrayed = replace(held, root=certificate_pem(make_root("lungs", time.time()).certificate))
    with pytest.raises(UnreachableError, match=r"(?i)handshake|certificate"):
        renew(tmp_path / "site", betrayed, over_the_network(betrayed, EnvoyConfig(), tmp_path), time.time())
    assert load_credentials(tmp_path / "site", time.time()) == held


def test_a_leaf_of_another_federation_renews_nothing(federation, tmp_path: Path):
    held = joined(federation.folder, federation.address, tmp_path / "site", time.time())
    tls = federation.certificate(federation="hearts")
    request, _ = prepare_renewal(held, time.time())
    client = DirectorClient(federation.address, tls.chain, tls.key, tls.root)
    with pytest.raises(IdentityError, match="belongs to another federation"):
        client.renew(request)
    client.close()


@pytest.mark.parametrize("renewing", [False, True])
def test_a_revoked_site_is_not_renewed(renewing: bool, federation, tmp_path: Path):
    held = joined(federation.folder, federation.address, tmp_path / "site", time.time())
    revoke(federation.folder, "site-a")
    request, _ = prepare_renewal(held, time.time())
    for call in (lambda client: client.renew(request), lambda client: client.hello()):
        with pytest.raises(NotAuthorizedError, match="was revoked"):
            asked(held, call, renewing=renewing)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from fedveil.envoy import enrolment, renewing
from fedveil.envoy.config import EnvoyConfig

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

enrolment.write_private_file = killed
folder = Path(sys.argv[1])
held = enrolment.load_credentials(folder, time.time())
renewing.renew(folder, held, renewing.over_the_network(held, EnvoyConfig(), folder), time.time())
"""


def test_an_envoy_that_is_killed_between_answer_and_file_goes_on(federation, tmp_path: Path):
    held = joined(federation.folder, federation.address, tmp_path / "site", time.time())
    command = [sys.executable, "-c", KILLED, str(tmp_path / "site")]
    assert subprocess.run(command, timeout=60, check=False, env=os.environ).returncode == -signal.SIGKILL
    assert usable_credentials(tmp_path / "site", EnvoyConfig(), time.time()) == held
    assert '"what":"renewed"' in (federation.folder / "audit.jsonl").read_text()
    new = renew(tmp_path / "site", held, over_the_network(held, EnvoyConfig(), tmp_path), time.time())
    asked(new, lambda client: client.beat(m.Heartbeat()))


# under load


class Load:
    """Calls that an envoy makes, all the time and each of a sort in a thread of its own; and whatever failed."""

    def __init__(self, link: RenewingLink, artifact: str) -> None:
        self._link, self._artifact = link, artifact
        self._approved: tuple[str, ...] = ()
        self._ends = threading.Event()
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []
        works = (self._attend, self._beat, self._beat, self._fetch)
        self._threads = [threading.Thread(target=self._guard, args=(one,), daemon=True) for one in works]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ends.set()
        self._link.close()
        for thread in self._threads:
            thread.join(60.0)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except FederationError as error:
            if not self._ends.is_set():
                self.failed.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def _attend(self) -> None:
        """Hold the line, and answer each task with an update."""
        while not self._ends.is_set():
            for item in self._link.work((), self._approved):
                if isinstance(item, m.Offer):
                    self._approved = (*self._approved, digest_of(item.proposal.content))
                if not isinstance(item, m.Task):
                    continue
                raw = np.ones(ELEMENTS, np.float32).tobytes()
                header = m.UpdateHeader(item.ref, item.layout, len(raw), 1)
                given = self._link.request_upload(header)
                if isinstance(given, m.Turn):
                    self._link.upload(parts(given, raw))
                self.done["updates"] += 1
            self.done["lines"] += 1

    def _beat(self) -> None:
        while not self._ends.is_set():
            self._link.beat(m.Heartbeat(approved=self._approved))
            self.done["beats"] += 1

    def _fetch(self) -> None:
        while not self._ends.is_set():
            got = sum(len(part.content) for part in self._link.download(m.DownloadRequest(self._artifact)) if _is(part))
            assert got > 0
            self.done["downloads"] += 1


def _is(part: m.Part) -> bool:
    return isinstance(part, m.Data)


def parts(turn: m.Turn, raw: bytes) -> Iterator[m.Part]:
    yield m.Opening(len(raw), turn.offset, turn.grant)
    for start in range(turn.offset, len(raw), 8_000):
        yield m.Data(raw[start : start + 8_000])
    yield m.Closing(digest_of(raw))


@pytest.fixture
def issued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that a director writes which renews its own certificate at each handshake; ask for this one first."""
    written: list[str] = []
    whole = own_leaves.write_private_file

    def write(path: Path, content: bytes) -> None:
        whole(path, content)
        written.append(path.name)

    monkeypatch.setattr(own_leaves, "write_private_file", write)
    monkeypatch.setattr(own_leaves, "_is_due", lambda *_: True)
    monkeypatch.setattr(server_certificate, "next_look", lambda _: 0.0)
    monkeypatch.setattr(server_certificate, "_RETRY_SECONDS", 0.0)
    return written


@pytest.mark.slow
def test_a_hundred_rotations_under_load_fail_no_call(issued: list[str], federation, tmp_path: Path):
    """The site's certificate 100 times, the director's at each handshake, while calls of every sort go on."""
    held = joined(federation.folder, federation.address, tmp_path / "site", time.time())
    run = federation.submit(rounds=100_000)
    ask = over_the_network(held, EnvoyConfig(), tmp_path)
    link = RenewingLink(client_of, held)
    load = Load(link, federation.bundle.manifest.files[0].sha256)
    load.start()
    federation.until(lambda: load.done["updates"] > 0)
    before = len(issued)
    seen = {held.chain}
    for _ in range(100):
        held = renew(tmp_path / "site", held, ask, time.time())
        link.adopt(held)
        seen.add(held.chain)
    rounds = load.done["updates"]
    federation.until(lambda: load.done["updates"] > rounds)  # it works over the last certificate, too
    done = dict(load.done)
    with federation.operator() as operator:
        (*closed, _) = operator.show(run).rounds
    assert {one.state for one in closed} == {"closed"}  # and no attempt was lost on the way
    revoke(federation.folder, "site-a")
    with pytest.raises(NotAuthorizedError):
        link.beat(m.Heartbeat())
    failed = [one for one in load.failed if "was revoked" not in one]
    load.end()
    assert failed == []
    assert len(seen) == 101
    assert issued[before:].count("director.pem") >= 100
    assert done["lines"] >= 90
    assert min(done[sort] for sort in ("updates", "beats", "downloads")) >= 100
    assert len(link._calls) == 1  # the old channels are closed
