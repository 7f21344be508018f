"""What ends a run before its budget is passed, and what of a budget contradicts the plan."""

import pytest
from fedveil.director.privacy_budget import (
    BudgetMechanism,
    PrivacyBudget,
    Spent,
    a_round_of,
    check_budget,
    exhausted,
    next_epsilon,
)
from fedveil.utils.errors import ConfigError
from fedveil.utils.messages import EnvoyName
from fedveil.utils.privacy.events import Gaussian, SampledGaussian
from fedveil.utils.privacy.planning import rounds_within
from fedveil.utils.privacy.values import PublishedEpsilon, Unit
from fedveil.utils.secure_sum.terms import NoiseTerms
from hypothesis import given
from hypothesis import strategies as st

A_ROUND = SampledGaussian(0.03, 1.5, 10)
BUDGET = PrivacyBudget(3.0, 1e-5)
A = EnvoyName("a")


def told(*epsilons: float, delta: float = 1e-5) -> list[PublishedEpsilon]:
    return [PublishedEpsilon(one, delta, Unit.PATIENT) for one in epsilons]


@pytest.mark.parametrize("values", [(0.0,), (float("inf"),), (1.0, 0.0), (1.0, 1.0)])
def test_a_budget_that_bounds_nothing_is_refused(values):
    with pytest.raises(ConfigError, match="expected more than 0"):
        PrivacyBudget(*values)


def test_a_run_ends_after_as_many_rounds_as_fit_and_not_before():
    room = rounds_within(A_ROUND, BUDGET.epsilon, BUDGET.delta)
    assert room >= 2
    assert exhausted(BUDGET, A_ROUND, Spent(room - 1, {})) is None
    assert "has room for" in exhausted(BUDGET, A_ROUND, Spent(room, {}))


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_run_that_is_over_never_goes_on_with_more_rounds(rounds, more):
    if exhausted(BUDGET, A_ROUND, Spent(rounds, {})) is not None:
        assert exhausted(BUDGET, A_ROUND, Spent(rounds + more, {})) is not None


def test_another_round_is_taken_to_spend_what_the_last_one_did():
    assert next_epsilon(told(1.0, 1.75)) == 2.5
    assert exhausted(BUDGET, None, Spent(2, {A: told(1.0, 1.75)})) is None
    assert "another round would be epsilon 3.5" in exhausted(BUDGET, None, Spent(2, {A: told(1.5, 2.5)}))


def test_a_site_that_published_the_whole_budget_ends_the_run_though_another_has_much_left():
    reason = exhausted(BUDGET, None, Spent(1, {A: told(0.1), EnvoyName("b"): told(3.0)}))
    assert reason.startswith("privacy_budget: b publishes epsilon 3 ")


def test_what_is_published_at_a_larger_delta_bounds_nothing():
    assert "says nothing at delta 1e-05" in exhausted(BUDGET, None, Spent(1, {A: told(0.1, delta=1e-3)}))
    assert not BUDGET.fits(told(0.1, delta=1e-3)[0])


def test_a_site_that_is_silent_ends_a_run_whose_plan_adds_no_noise_and_no_other():
    spent = Spent(1, {}, frozenset({A}))
    assert "publish no epsilon" in exhausted(BUDGET, None, spent)
    assert exhausted(BUDGET, A_ROUND, spent) is None


def test_what_a_round_releases_is_what_sites_count():
    noise = NoiseTerms(1.0, 1.0, 4)
    assert a_round_of(A_ROUND, 0.5, None, 10) is A_ROUND
    assert a_round_of(None, 0.5, None, 10) == Gaussian(0.5)
    assert a_round_of(None, 0.0, noise, 10).noise_multiplier == pytest.approx(1.0, rel=0.1)
    assert a_round_of(None, 0.0, None, 10) is None


@pytest.mark.parametrize(
    ("budget", "a_round", "delta", "words"),
    [
        (BUDGET, A_ROUND, 1e-6, ["privacy_budget.delta", "plan's privacy has delta"]),
        (
            PrivacyBudget(3.0, 1e-5, BudgetMechanism.SKELLAM),
            A_ROUND,
            1e-5,
            ["mechanism is skellam", "the plan's noise"],
        ),
        (BUDGET, a_round_of(None, 0.0, NoiseTerms(1.0, 1.0, 4), 10), None, ["gaussian", "secure_sum.noise_multiplier"]),
        (PrivacyBudget(0.01), A_ROUND, 1e-5, ["has room for no round"]),
    ],
)
def test_a_budget_that_contradicts_the_plan_is_refused_with_both_named(budget, a_round, delta, words):
    with pytest.raises(ConfigError) as refused:
        check_budget(budget, a_round, delta)
    assert [word for word in words if word not in str(refused.value)] == []
