"""A federation of three hospitals that train a toy: real processes, real sockets, mutual TLS, and ways to kill them."""

from __future__ import annotations

import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.config import load_config
from fedveil.director.database import open_database
from fedveil.director.history import History, RoundRecord, RunRecord
from fedveil.director.rounds import RoundState
from fedveil.utils.errors import UnreachableError
from fedveil.utils.messages import ExperimentView, RunId
from fedveil.utils.plan_bundle import Bundle, open_bundle
from fedveil.workspace.local_federation import LocalFederation
from fedveil.workspace.plan_builder import build_plan
from fedveil.workspace.processes import family
from PIL import Image

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
SITES = ("site-a", "site-b", "site-c")
FOUR = (*SITES, "site-d")
ENVOY = """
[training]
preload_torch = false
[protection]
chain = ["check", "encode"]
metrics = ["*"]
[secure_aggregation]
rule = "allowed"
"""
_EXPERIMENT = """
name = "{name}"
seed = "toy"
secure_aggregation = "{secure}"
[study]
purpose = "a test"
min_approvals = {approvals}
[rounds]
max_rounds = {rounds}
min_participants = {quorum}
{cohort}
round_timeout_seconds = {timeout}
[server_optimizer]
name = "{optimizer}"
"""


def experiment(
    name: str = "toy",
    *,
    rounds: int = 2,
    quorum: int = 3,
    cohort: int | None = None,
    timeout: float = 120.0,
    optimizer: str = "fedavg",
    secure: str = "off",
) -> str:
    """The text of experiment.toml; always of the same seed. It begins once all sites approved it."""
    sample = f"cohort_size = {cohort}" if cohort else ""
    return _EXPERIMENT.format(
        name=name,
        rounds=rounds,
        quorum=quorum,
        approvals=max(quorum, len(FOUR if secure == "required" else SITES)),
        cohort=sample,
        timeout=timeout,
        optimizer=optimizer,
        secure=secure,
    )


def wait_until(is_so: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something that another process does."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:g} s")
        pause.wait(0.02)


