"""Noise inside a secure sum: the sites' parts together have the announced law, and no director makes less of it."""

import dataclasses
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fedveil.utils.errors import ConfigError, SumAbortedError
from fedveil.utils.secure_sum import summation
from fedveil.utils.secure_sum.participant import noise_of
from fedveil.utils.secure_sum.rehearsal import Contribution, plain_total, spec_for
from fedveil.utils.secure_sum.rules import SumFloors
from fedveil.utils.secure_sum.skellam import noise_in
from fedveil.utils.secure_sum.spec import noise_key
from fedveil.utils.secure_sum.terms import (
    LEAST_NOISE,
    MAX_COHORT,
    MOST_NOISE,
    NOISE_STEPS,
    NoiseTerms,
    Suite,
    SumTerms,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

SIZES = (17, 6)
ANY = SumFloors(suites=tuple(Suite))
SECRETS = [bytes([place]) * 32 for place in range(1, 11)]  # fixed, so that no test fails by chance


def terms_of(noise, **changed):
    given_ = {"suite": Suite.X25519, "bounds": (noise.bound,), "max_weight": 1, "equal_weights": True}
    return SumTerms(**{**given_, "noise": noise, **changed})


def with_secrets(attempt):
    given_ = zip(attempt.contributions.items(), SECRETS, strict=False)
    return replace(attempt, contributions={n: replace(one, noise_secret=key) for (n, one), key in given_})


def signed(words):
    return words.view(np.int32).astype(np.int64)


@pytest.mark.parametrize("count", [3, 4, 10])
def test_masked_and_unmasked_integer_sums_with_noise_are_equal_bit_for_bit(network, count):
    attempt = with_secrets(network(count, sizes=SIZES, terms=terms_of(NoiseTerms(4.0, 1.0, 2))))
    outcome = attempt.run()
    assert outcome.refusals == {}
    expected = plain_total(outcome.opened.cohort, attempt.contributions, outcome.survivors, attempt.seed)
    assert np.array_equal(outcome.total, expected)


def test_nothing_but_public_constants_stands_beside_the_noised_numbers(network):
    attempt = with_secrets(network(4, sizes=SIZES, terms=terms_of(NoiseTerms(1e-3, 1.0, 2))))
    tallies = attempt.run().tallies
    assert (tallies.num_examples, tallies.contributions) == (4, 4)
    assert (tallies.clipped, tallies.metrics, tallies.histogram) == ((), (), ())


@pytest.mark.parametrize(("count", "parts", "gone"), [(4, 2, 0), (4, 2, 1), (10, 6, 0)])
def test_the_sum_of_the_sites_noise_is_skellams_with_the_announced_variance(network, count, parts, gone):
    """Of zeros; where nobody drops out the surplus is in it, and it never is less than what is counted."""
    noise, size = NoiseTerms(1.0, 0.5, parts), 40_000
    attempt = network(count, sizes=(size,), terms=terms_of(noise))
    zeros = {name: Contribution(np.zeros(size, np.float32), 1) for name in attempt.contributions}
    attempt = with_secrets(replace(attempt, contributions=zeros))
    names = list(zeros)[gone:]
    cohort = attempt.run().opened.cohort
    drawn = signed(plain_total(cohort, attempt.contributions, names, attempt.seed)[:size])
    counted = (0.5 * NOISE_STEPS) ** 2
    variance = counted * (count - gone) / parts
    assert stats.kstest(drawn / math.sqrt(variance), "norm").pvalue > 0.01
    assert drawn.var() == pytest.approx(variance, rel=0.03)
    assert noise.surplus(count - gone) == pytest.approx(variance / counted)
    assert variance >= counted
    assert stats.kstest(drawn / math.sqrt(variance / 2), "norm").pvalue < 1e-6  # half of it would be seen


def test_small_noise_of_four_sites_has_each_value_as_often_as_skellams_law_says(network):
    """As fine as the sampler goes: each value by itself, by chi-square."""
    from fedveil.utils.secure_sum.skellam_noise import SkellamNoise

    size, part = 60_000, 20.0
    total = np.zeros(size, np.uint32)
    for key in SECRETS[:4]:
        SkellamNoise(part, key).add(total, 0)
    values, points = signed(total), np.arange(-30, 31)
    expected = stats.skellam.pmf(points, 2 * part, 2 * part) * size
    counts = np.array([(values == point).sum() for point in points])
    inside = expected > 50
    outside = size - counts[inside].sum(), size - expected[inside].sum()
    assert stats.chisquare([*counts[inside], outside[0]], [*expected[inside], outside[1]]).pvalue > 0.01


def test_another_attempt_among_others_gives_the_very_same_noised_integers(network):
    """However many are asked: else the difference of two sums of one update would be free of its noise."""
    noise = NoiseTerms(0.7, 1.3, 2)
    first = network(4, sizes=SIZES, terms=terms_of(noise))
    name = next(iter(first.contributions))
    totals = []
    for attempt, asked in ((1, 4), (2, 4), (3, 7), (4, 100)):
        spec = spec_for(SIZES, asked, terms_of(noise), attempt=attempt)
        again = with_secrets(replace(first, spec=spec))
        totals.append(plain_total(again.run().opened.cohort, again.contributions, [name], first.seed))
    assert all(np.array_equal(one, totals[0]) for one in totals[1:])


def test_under_other_terms_over_another_length_or_in_another_round_the_noise_is_unrelated():
    spec = spec_for(SIZES, 4, terms_of(NoiseTerms(1.0, 1.0, 2)))
    others = [
        spec_for(SIZES, 4, terms_of(NoiseTerms(1.0, 1.5, 2))),
        spec_for(SIZES, 4, terms_of(NoiseTerms(2.0, 1.0, 2))),
        spec_for(SIZES, 4, terms_of(NoiseTerms(1.0, 1.0, 3))),
        spec_for((23,), 4, spec.terms),
        spec_for(SIZES, 4, spec.terms, round_number=2),
        spec_for(SIZES, 4, spec.terms, run="another-1"),
        spec_for(SIZES, 4, spec.terms, model=b"another"),
    ]
    keys = {noise_key(SECRETS[0], one) for one in (spec, *others)} | {noise_key(SECRETS[1], spec)}
    assert len(keys) == len(others) + 2
    assert noise_key(SECRETS[0], replace(spec, ref=replace(spec.ref, attempt=9))) == noise_key(SECRETS[0], spec)


def test_the_noise_is_bound_into_what_all_sites_sign():
    digests = {spec_for(SIZES, 4, terms_of(NoiseTerms(1.0, *rest))).digest for rest in ((1.0, 2), (1.5, 2), (1.0, 3))}
    plain = SumTerms(Suite.X25519, (32.0,), 1, equal_weights=True)
    assert len(digests | {spec_for(SIZES, 4, plain).digest}) == 4


def test_a_site_that_reckons_with_more_colluders_than_the_noise_shares_nothing(network):
    """Its own floors decide: threshold 7 of 10 with 1 that may collude leaves 6 parts, with 2 only 5."""
    own = terms_of(NoiseTerms(1.0, 1.0, 6))
    assert with_secrets(network(10, terms=own, floors=ANY)).run().aborted is None
    wary = replace(ANY, colluding=2)
    outcome = with_secrets(network(10, terms=own, floors=wary)).run()
    assert outcome.aborted is not None
    said = {str(error) for error in outcome.refusals.values()}
    assert any("the noise is in 6 parts" in one and "counts on 5 honest envoys" in one for one in said), said


def test_the_aggregator_takes_a_threshold_that_has_the_noise_or_makes_no_sum(network):
    attempt = with_secrets(network(4, terms=terms_of(NoiseTerms(1.0, 1.0, 3))))
    outcome = attempt.run()
    assert (outcome.aborted, outcome.opened.cohort.threshold) == (None, 4)
    outcome = with_secrets(network(4, terms=terms_of(NoiseTerms(1.0, 1.0, 4)))).run()
    assert isinstance(outcome.aborted, SumAbortedError)
    assert "its noise needs 4 honest ones beside 1" in str(outcome.aborted)


def test_a_sum_with_noise_is_not_made_without_a_secret(network):
    attempt = network(4, terms=terms_of(NoiseTerms(1.0, 1.0, 2)))
    with pytest.raises(ValueError, match="no secret to draw it from"):
        attempt.run()
    assert noise_of(replace(attempt.spec, sizes=()), None) is None  # an evaluation has no numbers to add noise to


def test_no_secret_is_in_a_repr():
    assert SECRETS[0].hex() not in repr(Contribution(None, 1, noise_secret=SECRETS[0]))
    assert repr(SECRETS[0]) not in repr(Contribution(None, 1, noise_secret=SECRETS[0]))


@given(st.floats(LEAST_NOISE, MOST_NOISE), st.integers(1, MAX_COHORT), st.integers(-60, 60), st.integers(1, 10**9))
@settings(deadline=None)
def test_whatever_terms_may_say_can_be_drawn_and_does_not_leave_the_ring(multiplier, parts, exponent, size):
    """``SkellamSum`` checks both, for 128 sites at twelve deviations; their vectors fill a 32nd of the half ring."""
    noise = noise_in(NoiseTerms(2.0**exponent, multiplier, parts), size)
    deviation = math.sqrt(MAX_COHORT * noise.site_variance)
    assert MAX_COHORT * NOISE_STEPS + 12 * deviation < 1 << 31
    assert noise.site_variance * parts == pytest.approx((multiplier * NOISE_STEPS) ** 2, rel=1e-6)
    assert noise.bound == pytest.approx(32 * noise.max_norm)
    # Bernstein's bound on a Skellam variable beyond twelve deviations
    log_tail = math.log(2) - 72 / (1 + 4 / deviation)
    assert log_tail < math.log(1e-29)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: NoiseTerms(0.0, 1.0, 2), "max_norm"),
        (lambda: NoiseTerms(math.inf, 1.0, 2), "max_norm"),
        (lambda: NoiseTerms(1.0, 0.0, 2), "noise_multiplier"),
        (lambda: NoiseTerms(1.0, math.nan, 2), "noise_multiplier"),
        (lambda: NoiseTerms(1.0, 17.0, 2), "noise_multiplier"),
        (lambda: NoiseTerms(1.0, 1.0, 0), "in 0 parts"),
        (lambda: NoiseTerms(1.0, 1.0, 129), "in 129 parts"),
        (lambda: SumTerms(noise=NoiseTerms(1.0, 1.0, 2), bounds=(32.0,)), "every site weighs 1"),
        (lambda: terms_of(NoiseTerms(1.0, 1.0, 2), histogram=True), "no histogram"),
        (lambda: terms_of(NoiseTerms(1.0, 1.0, 2), group=1), "no groups"),
        (lambda: terms_of(NoiseTerms(1.0, 1.0, 2), bounds=(1.0,)), "expected 32.0 for all"),
        (lambda: terms_of(NoiseTerms(1.0, 1.0, 2), bounds=(32.0, 32.0)), "expected 32.0 for all"),
    ],
)
def test_terms_that_cannot_be_are_refused_with_what_is_wrong(wrong, said):
    with pytest.raises(ConfigError, match=said):
        wrong()


