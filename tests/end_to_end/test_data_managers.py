"""What data managers type while their envoys run: approvals that a run waits for, a veto in mid-round, and a stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fedveil.envoy.approvals import Word
from fedveil.envoy.control_socket import ask, is_running
from fedveil.envoy.decisions import opened


def types(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "fedveil.envoy", *words, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def standing(folder: Path):
    with opened(folder) as (_, store):
        (found,) = store.books().standings.values()
    return found


def test_a_run_waits_until_enough_data_managers_approved_and_begins_without_a_restart(federation, settings, wait_until):
    federation.data_managers.end()
    text = settings(rounds=1, quorum=2).replace("min_approvals = 3", "min_approvals = 2")
    run = federation.submit(text, federation.plan())
    folders = [federation.folder / name for name in federation.sites]
    for folder in folders:
        wait_until(lambda here=folder: " offered " in types(here, "plan", "list"), "the proposal")
    wait_until(lambda: all(any(folder.glob("plans/*/blobs/*")) for folder in folders), "the plans")
    first, second, third = folders
    digest = standing(first).proposal.digest
    types(third, "plan", "reject", digest[:12], "--reason", "no permit yet")
    wait_until(lambda: "Approved" in types(first, "plan", "approve", digest[:12], "--yes"), "an approval")
    with federation.operator() as operator:
        assert operator.show(run).state == "queued"
    assert federation.trainings() == {"site-a": 0, "site-b": 0, "site-c": 0}
    types(second, "plan", "approve", digest[:12], "--yes", "--rounds", "1")
    view = federation.finish(run)
    assert view.approved_by == ("site-a", "site-b")
    assert (view.rounds[0].invited, view.rounds[0].received) == (2, 2)
    assert federation.trainings() == {"site-a": 1, "site-b": 1, "site-c": 0}


def test_a_veto_in_mid_round_ends_local_work_and_the_round_goes_on(federation, settings, wait_until):
    folder = federation.folder / "site-a"
    run = federation.submit(settings(rounds=3, quorum=1), federation.plan(seconds=8.0))

    def train() -> bool:  # the first round may have begun before the last of the three approved it
        sites, begun = federation.sites, federation.trainings()
        return all(begun[name] - federation.says(name, "training ends") == 1 for name in sites)

    wait_until(train, "training at all sites")
    number = federation.round(run).round.ref.round
    answer = ask(folder, {"ask": "veto", "task": str(run), "reason": "wrong data", "tell": False})
    assert answer["ended"] == [f"round {number} of {run}"]
    assert not list((folder / "work").glob("*.f32"))
    view = federation.finish(run)
    assert (view.rounds[number - 1].invited, view.rounds[number - 1].received) == (3, 2)
    assert {one.invited for one in view.rounds[number:]} <= {2}
    assert federation.trainings()["site-a"] == federation.says("site-a", "training ends") + 1
    decision = standing(folder).decision
    assert (decision.word, decision.reason) == (Word.REJECTED, "wrong data")
    log = (folder / "audit.jsonl").read_text("utf-8")
    assert '"what":"vetoed"' in log
    assert "wrong data" not in (federation.director_folder / "log.txt").read_text("utf-8")
    types(folder, "audit", "verify")
    types(folder, "stop", "--reason", "maintenance")
    assert federation.envoys["site-a"].wait(20.0) == 0
    assert not is_running(folder)
