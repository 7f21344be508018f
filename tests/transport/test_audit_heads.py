"""Director and sites keep each other's heads in every round, also without secure sums, and stop where a log changed."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fedveil.director.__main__ import app as director
from fedveil.director.audit import LOG_FILE as DIRECTORS_LOG
from fedveil.director.config import load_config
from fedveil.director.server import Director
from fedveil.envoy.__main__ import app as envoy
from fedveil.envoy.audit import LOG_FILE, SiteAudit
from fedveil.envoy.audit_door import logging_to
from fedveil.envoy.client import DirectorClient
from fedveil.envoy.config import EnvoyConfig, TrainingSettings
from fedveil.envoy.enrolment import load_credentials
from fedveil.envoy.policy import OPEN_POLICY, PLAIN_ALLOWED
from fedveil.envoy.session import Session
from fedveil.envoy.trainer import InProcessTrainer
from fedveil.utils import messages as m
from fedveil.utils.audit_chain import read_entries, verify
from fedveil.utils.audit_witness import Witnesses
from fedveil.utils.certificates import read_identity_key
from fedveil.workspace.own_plans import OwnPlans
from typer.testing import CliRunner

SECONDS = 60.0


def typed(app, *words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output


@dataclass
class Site:
    """An envoy that joined by its join file, and works in a thread."""

    name: str
    folder: Path
    federation: object
    _running: list = field(default_factory=list)

    @property
    def session(self) -> Session:
        return self._running[0]

    def start(self) -> None:
        credentials = load_credentials(self.folder, time.time())
        log = SiteAudit.open(self.folder, credentials.peer, read_identity_key(credentials.identity_key, "its key"))
        address = f"127.0.0.1:{self.federation.director.port}"
        link = DirectorClient(address, credentials.chain, credentials.leaf_key, credentials.root)
        training = TrainingSettings(preload_torch=False)
        config = EnvoyConfig(training=training, protection=OPEN_POLICY, secure_aggregation=PLAIN_ALLOWED)
        plans = OwnPlans(self.federation.bundle.digest)
        name = m.EnvoyName(self.name)
        session = Session(name, self.folder, link, InProcessTrainer(), config, audit=log, approvals=plans)
        thread = threading.Thread(target=session.run, daemon=True)
        thread.start()
        self._running = [session, thread, log]

    def end(self) -> None:
        if self._running:
            session, thread, log = self._running
            session.end()
            thread.join(SECONDS)
            log.close()
            self._running = []

    def whats(self) -> list[object]:
        return [entry.event["what"] for entry in read_entries(self.folder / LOG_FILE)]


@pytest.fixture
def site(federation, tmp_path: Path):
    made = []

    def join(name: str) -> Site:
        file, folder = tmp_path / f"{name}.join", tmp_path / name
        words = ["--organization", name, "--folder", str(federation.folder), "--out", str(file)]
        typed(director, "invite", name, *words)
        typed(envoy, "join", str(file), "--folder", str(folder), "--yes")
        made.append(Site(name, folder, federation))
        made[-1].start()
        return made[-1]

    yield join
    for one in made:
        one.end()


def witnesses_in(log: Path) -> Witnesses:
    found = Witnesses()
    verify(log, see=found.take)
    return found


def run(federation, rounds: int) -> m.ExperimentView:
    return federation.finished(federation.submit(rounds=rounds))


def suspicion(federation, name: str) -> str:
    with federation.operator() as operator:
        return next(one.suspicion for one in operator.status().envoys if one.name == name)


def test_each_round_leaves_the_head_of_each_log_in_the_other(federation, site):
    one = site("site-a")
    assert run(federation, 3).state == "finished"
    federation.until(lambda: one.whats().count("director's head") >= 3)
    one.end()
    logs = federation.folder / DIRECTORS_LOG, one.folder / LOG_FILE
    kept_by_director, kept_by_site = map(witnesses_in, logs)
    assert len(kept_by_director.of("site-a")) >= 3
    assert len(kept_by_site.of()) >= 3
    assert verify(logs[0], heads=kept_by_site.of()).heads == len(kept_by_site.of())
    assert verify(logs[1], heads=kept_by_director.of("site-a")).heads == len(kept_by_director.of("site-a"))


def test_what_a_site_does_stands_in_its_log_before_it_is_done(federation, site):
    one = site("site-a")
    view = run(federation, 1)
    one.end()
    steps = [(e.event["what"], e.event) for e in read_entries(one.folder / LOG_FILE)]
    steps = [(what, event) for what, event in steps if what != "director's head"]
    assert [what for what, _ in steps] == ["log begun", "data accessed", "sent"]
    assert (steps[1][1]["plan"], steps[1][1]["records"]) == (view.plan, 0)
    assert (steps[2][1]["kind"], steps[2][1]["round"]) == ("plain", 1)


def test_a_site_whose_log_went_back_is_not_asked_and_is_told_why_until_the_operator_takes_it(federation, site):
    one = site("site-a")
    assert run(federation, 1).state == "finished"
    one.end()
    backup = one.folder / "backup"
    shutil.copy(one.folder / LOG_FILE, backup)
    one.start()
    assert run(federation, 2).state == "finished"
    federation.until(lambda: len(witnesses_in(federation.folder / DIRECTORS_LOG).of("site-a")) >= 2)
    one.end()
    shutil.copy(backup, one.folder / LOG_FILE)  # the machine goes back to a snapshot
    one.start()
    federation.until(lambda: "went back" in suspicion(federation, "site-a"))
    federation.until(lambda: "director audit accept-site" in one.session.status().last_error)
    trained = one.whats().count("data accessed")
    waiting = federation.submit(rounds=1)
    (other,) = federation.attending("site-b")
    other.send(other.task(), 1.0)
    assert federation.finished(waiting).state == "finished"
    assert one.whats().count("data accessed") == trained
    typed(director, "audit", "accept-site", "site-a", "--folder", str(federation.folder))
    federation.until(lambda: not suspicion(federation, "site-a"))
    other.close()
    assert run(federation, 1).state == "finished"
    assert one.whats().count("data accessed") == trained + 1


def test_a_site_does_no_work_for_a_director_whose_log_went_back_until_somebody_takes_it(federation, site):
    one = site("site-a")
    backup = federation.folder / "backup"
    shutil.copy(federation.folder / DIRECTORS_LOG, backup)
    assert run(federation, 1).state == "finished"
    federation.until(lambda: "director's head" in one.whats())
    port = federation.director.port
    federation.director.close()
    shutil.copy(backup, federation.folder / DIRECTORS_LOG)
    settings = (federation.folder / "director.toml").read_text("utf-8")
    (federation.folder / "director.toml").write_text(settings.replace("127.0.0.1:0", f"127.0.0.1:{port}"), "utf-8")
    federation.director = Director(federation.folder, load_config(federation.folder))
    federation.until(lambda: "director's log is suspect" in one.whats())
    federation.until(lambda: "envoy audit accept-director" in one.session.status().last_error)
    view = run(federation, 1)
    assert view.state == "failed"
    assert "went back" in view.reason
    assert one.whats().count("data accessed") == 1
    with logging_to(one.folder) as command:  # beside the running envoy
        command.take_anew()
    federation.until(lambda: not one.session._witnessing._audit.suspicion)
    assert run(federation, 1).state == "finished"
    assert one.whats().count("data accessed") == 2
