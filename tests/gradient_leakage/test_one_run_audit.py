import math

import numpy as np
import pytest
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.one_run_audit import (
    OneRunAudit,
    chance_under,
    epsilon_lower_bound,
    gaussian_epsilon,
)
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.utils.errors import ConfigError
from fedveil.utils.tensors import Layout, Role
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, norm

SIZE, DELTA = 200, 1e-6


def gaussian_sum(noise_multiplier, rng, *, clips=True, max_norm=1.0):
    """The sum of clipped contributions with noise, as the mechanism promises it; ``clips`` plants a bug."""

    def release(contributions):
        norms = np.linalg.norm(contributions, axis=1, keepdims=True)
        kept = contributions * np.minimum(1, max_norm / norms) if clips else contributions
        return kept.sum(0) + rng.normal(0, noise_multiplier * max_norm, contributions.shape[1])

    return release


def audited(release, seed, **options):
    return OneRunAudit(1.0, DELTA, **options)(release, SIZE, np.random.default_rng(seed))


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 2.0, 4.0])
def test_the_bound_stays_below_the_true_epsilon_of_the_gaussian_mechanism(noise_multiplier):
    true = gaussian_epsilon(noise_multiplier, DELTA)
    for seed in range(5):
        found = audited(gaussian_sum(noise_multiplier, np.random.default_rng(100 + seed)), seed)
        assert not found.contradicts(true)
        assert found.epsilon > 0.15 * true  # and it is no empty bound


@pytest.mark.parametrize("noise_multiplier", [1.5, 2.0, 3.0])
def test_half_the_noise_is_caught(noise_multiplier):
    claimed = gaussian_epsilon(noise_multiplier, DELTA)
    for seed in range(3):
        bugged = gaussian_sum(noise_multiplier / 2, np.random.default_rng(100 + seed))
        assert audited(bugged, seed).contradicts(claimed)


@pytest.mark.parametrize("noise_multiplier", [1.5, 2.0, 4.0])
def test_a_missing_clip_is_caught(noise_multiplier):
    bugged = gaussian_sum(noise_multiplier, np.random.default_rng(1), clips=False)
    assert audited(bugged, 0, canaries=20_000).contradicts(gaussian_epsilon(noise_multiplier, DELTA))


def test_canaries_as_long_as_the_bound_miss_the_missing_clip():
    bugged = gaussian_sum(2.0, np.random.default_rng(1), clips=False)
    assert not audited(bugged, 0, overshoot=1.0).contradicts(gaussian_epsilon(2.0, DELTA))


def test_a_release_that_shows_nothing_gives_no_bound():
    noise = np.random.default_rng(1)
    assert audited(lambda seen: noise.normal(size=seen.shape[1]), 0, canaries=20_000).epsilon == 0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_randomised_response_has_nearly_the_epsilon_it_claims_and_never_more(epsilon):
    # the mechanism for which the theorem is tight: each coin is told truly with probability e^eps / (1 + e^eps)
    right, audit = 1 / (1 + math.exp(-epsilon)), OneRunAudit(1.0, 0.0, canaries=20_000, shares=(1.0,))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        coins = rng.random(20_000) < 0.5
        told = np.where(rng.random(20_000) < right, coins, ~coins)
        found = audit.of_scores(told + 0.1 * rng.random(20_000), coins)
        assert 0.85 * epsilon < found.epsilon < epsilon


def test_one_guess_of_one_canary_is_the_formula_by_hand():
    # right 1 of 1: beta = q, alpha = P[Bin(1, q) = 0] / 1
    right = math.e / (1 + math.e)
    assert chance_under(1, 1, 1, 1.0, 0.01) == pytest.approx(right + 2 * 0.01 * (1 - right))
    assert chance_under(10, 5, 0, 1.0, 0.0) == 1


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 5), st.floats(0, 1e-3))
@settings(max_examples=60, deadline=None)
def test_a_larger_claim_is_never_harder_to_keep(guessed, share, epsilon, delta):
    correct = round(share * guessed)
    chances = [chance_under(500, guessed, correct, claim, delta) for claim in (epsilon, epsilon + 0.5)]
    assert chances[0] <= chances[1] + 1e-9
    assert chance_under(500, guessed, correct, epsilon, 0.0) == pytest.approx(
        binom.sf(correct - 1, guessed, 1 / (1 + math.exp(-epsilon))), abs=1e-12
    )
    assert 0 <= epsilon_lower_bound(500, guessed, correct, delta, 0.05) < math.inf


@pytest.mark.parametrize("noise_multiplier", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_the_gaussian_epsilon_is_the_hockey_stick_divergence_integrated(noise_multiplier, delta):
    epsilon = gaussian_epsilon(noise_multiplier, delta)
    from_ = noise_multiplier**2 * epsilon + 0.5  # where the density with is e^epsilon times the one without

    def excess(x):
        without, within = norm.pdf(x, 0, noise_multiplier), norm.pdf(x, 1, noise_multiplier)
        return within - math.exp(epsilon) * without

    assert quad(excess, from_, from_ + 12 * noise_multiplier, epsabs=1e-12)[0] == pytest.approx(delta, rel=1e-4)


def test_a_lot_of_noise_costs_no_epsilon_at_all():
    assert gaussian_epsilon(1000.0, 0.1) == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_norm": 0}, "max_norm 0"),
        ({"delta": 1.0}, "delta 1.0"),
        ({"confidence": 1.0}, "confidence 1.0"),
        ({"group": 0}, "group 0"),
        ({"shares": ()}, "shares"),
        ({"shares": (1.5,)}, "shares"),
    ],
)
def test_audits_that_nobody_can_run_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        OneRunAudit(**({"max_norm": 1.0, "delta": DELTA} | options))


def test_more_canaries_than_numbers_are_refused():
    with pytest.raises(ConfigError, match="200 canaries a release of 10 numbers"):
        OneRunAudit(1.0, DELTA)(lambda seen: seen.sum(0), 10, np.random.default_rng(0))


def test_no_noise_has_no_epsilon():
    with pytest.raises(ConfigError, match="noise_multiplier 0"):
        gaussian_epsilon(0.0, DELTA)


def of_one_site(*steps):
    """What leaves one site each round, through the very steps of its chain, in code space; canaries are its update."""
    layout, noise = Layout.of([("weight", (4, 4), Role.PARAMETER)]), np.random.default_rng(5)
    coded = Coded(fit(layout, noise.normal(size=(30, 16)).astype(np.float32), 4.0))
    along = coded.codec.decode(np.eye(1, coded.codec.size, dtype=np.float32)[0])  # the update whose code is one number
    chain = Chain((coded, *steps))

    def release(contributions):
        strength = contributions[:, 0].sum(dtype=np.float32)
        return chain(strength * along, noise)

    return release, coded.codec.size


@pytest.mark.parametrize(
    ("steps", "is_caught"),
    [
        ((GaussianMechanism(1.0, 2.0),), False),
        ((GaussianMechanism(1.0, 1.0),), True),  # half the noise of the claim
        ((GaussianMechanism(10.0, 0.2),), True),  # the same noise, and no clip to speak of
    ],
    ids=["as claimed", "half the noise", "no clip"],
)
def test_the_chain_that_an_envoy_runs_is_audited_in_code_space(steps, is_caught):
    release, size = of_one_site(*steps)
    found = OneRunAudit(1.0, DELTA, canaries=30_000, group=1)(release, size, np.random.default_rng(0))
    assert found.contradicts(gaussian_epsilon(2.0, DELTA)) == is_caught
