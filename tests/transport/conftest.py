"""A real director on loopback, in this process, and puppets that say to it what a test wants said."""

from __future__ import annotations

import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from fedveil.director.audit import DirectorAudit
from fedveil.director.config import load_config
from fedveil.director.database import open_database
from fedveil.director.founding import init_federation, load_issuer
from fedveil.director.hub.bootstrap import add_first_user
from fedveil.director.hub.hub import Hub
from fedveil.director.hub.rules import Rule
from fedveil.director.operator_client import OperatorClient
from fedveil.director.server import REST_ADDRESS_FILE, Director
from fedveil.envoy.client import DirectorClient
from fedveil.envoy.enrolment import Credentials
from fedveil.envoy.registration import RestAccess, register
from fedveil.envoy.rest_link import RestLink
from fedveil.utils import messages as m
from fedveil.utils.certificates import Authority, certificate_pem, issue_client, key_pem, make_key
from fedveil.utils.errors import FederationError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.plan_bundle import Bundle, open_bundle
from fedveil.utils.tensors import Digest, bytes_of, digest_of, read_model
from fedveil.workspace.plan_builder import build_plan

ELEMENTS = 10_000
PLAN = f"""
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec

class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {{"w": np.zeros({ELEMENTS}, np.float32)}}

    def train(self, weights, data, rng):
        return {{"w": weights["w"] + np.float32(1)}}, 1

    def evaluate(self, weights, data):
        return ()
"""
EXPERIMENT = """
name = "toy"
secure_aggregation = "off"
seed = "1"
[study]
purpose = "a test"
min_approvals = {approvals}
[rounds]
max_rounds = {rounds}
min_participants = {quorum}
round_timeout_seconds = {timeout}
max_attempts = {attempts}
final_evaluation = false
"""


@dataclass
class Tls:
    """What a caller shows, and whom it believes."""

    chain: bytes
    key: bytes
    root: bytes


@dataclass
class Puppet:
    """An envoy that does what a test tells it."""

    name: str
    client: DirectorClient | RestLink
    approves: bool = True  # whatever it is offered
    attends: bool = False
    approved: tuple[Digest, ...] = ()
    items: queue.Queue[m.WorkItem] = field(default_factory=queue.Queue)
    _kept: list[m.WorkItem] = field(default_factory=list)
    _ends: threading.Event = field(default_factory=threading.Event)

    def attend(self) -> None:
        """Hold a line, and beat; returns once the director answered."""
        stands = threading.Event()

        def listen() -> None:
            try:
                for item in self.client.work((), self.approved):
                    if isinstance(item, m.Offer) and self.approves:
                        self.approve(item)
                    self.items.put(item)
                    stands.set()
            except FederationError:
                return  # the test is over

        def beat() -> None:
            while not self._ends.wait(1.0):
                try:
                    self.client.beat(m.Heartbeat(approved=self.approved))
                except FederationError:
                    return

        for work in (listen, beat):
            threading.Thread(target=work, daemon=True).start()
        assert stands.wait(60.0)
        self.attends = True

    def approve(self, *offers: m.Offer) -> None:
        """Say that its site approved these, and what it approved before."""
        self.approved += tuple(digest_of(offer.proposal.content) for offer in offers)
        self.client.beat(m.Heartbeat(approved=self.approved))

    def withdraw(self) -> None:
        """Its site approves nothing any more."""
        self.approved = ()
        self.client.beat(m.Heartbeat())

    def task(self) -> m.Task:
        """The next task."""
        return self._next(m.Task)

    def offer(self) -> m.Offer:
        """The next thing that is proposed to it."""
        return self._next(m.Offer)

    def _next(self, kind: type) -> m.WorkItem:
        """The next item of a kind; tasks and offers of before it are kept."""
        for item in self._kept:
            if isinstance(item, kind):
                self._kept.remove(item)
                return item
        while not isinstance(item := self.items.get(timeout=60.0), kind):
            if isinstance(item, m.Task | m.Offer):
                self._kept.append(item)
        return item

    def header(self, task: m.Task, number: int = 1, **changes: object) -> m.UpdateHeader:
        """Announces an update."""
        fields = {"ref": task.ref, "layout": task.layout, "length": 4 * ELEMENTS, "num_examples": number}
        return m.UpdateHeader(**(fields | changes))

    def turn(self, task: m.Task, number: int = 1, **changes: object) -> m.Turn:
        """A turn to upload."""
        given = self.client.request_upload(self.header(task, number, **changes))
        assert isinstance(given, m.Turn)
        return given

    def send(self, task: m.Task, value: float, number: int = 1, **changes: object) -> m.Receipt:
        """Everything right: an update of one value everywhere."""
        given = self.turn(task, number, **changes)
        return self.client.upload(parts_of(given, np.full(ELEMENTS, value, np.float32)))

    def close(self) -> None:
        """Hang up."""
        self._ends.set()
        self.client.close()


