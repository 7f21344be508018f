"""A federation that is backed up in mid-run, loses its director with all that it had, and goes on from the backup."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fedveil.director.__main__ import app as director
from fedveil.director.config import load_config
from fedveil.director.rounds import RoundState
from fedveil.envoy.__main__ import app as envoy
from fedveil.envoy.audit import heads_in
from fedveil.utils.audit_chain import read_entries
from fedveil.utils.messages import TaskKind
from fedveil.workspace.processes import family
from typer.testing import CliRunner

ROUNDS = 3
SITES = ("site-a", "site-b", "site-c")


def command(*words: object, expected: int = 0) -> str:
    """What somebody types."""
    program, *rest = map(str, words)
    done = CliRunner().invoke({"director": director, "envoy": envoy}[program], rest)
    assert done.exit_code == expected, done.output
    return done.output


@pytest.fixture
def databases(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """The URL of an empty one; nothing for a file in the folder."""
    return lambda kind: request.getfixturevalue("postgres")() if kind == "postgresql" else ""


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("sqlite", "postgresql"), ("postgresql", "sqlite")])
def test_a_running_federation_goes_on_from_its_backup_to_the_same_model(
    before, after, databases, any_federation, settings, wait_until, tmp_path
):
    """On the other kind of database; once with the audit log of the last moment, and once without."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery staple\n")
    saves_log = before == "postgresql"
    with any_federation(tmp_path / "federation") as federation:
        folder, file = federation.director_folder, tmp_path / "toys.backup"
        federation.director_settings["database.url"] = f'"{databases(before)}"'
        federation.set_up()
        plan = federation.plan(seconds=0.5)
        expected = federation.finish(federation.submit(settings("undisturbed", rounds=ROUNDS), plan)).model
        run = federation.submit(settings("copied", rounds=ROUNDS), plan)
        open_round = _held_up(federation, run, wait_until)
        said = command("director", "backup", file, "--folder", folder, "--passphrase-file", secret)
        assert "2 answers of the open round" in said
        known = sum(1 for _ in read_entries(folder / "audit.jsonl"))
        _signal(federation, signal.SIGCONT)
        federation.wait_for_round(run, open_round, RoundState.CLOSED)  # which the backup does not know
        seen = lambda name: max(head.number for head in heads_in(federation.folder / name))  # noqa: E731
        wait_until(lambda: all(seen(name) > known + 1 for name in SITES), "heads of a longer log at all sites")
        federation.kill_director()
        federation.history._engine.dispose()
        del federation.__dict__["history"]
        heads = [_heads(federation.folder / name, tmp_path / f"{name}.heads") for name in SITES]
        shutil.copy(folder / "audit.jsonl", tmp_path / "saved.jsonl")
        shutil.rmtree(folder)

        url = databases(after) or "sqlite"
        more = ["--audit-log", tmp_path / "saved.jsonl"] if saves_log else []
        given = ["--folder", folder, "--passphrase-file", secret, "--database-url", url, *more]
        said = command("director", "restore", file, *given)
        assert ("accept-director" in said) is not saves_log
        assert ("postgresql" in load_config(folder).database.url) is (after == "postgresql")
        against = [word for one in heads for word in ("--heads", one)]
        found = command("director", "audit", "verify", "--folder", folder, *against, expected=0 if saves_log else 1)
        assert ("SuspectLogError" in found) is not saves_log
        if not saves_log:
            for name in SITES:
                command("envoy", "audit", "accept-director", "--folder", federation.folder / name)
        federation.start_director()
        federation.wait_for_director()
        assert federation.finish(run).model == expected
        told = [
            (one.round.ref.round, one.round.ref.attempt, one.round.state)
            for one in federation.rounds(run)
            if one.round.kind is TaskKind.TRAIN
        ]
        assert told == [(number, 1, RoundState.CLOSED) for number in range(1, ROUNDS + 1)]
        federation.history._engine.dispose()


def _held_up(federation, run, wait_until) -> int:
    """Stop the training of one site in the middle of it; gives the round, of which all other answers are here."""
    site = SITES[-1]
    while True:
        began = federation.trainings()[site]
        wait_until(lambda: federation.trainings()[site] > began, "another training")  # noqa: B023
        _signal(federation, signal.SIGSTOP)
        wait_until(lambda: _waits_for(federation, run, site) or not _trains(federation, site), "the others' answers")
        if _trains(federation, site):
            return federation.round(run).round.ref.round
        _signal(federation, signal.SIGCONT)  # it was stopped too late


def _waits_for(federation, run, site: str) -> bool:
    record = federation.round(run)
    return record is not None and record.round.received == set(SITES) - {site}


def _trains(federation, site: str) -> bool:
    return federation.says(site, "training begins") > federation.says(site, "training ends")


def _signal(federation, what: signal.Signals) -> None:
    """To what the last site runs of the plan, not to its envoy."""
    for pid in family(federation.envoys[SITES[-1]].pid)[1:]:
        os.kill(pid, what)


def _heads(site: Path, out: Path) -> Path:
    out.write_text(command("envoy", "audit", "heads", "--folder", site))
    return out
