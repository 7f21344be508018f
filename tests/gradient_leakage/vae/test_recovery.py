"""What numbers can give away: worked figures, and an attacker that tries."""

import math

import numpy as np
import pytest
from fedveil.gradient_leakage.vae.recovery import (
    predicted_exact_recovery,
    reconstruction_bound,
    renyi_reconstruction_bound,
)
from hypothesis import given
from hypothesis import strategies as st

noises, many, priors = st.floats(0.05, 1e4), st.integers(1, 1000), st.floats(1e-9, 1)


def test_the_two_measured_codes_are_told_apart():
    assert predicted_exact_recovery(2148, 1, 1024, 1).is_exact_recovery_expected
    assert not predicted_exact_recovery(429, 1, 1024, 1).is_exact_recovery_expected


def test_rounds_add_up_and_images_share():
    assert predicted_exact_recovery(429, 3, 1024, 1).is_exact_recovery_expected
    assert not predicted_exact_recovery(2148, 1, 1024, 4).is_exact_recovery_expected
    assert predicted_exact_recovery(2148, 2, 1024, 4).ratio == pytest.approx(4296 / 4096)


def test_a_prediction_never_says_that_something_is_safe():
    assert str(predicted_exact_recovery(64, 1, 1024, 1)) == (
        "64 numbers against 1,024 pixels (0.062 each): too few for exact images, not for recognising a patient"
    )
    assert "come back exactly" in str(predicted_exact_recovery(2148, 1, 1024, 1))


def test_nothing_below_one_is_counted():
    with pytest.raises(ValueError, match="at least 1"):
        predicted_exact_recovery(0, 1, 1, 1)


def test_worked_numbers_of_both_bounds():
    # Phi(Phi^-1(0.01) + 1) = Phi(-1.3263); exp(-(sqrt(log 100) - 1 / sqrt 2)^2) = exp(-1.43886^2)
    assert reconstruction_bound(1.0, 1, 0.01) == pytest.approx(0.09236, abs=1e-5)
    assert renyi_reconstruction_bound(1.0, 1, 0.01) == pytest.approx(0.12614, abs=1e-5)
    assert reconstruction_bound(2.0, 4, 0.01) == reconstruction_bound(1.0, 1, 0.01)


def test_the_best_order_is_the_best_of_many():
    def at(order: float) -> float:
        return (0.01 * math.exp(order * 0.7**2 / 2)) ** ((order - 1) / order)

    assert renyi_reconstruction_bound(1 / 0.7, 1, 0.01) == pytest.approx(
        min(at(order) for order in np.linspace(1.01, 60, 60_000)), rel=1e-6
    )


@given(noises, many, priors)
def test_a_bound_lies_between_the_prior_and_one_and_below_renyis(noise, rounds, prior):
    bound = reconstruction_bound(noise, rounds, prior)
    assert prior * (1 - 1e-9) <= bound <= 1
    assert bound <= renyi_reconstruction_bound(noise, rounds, prior) * (1 + 1e-9)


@given(noises, many, priors)
def test_less_noise_more_rounds_and_better_guesses_never_lower_it(noise, rounds, prior):
    bound = reconstruction_bound(noise, rounds, prior)
    assert reconstruction_bound(noise / 2, rounds, prior) >= bound
    assert reconstruction_bound(noise, rounds + 1, prior) >= bound
    assert reconstruction_bound(noise, rounds, min(1, 2 * prior)) >= bound


def test_without_noise_nothing_is_bounded():
    assert reconstruction_bound(0, 1, 1e-6) == 1
    assert renyi_reconstruction_bound(0, 1, 1e-6) == 1


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_no_attacker_that_knows_all_but_one_image_beats_the_bound(noise):
    # 50 candidates that are as far apart as a clip allows; the likeliest is the best guess there is.
    rng = np.random.default_rng(0)
    released = noise * rng.standard_normal((20_000, 50))
    released[:, 0] += 1  # the truth is the first candidate, of norm 1
    found = float((released.argmax(axis=1) == 0).mean())
    assert 0.02 < found <= reconstruction_bound(noise, 1, 1 / 50) + 3 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("wrong", [(-1, 1, 0.1), (1, 0, 0.1), (1, 1, 0), (1, 1, 1.1), (float("nan"), 1, 0.1)])
def test_what_is_no_mechanism_is_refused(wrong):
    for bound in (reconstruction_bound, renyi_reconstruction_bound):
        with pytest.raises(ValueError, match="expected at least 0, at least 1"):
            bound(*wrong)
