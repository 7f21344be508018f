"""The noise has Skellam's law, follows from its key alone, and does not depend on the cut. Keys here are fixed."""

import itertools
import math
import sys

import numpy as np
import pytest
from fedveil.utils.secure_sum import skellam_noise
from fedveil.utils.secure_sum.skellam_noise import BLOCK, LEAST_VARIANCE, MOST_VARIANCE, SkellamNoise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

KEY = bytes(range(32))


def drawn(variance, blocks, key=KEY):
    noise = SkellamNoise(variance, key)
    return np.concatenate([noise.block(number) for number in range(blocks)])


@pytest.mark.parametrize("variance", [20.0, 31.5, 400.0])
def test_small_noise_passes_a_chi_square_test_of_each_value(variance):
    values, spread = drawn(variance, 64), int(4 * math.sqrt(variance))
    points = np.arange(-spread, spread + 1)
    expected = stats.skellam.pmf(points, variance / 2, variance / 2) * values.size
    counts = np.array([(values == point).sum() for point in points])
    inside = expected > 50
    outside = values.size - counts[inside].sum(), values.size - expected[inside].sum()
    found = stats.chisquare([*counts[inside], outside[0]], [*expected[inside], outside[1]])
    assert found.pvalue > 0.01


@pytest.mark.parametrize("variance", [2.0**20, 2.0**36, MOST_VARIANCE])
def test_large_noise_passes_a_ks_test(variance):
    """From 2^20 on the law is the Gaussian's, to far less than so many draws can tell."""
    values = drawn(variance, 64)
    assert stats.kstest(values / math.sqrt(variance), "norm").pvalue > 0.01
    assert values.var() == pytest.approx(variance, rel=0.01)


def test_half_the_noise_fails_the_same_test():
    values = drawn(2.0**35, 64)
    assert stats.kstest(values / math.sqrt(2.0**36), "norm").pvalue < 1e-6


@pytest.mark.parametrize("mean", [10.0, 77.7, 5e4])
def test_probabilities_are_those_of_a_poisson_variable(mean):
    points = np.unique(np.maximum(0, np.rint(mean + np.sqrt(mean) * np.linspace(-8, 8, 200))))
    ours = skellam_noise._Poisson(mean)._log_probability(points)
    assert ours == pytest.approx(stats.poisson.logpmf(points, mean), abs=1e-9)


@pytest.mark.parametrize("mean", [2.0**33, 2.0**43])
def test_probabilities_of_large_means_do_not_cancel(mean):
    """Against 50 digits; the usual form is off by 4e-6 and by 0.02 there."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        for away in (-5, 0.3, 4):
            k = float(math.floor(mean + away * math.sqrt(mean)))
            exact = k * mpmath.log(mean) - mpmath.mpf(mean) - mpmath.loggamma(mpmath.mpf(k) + 1)
            ours = skellam_noise._Poisson(mean)._log_probability(np.array([k]))[0]
            assert ours == pytest.approx(float(exact), abs=1e-8)


def test_parts_of_the_sites_together_are_the_whole_noise():
    parts = sum(drawn(2.0**30 / 8, 16, bytes([site]) * 32) for site in range(8))
    assert stats.kstest(parts / 2.0**15, "norm").pvalue > 0.01


@given(st.lists(st.integers(0, 3 * BLOCK), max_size=4), st.integers(0, 2 * BLOCK))
@settings(deadline=None, max_examples=20)
def test_any_cut_gives_the_noise_of_the_whole(cuts, start):
    noise, size = SkellamNoise(1e6, KEY), 3 * BLOCK
    whole, cut = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
    noise.add(whole, 0)
    edges = [0, *sorted(cuts), size]
    for begin, end in itertools.pairwise(edges):
        noise.add(cut[begin:end], begin)
    assert np.array_equal(whole, cut)
    tail = np.zeros(size - start, np.uint32)
    noise.add(tail, start)
    assert np.array_equal(whole[start:], tail)


def test_it_is_added_modulo_the_ring_and_negative_numbers_wrap():
    out = np.full(BLOCK, 5, np.uint32)
    noise = SkellamNoise(1e6, KEY)
    noise.add(out, 0)
    assert np.array_equal((out - np.uint32(5)).view(np.int32), noise.block(0))
    assert (noise.block(0) < 0).mean() == pytest.approx(0.5, abs=0.05)


def test_another_key_gives_other_and_unrelated_noise():
    one, other = drawn(1e6, 8), drawn(1e6, 8, bytes(32))
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(one.size)
    assert abs(np.corrcoef(one[:-BLOCK], one[BLOCK:])[0, 1]) < 5 / math.sqrt(one.size)


def test_no_generator_that_a_plan_could_seed_is_asked(monkeypatch):
    before = drawn(1e6, 1)
    np.random.seed(1)  # noqa: NPY002
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert np.array_equal(drawn(1e6, 1), before)
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SkellamNoise(LEAST_VARIANCE / 2, KEY),
        lambda: SkellamNoise(MOST_VARIANCE * 2, KEY),
        lambda: SkellamNoise(float("nan"), KEY),
        lambda: SkellamNoise(100.0, b"short"),
        lambda: SkellamNoise(100.0, KEY).add(np.zeros(3, np.int64), 0),
        lambda: SkellamNoise(100.0, KEY).add(np.zeros(3, np.uint32), -1),
    ],
)
def test_our_own_callers_mistakes_are_value_errors(wrong):
    with pytest.raises(ValueError):
        wrong()
