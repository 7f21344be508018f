"""Secure sums that one of the hospitals opens, while the director relays: real processes, real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedveil.director.__main__ import app as director
from fedveil.director.audit import DirectorAudit
from fedveil.director.rounds import RoundState
from fedveil.envoy.__main__ import app as envoy
from fedveil.utils.audit_chain import read_entries
from typer.testing import CliRunner

pytestmark = pytest.mark.slow
SITES = ("site-a", "site-b", "site-c", "site-d")
AGGREGATOR = "site-d"


@pytest.fixture
def made(toy_federation, tmp_path: Path):
    """Makes federations of four: ``made(folder, named)`` says whom the sites let sum."""

    @contextmanager
    def make(folder: str, named: tuple[str, ...]) -> Iterator[object]:
        with toy_federation(tmp_path / folder, f"aggregators = {json.dumps(named)}\n") as federation:
            federation.set_up()
            federation.wait_for_all()
            yield federation
            federation.history._engine.dispose()

    return make


@pytest.fixture
def experiment(settings) -> Callable[[str], str]:
    """Makes an experiment.toml, by its aggregator."""

    def make(aggregator: str) -> str:
        text = settings(rounds=2, quorum=3, secure="required")
        return text + f'[secure_sum]\nclip = 4.0\naggregator = "{aggregator}"\n'

    return make


NAMED = ("director", AGGREGATOR)


def model_of(federation, settings: str) -> bytes:
    view = federation.finish(federation.submit(settings, federation.plan()))
    with federation.operator() as operator:
        return operator.fetch(view.model)


def logged(federation, name: str, what: str) -> list[dict[str, object]]:
    entries = read_entries(federation.folder / name / "audit.jsonl")
    return [dict(entry.event) for entry in entries if entry.event["what"] == what]


def all_logs_are_one_story(federation) -> None:
    """Every site's log is whole, and every head that a site kept is in the director's log; a rewritten one is found."""

    def typed(app, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, words)
        return done.exit_code, done.output

    heads = []
    for name in SITES:
        folder = str(federation.folder / name)
        status, said = typed(envoy, "audit", "verify", "--folder", folder)
        assert (status, "whole, signed by this site" in said) == (0, True), said
        _, printed = typed(envoy, "audit", "heads", "--folder", folder)
        heads += ["--heads", str(federation.folder / f"{name}.heads")]
        Path(heads[-1]).write_text(printed, "ascii")
    whole = ("audit", "verify", *heads, "--folder", str(federation.director_folder))
    held = re.search(r"holds all (\d+) heads", typed(director, *whole)[1])
    assert held is not None
    assert int(held[1]) >= 3  # two rounds and the evaluation; and those that came with heartbeats
    federation.end()
    log = federation.director_folder / "audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]))
    DirectorAudit.open(federation.director_folder, "toys").close()  # it goes on as if nothing had been
    assert typed(director, *whole[:2], "--folder", whole[-1])[0] == 0
    status, said = typed(director, *whole)
    assert (status, "cut" in said) == (1, True), said


def test_the_model_is_bit_for_bit_that_of_a_director_that_opens_its_sums_itself(made, experiment):
    with made("relayed", NAMED) as federation:
        relayed = model_of(federation, experiment(f"envoy:{AGGREGATOR}"))
        assert len(logged(federation, AGGREGATOR, "summed for others")) == 3  # two rounds and the evaluation
        assert not logged(federation, "site-a", "summed for others")
        left = {path.name for path in (federation.folder / AGGREGATOR / "work").iterdir()}
        assert not {name for name in left if name.startswith("aggregating")}
    with made("own", ("director",)) as federation:
        assert model_of(federation, experiment("director")) == relayed
        all_logs_are_one_story(federation)


def test_aggregator_and_director_are_killed_before_the_total_and_the_run_goes_on_with_the_same_model(
    made, experiment, wait_until
):
    with made("killed", NAMED) as federation:
        federation.kill_envoy(AGGREGATOR)
        wait_until(lambda: federation.sees(set(SITES) - {AGGREGATOR}), "the aggregator's first end")
        federation.start_doomed_envoy(AGGREGATOR, "before-total", "--round", "1")
        federation.wait_for_all()
        run = federation.submit(experiment(f"envoy:{AGGREGATOR}"), federation.plan())
        wait_until(lambda: federation.is_envoy_dead(AGGREGATOR), "the aggregator's end")
        federation.wait_for_round(run, 1, RoundState.AGGREGATING)
        federation.kill_director()
        federation.start_director()
        federation.start_envoy(AGGREGATOR)
        federation.wait_for_all()
        view = federation.finish(run)
        assert [one.attempt for one in view.rounds] == [1, 1, 1]
        assert federation.trainings() == dict.fromkeys(SITES, 2)
        with federation.operator() as operator:
            interrupted = operator.fetch(view.model)
        log = (federation.director_folder / "audit.jsonl").read_text("utf-8")
        assert log.count('"round closed"') == 3
    with made("undisturbed", NAMED) as federation:
        assert model_of(federation, experiment("director")) == interrupted


def test_sites_that_did_not_name_the_aggregator_take_no_part_and_say_so(made, experiment):
    with made("unnamed", ("director", "site-c")) as federation:
        run = federation.submit(experiment(f"envoy:{AGGREGATOR}"), federation.plan())
        view = federation.wait_for(run, timeout_seconds=60.0)
        assert view.state == "failed"
        assert "aggregators in [secure_aggregation]" in view.reason
