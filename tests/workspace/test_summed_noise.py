"""A federation whose sites draw their noise together, inside the secure sum: no party must be trusted with the rest."""

import fedveil
import numpy as np
import pytest
from fedveil.envoy.journal import read_outbox
from fedveil.envoy.policy import ProtectionPolicy, Step
from fedveil.envoy.privacy_books import Budget
from fedveil.envoy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedveil.utils.errors import FederationError
from fedveil.utils.privacy.events import Skellam
from fedveil.utils.privacy.values import Unit
from fedveil.workspace.privacy_report import of_run
from safetensors.numpy import load

BUDGET = Budget(3.0, 1e-5, Unit.PATIENT)
CLIPPED = """secure_aggregation = "required"
[protection]
max_norm = 0.5
[secure_sum]
equal_weights = true
"""
NOISED = CLIPPED + "noise_multiplier = 8.0\n"


@pytest.fixture
def sites(toy_site):
    return {name: toy_site(name, count) for name, count in (("north", 20), ("south", 7), ("west", 13), ("east", 9))}


def with_ledger(folder, site, what):
    home = folder / "sites" / site
    home.mkdir(parents=True, exist_ok=True)
    ledger = PrivacyLedger(home / LEDGER_FILE)
    try:
        return what(ledger)
    finally:
        ledger.close()


def book(folder, site):
    return with_ledger(folder, site, lambda ledger: ledger.books().of("toy"))


@pytest.fixture
def folder(tmp_path, sites):
    for site in sites:
        with_ledger(tmp_path, site, lambda ledger: ledger.set_budget("toy", BUDGET, "the data manager"))
    return tmp_path


def vector(done):
    return np.concatenate([array.ravel() for _, array in sorted(load(done.model).items())])


def test_sites_with_budgets_train_under_noise_that_they_draw_together(toy_plan, sites, folder):
    done = fedveil.simulate(toy_plan, sites, rounds=2, experiment=NOISED, folder=folder)
    assert [(one.state, one.metrics, one.sum.total_weight) for one in done.rounds] == [("closed", {}, 4)] * 2
    for site in sites:
        held = book(folder, site)
        assert [one.is_settled for one in held.spendings] == [True, True]
        assert not any(one.is_bare for one in held.spendings)
        (release,) = held.spendings[0].releases
        assert (type(release.mechanism), release.unit) == (Skellam, Unit.SITE)
        assert release.mechanism.noise_multiplier == pytest.approx(8.0, rel=1e-4)
        assert held.history(Unit.PATIENT)[0].noise_multiplier == pytest.approx(4.0, rel=1e-4)
        assert "Skellam in the secure sum" in str(held.spent())
        assert {row.has_noise for row in read_outbox(folder / "sites" / site)} == {True}
    known = of_run(done.view)  # of the director
    assert known["total_epsilon"] == pytest.approx(book(folder, "north").spent().value)
    assert (known["delta"], known["unit"], known["participants"]) == (1e-5, "patient", len(sites))


def test_the_noise_in_the_model_is_of_the_announced_size_with_its_surplus(toy_plan, sites):
    """Four sites, two parts: twice the counted variance. Bounds that chi-square of 17 leaves once in 10^9."""
    clipped = fedveil.simulate(toy_plan, sites, rounds=1, experiment=CLIPPED, seed=1)
    noised = fedveil.simulate(toy_plan, sites, rounds=1, experiment=NOISED, seed=1)
    deviation = 8.0 * 0.5 * np.sqrt(4 / 2) / 4
    error = (vector(noised) - vector(clipped)) / deviation
    assert 0.5 < np.square(error).sum() < 90
    again = fedveil.simulate(toy_plan, sites, rounds=1, experiment=NOISED, seed=1)
    assert not np.allclose(vector(again), vector(noised))  # noise is not repeated


def test_sites_whose_own_chain_adds_noise_take_part_and_count_their_own(toy_plan, sites, tmp_path):
    own = ProtectionPolicy((Step.CHECK, Step.CLIP, Step.NOISE), max_norm=0.25, noise_multiplier=3.0)
    done = fedveil.simulate(toy_plan, sites, rounds=1, experiment=NOISED, protection=own, folder=tmp_path / "own")
    assert [one.state for one in done.rounds] == ["closed"]
    (spent,) = book(tmp_path / "own", "north").spendings
    assert [str(one.mechanism) for one in spent.releases] == ["Gaussian, noise 3, 1 release"]


def test_the_same_run_without_noise_is_refused_by_sites_with_budgets(toy_plan, sites, folder):
    with pytest.raises(FederationError, match="without a guarantee per patient"):
        fedveil.simulate(toy_plan, sites, rounds=1, experiment=CLIPPED, folder=folder)
    assert [book(folder, site).spendings for site in sites] == [()] * len(sites)


def test_rounds_run_until_the_budget_is_spent(toy_plan, sites, folder):
    with pytest.raises(FederationError, match="privacy budget of this site's data is exhausted"):
        fedveil.simulate(toy_plan, sites, rounds=20, experiment=NOISED, folder=folder)
    spent = {len(book(folder, site).spendings) for site in sites}
    assert len(spent) == 1
    assert 0 < spent.pop() < 10
