"""Four hospitals whose updates leave them inside secure sums alone: real processes, real sockets, and who dies when."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import fedveil
import numpy as np
import pytest
from fedveil.envoy.journal import read_outbox
from fedveil.envoy.promises import select
from fedveil.utils.messages import RunId
from fedveil.utils.secure_sum.rules import Promise
from safetensors.numpy import load

SITES = ("site-a", "site-b", "site-c", "site-d")
OTHERS = SITES[:3]
DOOMED = "site-d"
TABLE = "[secure_sum]\nclip = 4.0\nmax_examples = 100\nstage_timeout_seconds = 20\n"
Model = dict[str, np.ndarray]


@pytest.fixture
def secure(settings) -> Callable[..., str]:
    """Makes an experiment.toml whose rounds are secure sums."""

    def make(name: str = "simulation", rounds: int = 2) -> str:
        return settings(name, rounds=rounds, secure="required") + TABLE

    return make


def promised(folder: Path, run: RunId, number: int) -> list[Promise]:
    """What a site promised in one round, read beside it."""
    database = sqlite3.connect(folder / "envoy.sqlite")
    try:
        return [Promise.from_json(row.promise) for row in select(database, run) if row.round == number]
    finally:
        database.close()


def trained(model: Model, site: str, number: int) -> tuple[Model, int]:
    """One site's training, as `WorkOrder.seed_for` states its lot."""
    words = ["fedveil/local", "training", hashlib.sha256(b"toy").hexdigest(), site, number]
    text = json.dumps(words, separators=(",", ":")).encode()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)
    num_examples = int(rng.integers(10, 100))
    local = {k: np.tanh(model[k] + rng.standard_normal(model[k].shape, np.float32)) for k in ("bias", "weights")}
    return local, num_examples


def federated(sums: list[tuple[str, ...]]) -> Model:
    """FedAvg over those who were in each round's sum, written down plainly."""
    model = {"weights": np.linspace(-1, 1, 3000, dtype=np.float32), "bias": np.zeros((7, 11), np.float32)}
    for number, sites in enumerate(sums, start=1):
        answers = [trained(model, site, number) for site in sites]
        everybody = sum(n for _, n in answers)
        model = {
            k: model[k] + sum((local[k] - model[k]) * np.float32(n / everybody) for local, n in answers) for k in model
        }
    return model


def simulated(plan, rounds: int) -> bytes:
    """The model of the same run in one process."""
    seed = int.from_bytes(hashlib.sha256(b"toy").digest())
    experiment = f'secure_aggregation = "required"\n{TABLE}'
    return fedveil.simulate(plan, dict.fromkeys(SITES), rounds=rounds, seed=seed, experiment=experiment).model


def sums_of(view) -> list[tuple[str, ...]]:
    """Who was in the sum of each training round."""
    return [one.sum.survivors for one in view.rounds if one.state == "closed" and one.kind.value == "train"]


def fetched(federation, view) -> bytes:
    with federation.operator() as operator:
        return operator.fetch(view.model)


def test_a_run_of_secure_sums_gives_the_bits_of_a_simulation_and_shows_no_single_site(four, secure):
    plan = four.plan()
    view = four.finish(four.submit(secure(rounds=3), plan))
    model = fetched(four, view)
    assert model == simulated(plan, 3)
    for name, array in federated([SITES] * 3).items():
        np.testing.assert_allclose(load(model)[name], array, atol=1e-6)
    assert [(one.sum.threshold, one.sum.cohort, one.sum.survivors) for one in view.rounds] == [(3, 4, SITES)] * 4
    for record in four.rounds(view.run):
        answers = four.history.submissions(record.round.ref)
        assert {(answer.num_examples, answer.metrics) for answer in answers} <= {(0, ())}
    for site in SITES:
        assert [row.kind for row in read_outbox(four.folder / site)] == ["masked"] * 3 + ["masked metrics"]
        assert (four.folder / site / "audit.jsonl").read_text().count('"consented"') == 4
        assert all(row.received_at for row in read_outbox(four.folder / site))
    assert four.trainings() == dict.fromkeys(SITES, 3)


def test_noise_that_the_sites_draw_together_is_in_the_model(four, settings):
    """Four sites and two parts: twice the counted variance. 3,077 numbers: a tenth off would be eight deviations."""
    clipped = "[protection]\nmax_norm = 0.5\n[secure_sum]\nequal_weights = true\n"
    plan, seed = four.plan(), int.from_bytes(hashlib.sha256(b"toy").digest())
    run = four.submit(settings("simulation", rounds=1, secure="required") + clipped + "noise_multiplier = 2.0\n", plan)
    view = four.finish(run)
    assert [one.sum.survivors for one in view.rounds] == [SITES]
    quiet = f'secure_aggregation = "required"\n{clipped}'
    without = load(fedveil.simulate(plan, dict.fromkeys(SITES), rounds=1, seed=seed, experiment=quiet).model)
    noised = load(fetched(four, view))
    error = np.concatenate([(noised[name] - without[name]).ravel() for name in sorted(without)])
    assert 0.9 < error.std() / (2.0 * 0.5 * np.sqrt(2) / 4) < 1.1
    for site in SITES:
        (row,) = read_outbox(four.folder / site)
        assert (row.kind, row.has_noise, row.metrics) == ("masked", True, ())
        assert "Skellam noise 2.0 x 0.5 of 2 sites together, secure sum of 4, threshold 3" in row.chain
        assert (four.folder / site / "envoy.sqlite").stat().st_mode & 0o777 == 0o600


