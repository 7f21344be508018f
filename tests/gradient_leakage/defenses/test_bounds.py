"""Clip, and clip with noise: what is promised of their norms and their noise."""

import numpy as np
import pytest
from fedveil.gradient_leakage.defenses.clip import Clip
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.utils.errors import ConfigError, LayoutMismatchError, NonFiniteUpdateError
from fedveil.utils.privacy.noise import SystemNoise
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

BOUNDS = st.floats(1e-3, 1e3)


def exact_norm(vector):
    return float(np.linalg.norm(vector.astype(np.float64)))


SMALL = st.floats(-1e4, 1e4, width=32)


def vectors(least=1, most=200, elements=SMALL):
    return arrays.arrays(np.float32, st.integers(least, most), elements=elements)


@given(vectors(elements=st.floats(-(2.0**100), 2.0**100, width=32)), BOUNDS)
@settings(max_examples=300)
def test_a_clipped_norm_is_at_most_the_bound_even_in_float64(vector, bound):
    assert exact_norm(Clip(bound)(vector, None)) <= bound


@given(vectors(), BOUNDS)
def test_a_clip_keeps_direction_shape_and_dtype_and_never_writes_to_its_input(vector, bound):
    before = vector.copy()
    clipped = Clip(bound)(vector, None)
    assert clipped.dtype == np.float32
    assert clipped.shape == vector.shape
    assert np.array_equal(before, vector)
    norm = exact_norm(vector)
    expected = vector.astype(np.float64) * min(1.0, bound / norm if norm else 1.0)
    assert np.allclose(clipped, expected, rtol=1e-6, atol=1e-30)


@given(vectors(), BOUNDS)
def test_a_second_clip_changes_nothing(vector, bound):
    once = Clip(bound)(vector, None)
    assert Clip(bound)(once, None) is once


def test_an_update_within_the_bound_is_handed_on_as_it_is():
    vector = np.array([3, 4], np.float32)
    assert Clip(5.0)(vector, None) is vector
    assert Clip(2.5)(vector, None) == pytest.approx([1.5, 2.0], rel=1e-6)


def test_many_numbers_are_clipped_piece_by_piece(rng):
    vector = rng.standard_normal(300_001).astype(np.float32)
    clipped = Clip(1.0)(vector, None)
    assert 1 - 1e-6 < exact_norm(clipped) <= 1
    assert np.allclose(clipped, vector / np.linalg.norm(vector), rtol=1e-5)


@pytest.mark.parametrize("multiplier", [0.1, 1.0, 3.0])
def test_the_noise_is_gaussian_of_multiplier_times_bound(multiplier, rng):
    vector = np.zeros(100_000, np.float32)
    sent = GaussianMechanism(0.5, multiplier)(vector, rng)
    std = 0.5 * multiplier
    assert sent.dtype == np.float32
    assert stats.kstest(sent / std, "norm").pvalue > 0.01  # the seed is fixed
    assert np.square(sent.astype(float) / std).sum() == pytest.approx(100_000, rel=0.02)  # chi-square, 4.5 deviations


def test_the_production_source_gives_the_same_law():
    sent = GaussianMechanism(2.0, 0.5)(np.zeros(100_000, np.float32), SystemNoise())
    assert stats.kstest(sent, "norm").pvalue > 1e-6


@given(vectors(), BOUNDS, st.floats(0, 10), st.integers(0, 9))
def test_without_its_noise_a_release_is_the_clipped_update(vector, bound, multiplier, seed):
    mechanism = GaussianMechanism(bound, multiplier)
    sent = mechanism(vector, np.random.default_rng(seed))
    noise = np.random.default_rng(seed).standard_normal(vector.size) * mechanism.noise_std
    clipped = sent.astype(np.float64) - noise
    slack = 1e-6 * (np.abs(noise) + bound)
    assert exact_norm(clipped) <= bound + np.linalg.norm(slack)
    assert (np.abs(clipped - Clip(bound)(vector, None)) <= slack).all()
    assert np.array_equal(sent, mechanism(vector, np.random.default_rng(seed)))


def test_no_noise_is_clipping_alone(rng):
    vector = np.array([3, 4], np.float32)
    assert np.array_equal(GaussianMechanism(1.0, 0.0)(vector, rng), Clip(1.0)(vector, rng))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("defense", [Clip(1.0), GaussianMechanism(1.0, 1.0)])
def test_nan_and_infinity_are_refused(defense, bad, rng):
    with pytest.raises(NonFiniteUpdateError, match="refusing to send"):
        defense(np.array([0, bad, 1], np.float32), rng)


def test_what_is_no_flat_float32_is_refused(rng):
    with pytest.raises(LayoutMismatchError, match="float64"):
        Clip(1.0)(np.zeros(3), rng)
    with pytest.raises(LayoutMismatchError, match=r"\(2, 2\)"):
        Clip(1.0)(np.zeros((2, 2), np.float32), rng)


@pytest.mark.parametrize("bound", [0, -1, np.inf, np.nan])
def test_a_bound_that_bounds_nothing_is_refused(bound):
    with pytest.raises(ConfigError, match="max_norm"):
        Clip(bound)
    with pytest.raises(ConfigError, match="max_norm"):
        GaussianMechanism(bound, 1.0)
    with pytest.raises(ConfigError, match="noise_multiplier is -1"):
        GaussianMechanism(1.0, -1.0)