class ToyFederation(LocalFederation):
    """Envoys that are in, and a director that may die at any time and come back at the same address."""

    def __init__(self, folder: Path, sites: tuple[str, ...] = SITES, envoy: str = ENVOY) -> None:
        super().__init__(folder, "toys")
        self.sites, self.envoy_settings = sites, envoy
        self.director_settings: dict[str, str] = {}
        self.lives = 0  # directors started

    def set_up(self) -> None:
        """A director that runs, and its envoys: all are in before the first starts, so that their rosters are whole."""
        self.found(settings={"listen": f'"127.0.0.1:{_free_port()}"'} | self.director_settings)
        self.start_director()
        self.wait_for_director()
        for name in self.sites:
            folder = self.join(name, name.title())
            (folder / "envoy.toml").write_text(self.envoy_settings, "utf-8")
        for name in self.sites:
            self.start_envoy(name)

    def plan(self, **settings: float) -> Bundle:
        """The toy's bundle."""
        out = self.folder / f"plan-{'-'.join(f'{k}-{v}' for k, v in settings.items())}"
        build_plan(HERE / "toy_plan.py", out, settings)
        return open_bundle(out)

    def start_director(self) -> None:
        self.lives += 1
        super().start_director()

    def start_doomed_director(self, *doom: str) -> None:
        """A director that will kill itself; what and when as ``crashing_director.py`` takes it."""
        self.lives += 1
        command = [sys.executable, str(HERE / "crashing_director.py"), str(self.director_folder), *doom]
        with (self.director_folder / "log.txt").open("ab") as log:
            self.director = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start_doomed_envoy(self, name: str, *doom: str) -> None:
        """An envoy that will kill itself; when as ``crashing_envoy.py`` takes it."""
        command = [sys.executable, str(HERE / "crashing_envoy.py"), str(self.folder / name), *doom]
        with (self.folder / name / "log.txt").open("ab") as log:
            self.envoys[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def is_envoy_dead(self, name: str) -> bool:
        return self.envoys[name].poll() is not None

    def kill_director(self) -> None:
        assert self.director is not None
        self.director.kill()
        self.director.wait()

    @property
    def is_director_dead(self) -> bool:
        return self.director is None or self.director.poll() is not None

    def kill_envoy(self, name: str) -> None:
        self.envoys[name].kill()
        self.envoys[name].wait()

    def kill_worker(self, name: str) -> None:
        """Kill the training processes of an envoy, not the envoy."""
        for pid in family(self.envoys[name].pid)[1:]:
            subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)

    def says(self, name: str, text: str) -> int:
        """How often a site's worker said something."""
        log = self.folder / name / "state" / "worker.log"
        return log.read_text("utf-8").count(text) if log.exists() else 0

    def trainings(self) -> dict[str, int]:
        """How often each site began to train."""
        return {name: self.says(name, "training begins") for name in self.sites}

    def record(self, name: str) -> RunRecord | None:
        """The run of a name, from the director's database; the director may be dead."""
        return next((run for run in self.history.runs() if run.name == name), None)

    def rounds(self, run: RunId) -> tuple[RoundRecord, ...]:
        """All rounds of a run, from the director's database."""
        return self.history.rounds(run)

    def round(self, run: RunId) -> RoundRecord | None:
        """The latest."""
        return next(iter(reversed(self.rounds(run))), None)

    def wait_for_round(self, run: RunId, number: int, state: RoundState) -> RoundRecord:
        """Until the run has a round in some state."""
        found: list[RoundRecord] = []

        def is_there() -> bool:
            found[:] = [r for r in self.rounds(run) if r.round.ref.round == number and r.round.state is state]
            return bool(found)

        wait_until(is_there, f"{run} round {number} {state.value}")
        return found[-1]

    def submit_once(self, settings: str, bundle: Bundle, codec: Path | None = None) -> None:
        """As an operator does whose director may die meanwhile: looks whether it is in before submitting again."""
        name = settings.split('"')[1]
        while True:
            try:
                wait_until(lambda: self._answers() or self.is_director_dead, "the director")
                with self.operator() as operator:
                    operator.submit(settings, bundle, codec)
                return
            except UnreachableError:
                wait_until(lambda: self.is_director_dead, "the director's death")
                if self.record(name):
                    return
                self.start_director()

    def connected(self) -> set[str]:
        """Which envoys the director sees."""
        with self.operator() as operator:
            return {envoy.name for envoy in operator.status().envoys if envoy.connected}

    def wait_for_all(self, seconds: float = 30.0) -> None:
        """Until the director sees every envoy."""
        wait_until(lambda: self.sees(set(self.sites)), "all envoys", seconds)

    def sees(self, names: set[str]) -> bool:
        """Does the director answer, and see just these envoys?"""
        try:
            return self.connected() == names
        except UnreachableError:
            return False

    def finish(self, run: RunId) -> ExperimentView:
        """Wait for a run's end; it must have finished."""
        view = self.wait_for(run, timeout_seconds=100.0, every_seconds=0.02)
        assert view.state == "finished", view
        return view

    def _answers(self) -> bool:
        try:
            with self.operator() as operator:
                operator.status()
        except UnreachableError:
            return False
        return True

    @cached_property
    def history(self) -> History:
        """The director's, read beside it."""
        url = load_config(self.director_folder).database_url(self.director_folder)
        return History(open_database(url, durable=False))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[ToyFederation]:
    """Set up, and ended after the test."""
    with ToyFederation(tmp_path) as federation:
        federation.set_up()
        yield federation
        for envoy in federation.envoys.values():
            envoy.send_signal(signal.SIGCONT)
        federation.history._engine.dispose()


@pytest.fixture
def any_federation() -> Callable[[Path], ToyFederation]:
    """Makes a federation of three in a folder; to be set up, and ended."""
    return ToyFederation


@pytest.fixture
def four(tmp_path: Path) -> Iterator[ToyFederation]:
    """Four whose updates leave them inside secure sums alone."""
    with ToyFederation(tmp_path, FOUR, ENVOY.replace('"allowed"', '"required"')) as federation:
        federation.set_up()
        federation.wait_for_all(90.0)
        yield federation
        federation.history._engine.dispose()


@pytest.fixture(scope="session")
def toy_federation() -> Callable[..., ToyFederation]:
    """Makes a federation of four in a folder, with more lines of [secure_aggregation]; to be set up and ended."""
    return lambda folder, more, rule="required": ToyFederation(
        folder, FOUR, ENVOY.replace('"allowed"', f'"{rule}"') + more
    )


@pytest.fixture(name="write_xrays")
def _write_xrays() -> Callable[..., None]:
    """Writes forty images whose classes differ in brightness; each file's name begins with ``prefix``."""

    def write(folder: Path, seed: int, prefix: str = "") -> None:
        rng = np.random.default_rng(seed)
        for label, name in enumerate(("normal", "pneumonia")):
            (folder / name).mkdir(parents=True)
            for number in range(20):
                pixels = rng.integers(10, 100, (8, 8), np.uint8) + np.uint8(120 * label)
                Image.fromarray(pixels).save(folder / name / f"{prefix}{number}.png")

    return write


