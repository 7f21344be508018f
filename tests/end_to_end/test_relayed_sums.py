"""Secure sums that one of the hospitals opens, while the director relays: real processes, real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedveil.director.rounds import RoundState
from fedveil.utils.audit_chain import read_entries

SITES = ("site-a", "site-b", "site-c", "site-d")
AGGREGATOR = "site-d"


@pytest.fixture
def made(request, tmp_path: Path):
    """Makes federations of four: ``made(folder, aggregators)`` says whom each site lets sum."""
    four = request.getfixturevalue("toy_federation")

    @contextmanager
    def make(folder: str, aggregators: dict[str, list[str]]) -> Iterator[object]:
        with four(tmp_path / folder) as federation:
            federation.set_up()
            for name, named in aggregators.items():
                file = federation.folder / name / "envoy.toml"
                lines = file.read_text("utf-8").rstrip() + f"\naggregators = {json.dumps(named)}\n"
                file.write_text(lines, "utf-8")
                federation.kill_envoy(name)
                federation.start_envoy(name)
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


EVERYWHERE = {name: ["director", AGGREGATOR] for name in SITES}


def model_of(federation, settings: str) -> bytes:
    federation.wait_for_all()
    view = federation.finish(federation.submit(settings, federation.plan()))
    with federation.operator() as operator:
        return operator.fetch(view.model)


def logged(federation, name: str, what: str) -> list[dict[str, object]]:
    entries = read_entries(federation.folder / name / "audit.jsonl")
    return [dict(entry.event) for entry in entries if entry.event["what"] == what]


def test_the_model_is_bit_for_bit_that_of_a_director_that_opens_its_sums_itself(made, experiment):
    with made("relayed", EVERYWHERE) as federation:
        relayed = model_of(federation, experiment(f"envoy:{AGGREGATOR}"))
        assert len(logged(federation, AGGREGATOR, "summed for others")) == 3  # two rounds and the evaluation
        assert not logged(federation, "site-a", "summed for others")
        left = {path.name for path in (federation.folder / AGGREGATOR / "work").iterdir()}
        assert not {name for name in left if name.startswith("aggregating")}
    with made("own", {}) as federation:
        assert model_of(federation, experiment("director")) == relayed


def test_an_aggregator_that_is_killed_while_it_is_asked_comes_back_and_gives_the_sum(made, experiment, wait_until):
    with made("killed", EVERYWHERE) as federation:
        federation.wait_for_all()
        run = federation.submit(experiment(f"envoy:{AGGREGATOR}"), federation.plan())
        wait_until(lambda: federation.says(AGGREGATOR, "training ends"), "the first update")
        federation.wait_for_round(run, 1, RoundState.CLOSED)
        federation.kill_envoy(AGGREGATOR)
        federation.start_envoy(AGGREGATOR)
        federation.finish(run)


def test_sites_that_did_not_name_the_aggregator_take_no_part_and_say_so(made, experiment):
    named = {name: ["director"] for name in SITES[:2]} | {AGGREGATOR: [AGGREGATOR]}
    with made("unnamed", named) as federation:
        federation.wait_for_all()
        run = federation.submit(experiment(f"envoy:{AGGREGATOR}"), federation.plan())
        view = federation.wait_for(run, timeout_seconds=60.0)
        assert view.state == "failed"
        assert "aggregators in [secure_aggregation]" in view.reason
