"""Intervals against scipy and by hand, and the claims that they forbid."""

import math

import numpy as np
import pytest
from fedveil.gradient_leakage.confidence import (
    MIN_TARGETS,
    Rate,
    bootstrap_mean,
    equivalence,
    tpr_at_fpr,
    upper_bound,
)
from fedveil.utils.errors import ConfigError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@given(st.integers(1, 600), st.data())
@settings(max_examples=30, deadline=None)
def test_a_rates_bounds_are_clopper_and_pearsons(trials, data):
    successes = data.draw(st.integers(0, trials))
    rate, test = Rate(successes, trials), binomtest(successes, trials)
    exact = test.proportion_ci(0.95, "exact")
    assert (rate.interval.low, rate.interval.high) == pytest.approx((exact.low, exact.high))
    one_sided = binomtest(successes, trials, alternative="less").proportion_ci(0.95, "exact")
    assert rate.upper == pytest.approx(one_sided.high)


def test_none_of_thirty_bounds_rank_one_at_nine_and_a_half_percent():
    assert Rate(0, 30).upper == pytest.approx(0.095, abs=0.0005)


def test_an_interval_of_the_mean_covers_it_as_often_as_it_says():
    draws = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        found = bootstrap_mean(draws.normal(3, 1, 40), np.random.default_rng(2))
        covered += found.low <= 3 <= found.high
    assert 85 <= covered <= 100


def test_many_images_of_one_patient_are_one_observation(rng):
    values = np.repeat(np.random.default_rng(1).normal(size=10), 50)
    patients = [f"p{n // 50}" for n in range(500)]
    by_image = bootstrap_mean(values, rng)
    by_patient = bootstrap_mean(values, rng, patients)
    assert by_patient.value == by_image.value
    assert by_patient.high - by_patient.low > 4 * (by_image.high - by_image.low)


def test_what_was_not_measured_is_left_out_and_one_patient_has_no_interval(rng):
    assert bootstrap_mean([1.0, math.nan, 3.0], rng).value == 2.0
    alone = bootstrap_mean([1.0, 2.0], rng, ["a", "a"])
    assert alone.value == 1.5
    assert math.isnan(alone.low)
    assert math.isnan(bootstrap_mean([math.nan], rng).value)
    with pytest.raises(ConfigError, match="1 patients for 2 values"):
        bootstrap_mean([1.0, 2.0], rng, ["a"])


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).normal(size=20)
    assert bootstrap_mean(values, np.random.default_rng(3)) == bootstrap_mean(values, np.random.default_rng(3))


def test_the_upper_bound_is_nearer_than_the_intervals_end(rng):
    values = np.random.default_rng(1).normal(size=200)
    assert values.mean() < upper_bound(values, rng) < bootstrap_mean(values, rng).high


def test_true_positives_at_a_rate_by_hand():
    scores = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    members = [True, True, False, True, False, False, True, False, False, False]  # others: 7 5 4 2 1 0
    none = tpr_at_fpr(scores, members, 0.0)
    assert (none.threshold, none.true_positives, none.false_positives) == (7, Rate(2, 4), Rate(0, 6))
    one = tpr_at_fpr(scores, members, 1 / 6)
    assert (one.threshold, one.true_positives, one.false_positives) == (5, Rate(3, 4), Rate(1, 6))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.floats(0, 0.99), st.integers(0, 10))
@settings(max_examples=50, deadline=None)
def test_the_rate_of_false_positives_is_never_exceeded_also_with_equal_scores(scores, fpr, seed):
    members = np.random.default_rng(seed).random(len(scores)) < 0.5
    members[:2] = True, False
    assert tpr_at_fpr(scores, members, fpr).false_positives.value <= fpr + 1e-9


def test_a_rate_that_the_others_cannot_resolve_shows_in_its_interval():
    found = tpr_at_fpr([3.0] * 5 + [1.0] * 50, [True] * 5 + [False] * 50, 0.001)
    assert found.true_positives.value == 1.0
    assert found.false_positives.interval.high > 0.05


@pytest.mark.parametrize(
    ("scores", "members"), [([1.0, 2.0], [True, True]), ([math.nan, 1.0], [True, False]), ([1.0], [True, False])]
)
def test_membership_that_cannot_be_measured_is_refused(scores, members):
    with pytest.raises(ConfigError):
        tpr_at_fpr(scores, members, 0.1)


def test_no_leakage_is_claimed_only_where_both_bounds_hold(rng):
    count, gains = 600, np.random.default_rng(1).normal(0, 0.05, 600)
    none = equivalence(gains, np.zeros(count, bool), 1000, rng)
    assert none.holds
    assert none.ssim_gain_upper < 0.02
    assert none.rank1_upper == pytest.approx(Rate(0, count).upper)
    leaking = equivalence(gains + 0.03, np.zeros(count, bool), 1000, rng)
    assert not leaking.holds
    assert "SSIM gain" in leaking.objections[0]
    known = equivalence(gains, np.arange(count) < 20, 1000, rng)
    assert "rank@1" in known.objections[0]


def test_few_targets_prove_nothing_however_well_they_look(rng):
    few = equivalence(np.zeros(30), np.zeros(30, bool), 1000, rng)
    assert not few.holds
    assert "30 targets" in few.objections[0]
    of_few_patients = equivalence(np.zeros(600), np.zeros(600, bool), 1000, rng, [str(n % 100) for n in range(600)])
    assert "100 targets" in of_few_patients.objections[0]


def test_with_a_gallery_of_a_hundred_four_hits_pass_and_five_do_not(rng):
    passes = [equivalence(np.zeros(MIN_TARGETS), np.arange(MIN_TARGETS) < hits, 100, rng).holds for hits in (4, 5)]
    assert passes == [True, False]
