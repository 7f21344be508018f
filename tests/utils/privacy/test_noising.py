"""Noise that is added by hand: what was given is clipped, never believed, and the noise is as it was promised."""

import math

import numpy as np
import pytest
from fedveil import DifferentialPrivacy, federated
from fedveil.utils.errors import ConfigError, NonFiniteUpdateError, PlanError, UnsendableUpdateError
from fedveil.utils.privacy.events import Gaussian, Release
from fedveil.utils.privacy.gaussian import calibrated_noise, exact_epsilon
from fedveil.utils.privacy.values import Unit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

ARRAYS = npst.arrays(
    np.float32, npst.array_shapes(min_dims=0, max_dims=3, max_side=5), elements=st.floats(-(2.0**60), 2.0**60, width=32)
)
GRADIENTS = {"weights": np.full((3, 4), 2.0, np.float32), "bias": np.zeros(3, np.float32)}


class Silent:
    """Draws nothing but zeros, so that what the clip left can be seen."""

    def standard_normal(self, size):
        return np.zeros(size)

    def random(self, size):
        return np.full(size, 0.0)


@given(st.dictionaries(st.text(max_size=5), ARRAYS, min_size=1, max_size=4), st.floats(1e-6, 1e6))
def test_before_the_noise_everything_together_is_within_the_sensitivity_whatever_was_given(gradients, sensitivity):
    sent = DifferentialPrivacy(epsilon=1.0).add_noise_to_gradients(gradients, sensitivity, rng=Silent())
    assert {name: (one.shape, one.dtype) for name, one in sent.items()} == {
        name: (one.shape, np.dtype(np.float32)) for name, one in gradients.items()
    }
    norm = math.sqrt(math.fsum(float(np.square(one.astype(np.float64)).sum()) for one in sent.values()))
    assert norm <= sensitivity * (1 + 2**-22)


@given(st.dictionaries(st.text(max_size=5), ARRAYS, min_size=1, max_size=4), st.floats(1e-6, 1e6))
def test_laplace_noise_is_for_the_sum_of_magnitudes(gradients, sensitivity):
    privacy = DifferentialPrivacy(epsilon=1.0, mechanism="laplace")
    sent = privacy.add_noise_to_gradients(gradients, sensitivity, rng=Silent())
    norm = math.fsum(float(np.abs(one.astype(np.float64)).sum()) for one in sent.values())
    assert norm <= sensitivity * (1 + 2**-22)


def test_what_was_given_is_never_written_to_and_what_is_within_the_bound_is_not_scaled():
    before = {name: one.copy() for name, one in GRADIENTS.items()}
    sent = DifferentialPrivacy(0.5).add_noise_to_gradients(GRADIENTS, 100.0, rng=Silent())
    assert all(
        np.array_equal(before[name], GRADIENTS[name]) and np.array_equal(sent[name], before[name]) for name in before
    )
    assert not sent.noise.was_clipped


@pytest.mark.parametrize(
    ("mechanism", "law"), [("gaussian", stats.norm), ("laplace", stats.laplace), ("analytic_gaussian", stats.norm)]
)
def test_the_noise_has_the_law_and_the_scale_that_are_promised(mechanism, law):
    """40,000 numbers of a fixed seed: the statistic is the same in each run."""
    privacy = DifferentialPrivacy(epsilon=2.0, mechanism=mechanism)
    flat = {"a": np.zeros((200, 200), np.float32)}
    sent = privacy.add_noise_to_gradients(flat, sensitivity=3.0, rng=np.random.default_rng(7))
    assert sent.noise.scale == pytest.approx(3.0 * privacy.noise_multiplier)
    assert stats.kstest(sent["a"].ravel() / sent.noise.scale, law.cdf).pvalue > 0.01


def test_the_gaussian_is_calibrated_exactly_and_laplace_by_its_definition():
    assert exact_epsilon(DifferentialPrivacy(epsilon=3.0, delta=1e-6).noise_multiplier, 1e-6) == pytest.approx(3.0)
    assert DifferentialPrivacy(epsilon=0.25, mechanism="laplace").noise_multiplier == 4.0
    assert DifferentialPrivacy(epsilon=0.25, mechanism="laplace").delta == 0.0