def test_terms_come_back_from_json_as_they_were_and_nothing_else_does():
    noise = NoiseTerms(0.1, 1.7, 6)
    assert NoiseTerms.from_json(json.loads(json.dumps(noise.to_json()))) == noise
    assert NoiseTerms.from_json(None) is None
    with pytest.raises(TypeError):
        NoiseTerms.from_json(noise.to_json() | {"parts": 2.5})


def test_the_mean_is_off_by_the_noise_and_no_more(network):
    """Ten sites, threshold 7, one that may collude: 6 parts of noise in a sum of 10."""
    noise, size = NoiseTerms(1.0, 0.25, 6), 20_000
    attempt = network(10, sizes=(size,), terms=terms_of(noise))
    rng = np.random.default_rng(0)
    units = {name: rng.standard_normal(size) for name in attempt.contributions}
    units = {name: (one / np.linalg.norm(one)).astype(np.float32) for name, one in units.items()}
    given_ = {name: dataclasses.replace(attempt.contributions[name], payload=one) for name, one in units.items()}
    outcome = with_secrets(replace(attempt, contributions=given_)).run()
    error = (outcome.mean - np.mean(list(units.values()), axis=0)) * 10
    assert error.std() == pytest.approx(0.25 * math.sqrt(noise.surplus(10)), rel=0.03)
    assert summation.fixed_point(outcome.opened.spec).max_total == MAX_COHORT
