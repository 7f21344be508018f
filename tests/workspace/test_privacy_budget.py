"""A federation whose sites have privacy budgets: rounds run until they are spent, over all studies."""

import fedveil
import pytest
from fedveil.envoy.policy import ProtectionPolicy, Step
from fedveil.envoy.privacy_books import Budget
from fedveil.envoy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedveil.utils.errors import FederationError
from fedveil.utils.privacy.events import Gaussian, Release
from fedveil.utils.privacy.values import Unit
from fedveil.workspace.privacy_report import of_run

NOISED = ProtectionPolicy((Step.CHECK, Step.CLIP, Step.NOISE), max_norm=1.0, noise_multiplier=8.0, metrics=("*",))
RELEASE = (Release(Gaussian(8.0), Unit.SITE),)
BUDGET = Budget(3.0, 1e-5, Unit.PATIENT)
SECURE = """secure_aggregation = "required"
[secure_sum]
equal_weights = true
"""


@pytest.fixture
def sites(toy_site):
    return {name: toy_site(name, count) for name, count in (("north", 20), ("south", 7), ("west", 13), ("east", 9))}


@pytest.fixture
def folder(tmp_path, sites):
    for site in sites:
        with_ledger(tmp_path, site, lambda ledger: ledger.set_budget("toy", BUDGET, "the data manager"))
    return tmp_path


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


def test_rounds_run_until_the_budget_is_spent_and_another_study_begins_with_nothing_left(toy_plan, sites, folder):
    fit = book(folder, "north").rounds_left(RELEASE)
    assert 2 < fit < 10
    with pytest.raises(FederationError, match="privacy budget of this site's data is exhausted"):
        fedveil.simulate(toy_plan, sites, rounds=20, protection=NOISED, folder=folder)
    for site in sites:
        spent = book(folder, site)
        assert len([one for one in spent.spendings if one.is_settled]) == len(spent.spendings) == fit
        assert spent.refused
    with pytest.raises(FederationError, match="privacy budget of this site's data is exhausted"):
        fedveil.simulate(toy_plan, sites, rounds=1, protection=NOISED, folder=folder, seed=9)
    assert {len(book(folder, site).spendings) for site in sites} == {fit}


def test_under_a_secure_sum_rounds_of_noised_updates_fit_and_send_no_metrics(toy_plan, sites, folder):
    done = fedveil.simulate(toy_plan, sites, rounds=2, protection=NOISED, experiment=SECURE, folder=folder)
    assert [(one.state, one.metrics) for one in done.rounds] == [("closed", {})] * 2
    assert all(one.sum.total_weight == len(sites) for one in done.rounds)
    assert {len(book(folder, site).spendings) for site in sites} == {2}
    known = of_run(done.view)  # of the director
    assert known["total_epsilon"] == pytest.approx(book(folder, "north").spent().value)
    assert (known["delta"], known["unit"], known["participants"]) == (1e-5, "patient", len(sites))
    assert known["secure_aggregation"]["state"] == "all"


def test_a_plan_without_a_guarantee_is_refused_before_anything_is_trained(toy_plan, sites, folder):
    with pytest.raises(FederationError, match="without a guarantee per patient"):
        fedveil.simulate(toy_plan, sites, rounds=1, folder=folder)
    assert [book(folder, site).spendings for site in sites] == [()] * len(sites)