def test_the_textbooks_formula_is_refused_where_it_does_not_hold():
    held = DifferentialPrivacy(epsilon=0.5, mechanism="classic_gaussian")
    assert held.noise_multiplier == calibrated_noise(0.5, 1e-5, by="textbook")
    with pytest.raises(ConfigError, match="its proof needs epsilon below 1"):
        DifferentialPrivacy(epsilon=1.0, mechanism="classic_gaussian")


def test_a_privacy_budget_is_taken_as_it_is_and_a_number_alone_is_an_epsilon():
    budget = {"epsilon": 1.0, "delta": 1e-5, "mechanism": "gaussian"}
    assert DifferentialPrivacy(**budget) == DifferentialPrivacy(1.0) == federated.DifferentialPrivacy(epsilon=1)
    assert DifferentialPrivacy(1.0).release(3) == Release(
        Gaussian(DifferentialPrivacy(1.0).noise_multiplier, 3), Unit.SITE
    )


def test_two_draws_differ_and_what_was_changed_after_the_noise_is_known():
    privacy = DifferentialPrivacy(epsilon=1.0)
    first, second = (privacy.add_noise_to_gradients(GRADIENTS) for _ in range(2))
    assert first.noise.digest != second.noise.digest
    assert first.is_unchanged
    first["bias"] = first["bias"] * 2
    assert not first.is_unchanged


@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        ({}, UnsendableUpdateError, "nothing came"),
        ([1.0], UnsendableUpdateError, "arrays by name"),
        ({"a": [1.0]}, UnsendableUpdateError, "a: list, expected an array"),
        ({"a": np.zeros(3, np.int64)}, UnsendableUpdateError, "a: int64 numbers"),
        ({"a": np.zeros(3, complex)}, UnsendableUpdateError, "complex"),
        ({"b": np.array([1, np.nan], np.float32)}, NonFiniteUpdateError, "b holds NaN or infinity"),
        ({"b": np.array([np.inf], np.float32)}, NonFiniteUpdateError, "b holds NaN or infinity"),
    ],
)
def test_what_is_no_gradient_is_refused_by_its_name(gradients, error, message):
    with pytest.raises(error, match=message):
        DifferentialPrivacy(epsilon=1.0).add_noise_to_gradients(gradients)


@pytest.mark.parametrize("sensitivity", [0, -1.0, float("nan"), float("inf"), "1", True, None, 1e-30, 1e35])
def test_a_sensitivity_that_bounds_nothing_is_refused(sensitivity):
    with pytest.raises(ConfigError, match="sensitivity"):
        DifferentialPrivacy(epsilon=1.0).add_noise_to_gradients(GRADIENTS, sensitivity)


@pytest.mark.parametrize(
    "values",
    [
        {"epsilon": 0},
        {"epsilon": -1.0},
        {"epsilon": float("inf")},
        {"epsilon": float("nan")},
        {"epsilon": True},
        {"epsilon": "1"},
        {"epsilon": 1e6},
        {"epsilon": 1.0, "delta": 0.0},
        {"epsilon": 1.0, "delta": 1.0},
        {"epsilon": 1.0, "delta": 1e-5, "mechanism": "laplace"},
        {"epsilon": 1.0, "mechanism": "exponential"},
        {"epsilon": 1.0, "unit": "patient"},
        {"epsilon": 1.0, "steps": 3},
        {"epsilon": 1.0, "noise_multiplier": 0.1},
    ],
)
def test_an_epsilon_that_is_none_or_stands_beside_a_trainings_numbers_is_refused(values):
    with pytest.raises(ConfigError):
        DifferentialPrivacy(**values)


def test_neither_sort_is_taken_for_the_other():
    training = DifferentialPrivacy("patient", 1.0, 1.1, 0.05, units=800)
    with pytest.raises(ConfigError, match="draws noise in each of its steps"):
        training.add_noise_to_gradients(GRADIENTS)
    with pytest.raises(PlanError, match="declares no training"):
        DifferentialPrivacy(epsilon=1.0).to_document()
    with pytest.raises(TypeError, match="needs sampling_rate, units"):
        DifferentialPrivacy("patient", 1.0, 1.1)
    with pytest.raises(ConfigError, match="counts no laplace noise"):
        DifferentialPrivacy(epsilon=1.0, mechanism="laplace").release()