def test_long_polls_bring_the_same_model(four, secure):
    plan = four.plan()
    for site in SITES:
        four.kill_envoy(site)
        file = four.folder / site / "envoy.toml"
        file.write_text('work = "poll"\n' + file.read_text("utf-8"), "utf-8")
        four.start_envoy(site)
    four.wait_for_all()
    view = four.finish(four.submit(secure(rounds=2), plan))
    assert fetched(four, view) == simulated(plan, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "is_summed"),
    [
        ("after-shares", False),
        ("after-vector", False),
        ("after-header", True),
        ("before-consent", True),
        ("after-consent", True),
        ("before-unmasking", True),
    ],
)
def test_a_site_that_is_killed_costs_no_attempt_at_any_stage_and_is_back_in_the_next_round(
    four, secure, wait_until, when, is_summed
):
    four.kill_envoy(DOOMED)
    wait_until(lambda: DOOMED not in four.connected(), "its absence")
    four.start_doomed_envoy(DOOMED, when)
    four.wait_for_all()
    run = four.submit(secure(rounds=2), four.plan(seconds=0.05))
    wait_until(lambda: four.is_envoy_dead(DOOMED), "its death")
    wait_until(lambda: four.round(run).round.ref.round == 2, "the first round's end")
    four.start_envoy(DOOMED)
    view = four.finish(run)
    first, second = sums_of(view)
    assert first == (SITES if is_summed else OTHERS)
    assert {one.attempt for one in view.rounds} == {1}
    for name, array in federated([first, second]).items():
        np.testing.assert_allclose(load(fetched(four, view))[name], array, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["after-shares", "after-header", "after-consent"])
def test_an_envoy_that_comes_back_in_the_middle_of_a_sum_sits_it_out(four, secure, wait_until, when):
    four.kill_envoy(DOOMED)
    wait_until(lambda: DOOMED not in four.connected(), "its absence")
    four.start_doomed_envoy(DOOMED, when)
    four.wait_for_all()
    run = four.submit(secure(rounds=2), four.plan(seconds=0.05))
    wait_until(lambda: four.is_envoy_dead(DOOMED), "its death")
    before = promised(four.folder / DOOMED, run, 1)
    four.start_envoy(DOOMED)
    view = four.finish(run)
    (after,) = promised(four.folder / DOOMED, run, 1)
    assert [after] == before  # nothing was said twice
    assert after.unmasked is False
    assert {one.attempt for one in view.rounds} == {1}
    for name, array in federated(sums_of(view)).items():
        np.testing.assert_allclose(load(fetched(four, view))[name], array, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["after-shares", "after-vector"])
def test_an_attempt_that_too_many_left_is_repeated_with_the_same_updates_and_nobody_trains_twice(
    four, secure, wait_until, when
):
    plan, doomed = four.plan(), SITES[2:]
    for site in doomed:
        four.kill_envoy(site)
    wait_until(lambda: not four.connected() & set(doomed), "their absence")
    for site in doomed:
        four.start_doomed_envoy(site, when)
    four.wait_for_all(90.0)
    run = four.submit(secure(rounds=2), plan)
    for site in doomed:
        wait_until(lambda site=site: four.is_envoy_dead(site), "its death")
        four.start_envoy(site)
    view = four.finish(run)
    first = [one for one in view.rounds if one.round == 1]
    assert [one.state for one in first] == ["failed", "closed"]
    assert sums_of(view) == [SITES] * 2
    assert fetched(four, view) == simulated(plan, 2)
    assert four.trainings() == dict.fromkeys(SITES, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "when"),
    [
        (2, "after"),  # of four adverts
        (5, "before"),  # the cohort is closed
        (12, "before"),  # of the shares
        (20, "after"),  # of the masked words
        (23, "after"),  # the survivors are named
        (30, "after"),  # of the consents
        (38, "before"),  # of the shares of masks
        (47, "after"),  # in the second round
    ],
)
def test_a_director_killed_in_any_step_of_a_sum_goes_on_and_the_model_is_the_same(four, secure, event, when):
    plan = four.plan()
    four.kill_director()
    four.start_doomed_director("--kill-at-event", str(event), "--when", when)
    four.submit_once(secure(rounds=2), plan)
    while not four.is_director_dead:
        four.director.wait(60.0)
    four.start_director()
    four.wait_for_director()
    view = four.finish(four.record("simulation").run)
    assert sums_of(view) == [SITES] * 2
    assert fetched(four, view) == simulated(plan, 2)
    assert four.trainings() == dict.fromkeys(SITES, 2)