@pytest.fixture(name="wait_until", scope="session")
def _wait_until() -> Callable[..., None]:
    """Waits for something that another process does."""
    return wait_until


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds one that a director may take again after each of its deaths."""
    return _free_port


@pytest.fixture
def settings() -> Callable[..., str]:
    """Makes an experiment.toml."""
    return experiment


def _free_port() -> int:
    """One that a director may take again after each of its deaths: below those that the system lends to callers."""
    lot = random.SystemRandom()
    while True:
        port = lot.randrange(20_000, 32_000)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


class Host:
    """A network namespace, and the commands that are typed there."""

    def __init__(self, name: str, home: Path, variables: dict[str, str]) -> None:
        # Not `ip netns exec`: that mounts /sys anew, and hides the control groups by which root limits processes.
        self._name, self._inside, self.home = name, ["nsenter", f"--net=/run/netns/{name}"], home
        self._environment = os.environ | variables | {"COLUMNS": "200", "NO_COLOR": "1"}
        self.processes: list[subprocess.Popen[bytes]] = []

    def types(self, command: str, expected: int = 0) -> str:
        done = subprocess.run(
            self._command(command),
            cwd=self.home,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == expected, done.stdout
        return done.stdout

    def starts(self, command: str) -> subprocess.Popen[bytes]:
        with (self.home / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                self._command(command),
                cwd=self.home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def listening(self) -> list[str]:
        """TCP sockets that wait for callers."""
        return _run(*self._inside, "ss", "-Hltn").stdout.splitlines()

    def children(self, module: str) -> int:
        """Processes of this host's that run a module of ours."""
        inside = _run("ip", "netns", "pids", self._name).stdout.split()
        return sum(module in _command_line(int(pid)) for pid in inside)

    def cable(self, state: str) -> None:
        """Pull it (down) or plug it in (up); what is on its way is lost, and nobody is told."""
        assert not _run("ip", "-n", self._name, "link", "set", "eth0", state).returncode

    def restart(self) -> None:
        """`envoy start` again: it reads its settings."""
        self.end()
        self.processes.clear()
        self.starts("envoy start")

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)

    def _command(self, command: str) -> list[str]:
        program, *rest = shlex.split(command)
        return [*self._inside, str(BIN / program) if (BIN / program).exists() else program, *rest]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8").replace("\0", " ")
    except OSError:
        return ""  # it ended


@pytest.fixture
def network() -> Iterator[Callable[[str, str], str]]:
    """Makes hosts on one switch; the switch is in a namespace too, so nothing of this machine's network is touched."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None or shutil.which("ss") is None:
        pytest.skip("there is no `ip` and `ss` here; on Debian: apt-get install iproute2")
    tag, number = f"fv{secrets.token_hex(3)}", 0
    switch = f"{tag}-switch"
    with ExitStack() as stack:

        def namespace(name: str) -> None:
            made = _run("ip", "netns", "add", name)
            if made.returncode:
                pytest.skip(f"this machine lets no network namespace be made: {made.stderr.strip()}")
            stack.callback(_run, "ip", "netns", "del", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")

        def must(*command: str) -> None:
            done = _run("ip", *command)
            if done.returncode:
                pytest.skip(f"this machine has no bridge or no veth: {done.stderr.strip()}")

        namespace(switch)
        must("-n", switch, "link", "add", "switch", "type", "bridge")
        must("-n", switch, "link", "set", "switch", "up")

        def host(name: str, address: str) -> str:
            nonlocal number
            number += 1
            full, port = f"{tag}-{name}", f"port{number}"
            namespace(full)
            must("-n", full, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            must("-n", switch, "link", "set", port, "master", "switch", "up")
            must("-n", full, "address", "add", f"{address}/24", "dev", "eth0")
            must("-n", full, "link", "set", "eth0", "up")
            return full

        yield host


@pytest.fixture
def host_at(network: Callable[[str, str], str]) -> Iterator[Callable[..., Host]]:
    """Makes a host of its own address: a network namespace with a home and variables; what it started is ended."""
    made: list[Host] = []

    def host(name: str, address: str, home: Path, variables: dict[str, str]) -> Host:
        home.mkdir()
        made.append(Host(network(name, address), home, variables))
        return made[-1]

    yield host
    for one in made:
        one.end()