def parts_of(turn: m.Turn, update: np.ndarray, size: int = 4_000) -> list[m.Part]:
    """The stream of an update, from where the turn says."""
    raw = bytes_of(update)
    data = [m.Data(bytes(raw[start : start + size])) for start in range(turn.offset, len(raw), size)]
    return [m.Opening(len(raw), turn.offset, turn.grant), *data, m.Closing(digest_of(raw))]


class Federation:
    """A director, its authorities, and whoever calls it."""

    def __init__(self, folder: Path, bundle: Bundle, *, serves_rest: bool = False, asks_agreement: bool = True) -> None:
        self.folder, self.bundle = folder, bundle
        init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time(), listen="127.0.0.1:0")
        if serves_rest:
            settings = (folder / "director.toml").read_text("utf-8")
            served = settings.replace('[rest]\nlisten = ""', '[rest]\nlisten = "127.0.0.1:0"')
            assert served != settings
            if not asks_agreement:
                served = served.replace("needs_infrastructure_user = true", "needs_infrastructure_user = false")
            (folder / "director.toml").write_text(served, "utf-8")
        self.issuer, self.root = load_issuer(folder, time.time())
        self._puppets: list[Puppet] = []
        self.director = Director(folder, load_config(folder))
        self.address = f"127.0.0.1:{self.director.port}"

    def certificate(
        self,
        role: Role = Role.ENVOY,
        name: str = "site-a",
        *,
        federation: str = "lungs",
        seconds: float = 3600.0,
        now: float | None = None,
        issuer: Authority | None = None,
    ) -> Tls:
        """A client's certificate."""
        key, issuer = make_key(), issuer or self.issuer
        peer = PeerId(federation, role, name)
        leaf = issue_client(issuer, key.public_key(), peer, seconds, time.time() if now is None else now)
        return Tls(certificate_pem(leaf, issuer.certificate), key_pem(key), certificate_pem(self.root))

    def puppet(self, name: str, tls: Tls | None = None) -> Puppet:
        """A caller, as an envoy unless it shows another certificate."""
        tls = tls or self.certificate(name=name)
        puppet = Puppet(name, DirectorClient(self.address, tls.chain, tls.key, tls.root))
        self._puppets.append(puppet)
        return puppet

    @cached_property
    def hub(self) -> Hub:
        """Of the director's database, from outside its process's own."""
        config = load_config(self.folder)
        return Hub("lungs", open_database(config.database_url(self.folder), durable=False), DirectorAudit())

    def api_key(self, organization: str = "North Hospital", *rules: str) -> str:
        """Of a program that takes part for an organization."""
        name, password = organization.lower().replace(" ", "-"), "correct horse battery staple"
        user = self.hub.users.first(self.hub.users.table.c.name == name) or add_first_user(
            self.hub.engine, DirectorAudit(), "lungs", name, "", organization, ["organization-admin"], password, "test"
        )
        allowed = frozenset(map(Rule.parse, rules or ("create:envoy:organization", "edit:envoy:organization")))
        now = time.time()
        return self.hub.sign_in.make_key(user, "site", allowed, now, now + 3600.0)[1]

    @property
    def url(self) -> str:
        """Of the REST API."""
        return (self.folder / REST_ADDRESS_FILE).read_text()

    def registered(self, name: str, key: str) -> Credentials:
        """A site that registers over HTTPS, with a folder of its own."""
        root = certificate_pem(self.root)
        return register(self.folder.parent / name, RestAccess(self.url, key), root, name, time.time())

    def over_https(self, name: str, key: str | None = None) -> Puppet:
        """A site that registered over HTTPS, and calls so."""
        key = key or self.api_key()
        self.registered(name, key)
        puppet = Puppet(name, RestLink(self.url, key, certificate_pem(self.root), name))
        self._puppets.append(puppet)
        return puppet

    def attending(self, *names: str, approve: bool = True) -> list[Puppet]:
        """Envoys that hold a line, and approve what is proposed to them."""
        puppets = [self.puppet(name) for name in names]
        for puppet in puppets:
            puppet.approves = approve
            puppet.attend()
        return puppets

    def operator(self) -> OperatorClient:
        """The operator."""
        return OperatorClient(self.folder, None, time.time())

    def submit(
        self,
        quorum: int = 1,
        rounds: int = 1,
        timeout: float = 60.0,
        attempts: int = 1,
        *,
        approvals: int | None = None,
        further: str = "",
        codec: Path | None = None,
    ) -> m.RunId:
        """Queue an experiment, with further tables of its settings and the codec that they name."""
        if approvals is None:  # all who are there are asked in the first round: it waits until they approved
            approvals = max(quorum, sum(one.attends and one.approves for one in self._puppets))
        settings = EXPERIMENT.format(
            quorum=quorum, rounds=rounds, timeout=timeout, attempts=attempts, approvals=approvals
        )
        with self.operator() as operator:
            return operator.submit(settings + further, self.bundle, codec)

    def finished(self, run: m.RunId) -> m.ExperimentView:
        """The run, once it is over."""
        with self.operator() as operator:
            self.until(lambda: operator.show(run).is_over)
            return operator.show(run)

    def model(self, view: m.ExperimentView) -> np.ndarray:
        """The run's model."""
        assert view.model is not None
        with self.operator() as operator:
            return read_model(self.bundle.layout, operator.fetch(view.model))[0]

    def until(self, is_so: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for something that will be."""
        deadline, pause = time.monotonic() + seconds, threading.Event()
        while not is_so():
            assert time.monotonic() < deadline
            pause.wait(0.01)

    def close(self) -> None:
        """End everything."""
        for puppet in self._puppets:
            puppet.close()
        self.director.close()
        if "hub" in self.__dict__:
            self.hub.engine.dispose()


class OpenRound:
    """A round of three, of whom `bad` says something wrong before it says what is right."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.good = federation.attending("site-a", "site-b")
        (self.bad,) = federation.attending("site-c")
        self.run = federation.submit(quorum=3)
        self.task = self.bad.task()
        for envoy in self.good:
            assert envoy.task() == self.task  # the very same for everybody

    def closes_with_everybody(self) -> None:
        """Right updates of all three are taken, and the model is exactly their mean."""
        self.bad.send(self.task, 3.0, 2)
        self.closes()

    def closes(self) -> None:
        """The other two answer; the third has."""
        self.good[0].send(self.task, 1.0, 1)
        self.good[1].send(self.task, 2.0, 1)
        view = self.federation.finished(self.run)
        assert view.state == "finished", view.reason
        assert np.array_equal(self.federation.model(view), np.full(ELEMENTS, 2.25, np.float32))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A plan that adds one."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "toy.py").write_text(PLAN)
    build_plan(folder / "toy.py", folder / "bundle")
    return open_bundle(folder / "bundle")


@pytest.fixture
def federation(tmp_path: Path, bundle: Bundle) -> Iterator[Federation]:
    """A federation of its own for each test."""
    made = Federation(tmp_path / "director", bundle)
    yield made
    made.close()


@pytest.fixture
def served(tmp_path: Path, bundle: Bundle) -> Iterator[Federation]:
    """One that serves its REST API too."""
    made = Federation(tmp_path / "director", bundle, serves_rest=True)
    yield made
    made.close()


@pytest.fixture
def rest_federation(tmp_path: Path, bundle: Bundle) -> Iterator[Federation]:
    """Likewise; sites come in without an agreement."""
    made = Federation(tmp_path / "director", bundle, serves_rest=True, asks_agreement=False)
    yield made
    made.close()


@pytest.fixture
def opened(federation: Federation) -> OpenRound:
    """A round that waits for three."""
    return OpenRound(federation)


# proxies as hospitals have them, from Debian, on loopback with a configuration of their own

NAMED = "director.example.org"
"""What squid alone can resolve, by a hosts file of its own: as in a network whose machines have no public DNS."""


def free_port() -> int:
    """Below those that the system lends to callers, so that it can be taken again after a restart."""
    lot = random.SystemRandom()
    while True:
        port = lot.randrange(20_000, 32_000)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class RealProxy:
    """A process that can be killed and started again at the same port."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.port, self.folder, self._command = free_port(), folder, command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def configure(self, text: str) -> Self:
        (self.folder / "proxy.conf").write_text(text.format(port=self.port, folder=self.folder), "utf-8")
        return self

    def start(self) -> Self:
        with (self.folder / "proxy.out").open("ab") as out:
            dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
            self._process = subprocess.Popen(
                [*dies_with_us, *self._command, str(self.folder / "proxy.conf")],
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline, pause = time.monotonic() + 60.0, threading.Event()
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                said = (self.folder / "proxy.out").read_text("utf-8", "replace")
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                pause.wait(0.02)
            else:
                return self

    def kill(self) -> None:
        """At once, with the helpers that it started; every tunnel breaks."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def said(self) -> str:
        log = self.folder / "proxy.log"
        return log.read_text("utf-8", "replace") if log.exists() else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def _installed(*names: str) -> str:
    path = next(
        (found for name in names if (found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin"))), None
    )
    if path is None:
        pytest.skip(f"{names[0]} is not installed; see .ci/system-packages")
    return path


def tinyproxy(folder: Path, more: str = "BasicAuth site sesame") -> RealProxy:
    """With user ``site`` and password ``sesame``, unless other lines are given."""
    text = 'Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nLogLevel Connect\nLogFile "{folder}/proxy.log"\n'
    return RealProxy(folder, _installed("tinyproxy"), "-d", "-c").configure(text + more + "\n")


def squid(folder: Path, password: str, more: str = "") -> RealProxy:
    """With user ``site``; passwords may be any text. Knows ``director.example.org`` as this machine."""
    program = _installed("squid")
    helper = Path("/usr/lib/squid/basic_ncsa_auth")
    if not helper.exists():
        pytest.skip("squid has no basic_ncsa_auth here")
    folder.parent.chmod(0o755)
    folder.chmod(0o755)
    (folder / "hosts").write_text(f"127.0.0.1 {NAMED}\n", "utf-8")
    (folder / "passwd").write_text(f"site:{_hashed(password)}\n", "utf-8")
    text = f"""\
http_port 127.0.0.1:{{port}}
pid_filename none
cache deny all
access_log none
cache_log /dev/null
coredump_dir {{folder}}
hosts_file {{folder}}/hosts
dns_nameservers 127.0.0.1
shutdown_lifetime 0 seconds
auth_param basic program {helper} {{folder}}/passwd
auth_param basic children 1
acl known proxy_auth REQUIRED
{more}
http_access allow known
http_access deny all
"""
    return RealProxy(folder, program, "-N", "-f").configure(text)


def _hashed(password: str) -> str:
    command = [_installed("openssl"), "passwd", "-1", "-stdin"]
    return subprocess.run(command, input=password.encode(), capture_output=True, check=True).stdout.decode().strip()


@pytest.fixture
def start_tinyproxy(tmp_path: Path) -> Iterator[Callable[..., RealProxy]]:
    """Starts one; ended after the test."""
    yield from _starting(tmp_path / "tinyproxy", tinyproxy)


@pytest.fixture
def start_squid() -> Iterator[Callable[..., RealProxy]]:
    """Starts one; ended after the test."""
    with tempfile.TemporaryDirectory() as folder:  # squid's own user must get there
        yield from _starting(Path(folder) / "squid", squid)


def _starting(folder: Path, make: Callable[..., RealProxy]) -> Iterator[Callable[..., RealProxy]]:
    started: list[RealProxy] = []

    def start(*arguments: str) -> RealProxy:
        folder.mkdir()
        started.append(make(folder, *arguments))
        return started[-1].start()

    yield start
    for proxy in started:
        proxy.kill()
