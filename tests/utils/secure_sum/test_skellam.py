"""What Skellam noise in a sum protects, held against the exact divergence and against the Gaussian."""

import math

import numpy as np
import pytest
from fedveil.utils.errors import ConfigError
from fedveil.utils.secure_sum.fixed_point import FixedPoint
from fedveil.utils.secure_sum.masks import Masker
from fedveil.utils.secure_sum.skellam import SkellamSum, rdp
from fedveil.utils.secure_sum.skellam_noise import SkellamNoise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


def noise_of(**changed):
    given_ = {"max_norm": 1.0, "noise_multiplier": 1.0, "size": 10_000, "contributors": 10, "threshold": 7}
    return SkellamSum(**{**given_, "colluders": 1, **changed})


def exact_divergence(order, shift, variance):
    """Rényi divergence of Skellam noise, moved by ``shift``, from the same unmoved, by its probabilities."""
    spread = int(12 * math.sqrt(variance) * order + 50)
    points = np.arange(-spread, spread + 1)
    with np.errstate(divide="ignore"):
        log_p = np.log(special.ive(np.abs(points - shift), variance))
        log_q = np.log(special.ive(np.abs(points), variance))
    fine = np.isfinite(log_p) & np.isfinite(log_q)
    return special.logsumexp(order * log_p[fine] - (order - 1) * log_q[fine]) / (order - 1)


@pytest.mark.parametrize("variance", [25.0, 100.0, 400.0])
@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("order", [2, 4])
def test_the_bound_is_above_the_exact_divergence_and_close_to_it(variance, shift, order):
    (bound,) = rdp([order], sensitivity_l1=shift, sensitivity_l2=shift, variance=variance)
    exact = exact_divergence(order, shift, variance)
    assert exact <= bound <= 1.35 * exact


def test_many_fine_steps_cost_no_more_than_the_gaussian():
    gaussian = np.array(ORDERS) / 2
    assert np.array(noise_of().rdp(ORDERS)) == pytest.approx(gaussian, rel=2e-3)
    assert (np.array(noise_of().rdp(ORDERS)) >= gaussian).all()


def test_epsilon_of_one_release_beside_the_gaussians():
    """Noise as large as the clip norm, delta 1e-5, ten million numbers: half a percent more than the Gaussian's."""
    accounting = pytest.importorskip("dp_accounting.rdp")
    gaussian, _ = accounting.compute_epsilon(ORDERS, [order / 2 for order in ORDERS], 1e-5)
    fine, _ = accounting.compute_epsilon(ORDERS, noise_of(size=10**7).rdp(ORDERS), 1e-5)
    coarse, _ = accounting.compute_epsilon(ORDERS, noise_of(size=10**7, steps=1 << 10).rdp(ORDERS), 1e-5)
    assert gaussian < fine < 1.01 * gaussian
    assert coarse > 2 * gaussian


def test_worked_numbers():
    # 2^18 steps; 100 numbers, each rounded by half a step: 5 steps more
    noise = noise_of(size=100)
    assert noise.variance == pytest.approx(2.0**36, rel=1e-6)
    assert noise.site_variance == pytest.approx(2.0**36 / 6, rel=1e-6)
    assert noise.sensitivity_l2 == pytest.approx(2**18 + 5, rel=2e-6)
    assert noise.sensitivity_l1 == pytest.approx(10 * (2**18 + 5), rel=2e-6)
    assert noise.surplus == pytest.approx(10 / 6)


def test_an_order_between_two_has_the_bound_of_the_next():
    common = {"sensitivity_l1": 3, "sensitivity_l2": 2, "variance": 50}
    assert rdp([1.5, 2.5], **common) == rdp([2, 3], **common)


def test_l1_of_few_steps_is_bounded_by_the_square_of_l2():
    noise = noise_of(size=10**6, steps=200, noise_multiplier=3.0, is_whole=True)
    assert noise.sensitivity_l1 == noise.sensitivity_l2 * min(1000, noise.sensitivity_l2)


@given(st.integers(1, 60), st.integers(0, 2**32), st.booleans())
@settings(deadline=None)
def test_rounding_to_the_nearest_keeps_the_sensitivity(size, seed, is_whole):
    """The strict bound, on vectors at the clip norm; of a part, on what its removal changes."""
    noise, rng = noise_of(size=size, steps=64, noise_multiplier=1.0, is_whole=is_whole), np.random.default_rng(seed)
    numbers = FixedPoint((size,), (noise.bound,), noise.contributors)

    def encoded(vector):
        out = np.empty(size, np.uint32)
        numbers.encode(vector.astype(np.float32), 0, 1, None, out, np.zeros(1, np.int64))
        return out.view(np.int32).astype(np.float64)

    unit = rng.standard_normal(size)
    unit /= np.linalg.norm(unit)
    rest = np.zeros(size) if is_whole else rng.standard_normal(size) * 3
    moved = encoded(rest + unit) - encoded(rest)
    assert np.linalg.norm(moved) <= noise.sensitivity_l2
    assert np.abs(moved).sum() <= noise.sensitivity_l1


def test_a_masked_sum_with_noise_is_the_mean_with_that_noise():
    """Four sites, the real ring: what comes out is the mean with noise of the announced size, and clipped nothing."""
    size, sites = 50_000, 4
    noise = noise_of(size=size, contributors=sites, threshold=3, noise_multiplier=0.5, steps=1 << 14)
    numbers = FixedPoint((size,), (noise.bound,), sites)
    rng, total = np.random.default_rng(3), np.zeros(size, np.uint32)
    vectors, clipped = [], np.zeros(1, np.int64)
    for site in range(sites):
        vector = rng.standard_normal(size)
        vectors.append((vector / np.linalg.norm(vector)).astype(np.float32))
        out = np.empty(size, np.uint32)
        numbers.encode(vectors[-1], 0, 1, None, out, clipped)
        SkellamNoise(noise.site_variance, bytes([site]) * 32).add(out, 0)
        Masker([bytes([100 + site]) * 32]).apply(out)
        total += out
    Masker([], [bytes([100 + site]) * 32 for site in range(sites)]).apply(total)
    mean = np.empty(size, np.float32)
    numbers.decode(total, sites, mean)
    error = (mean - np.mean(vectors, axis=0)) * sites
    assert clipped.tolist() == [0]
    assert error.std() == pytest.approx(0.5 * math.sqrt(noise.surplus), rel=0.02)
    assert abs(error.mean()) < 5 * error.std() / math.sqrt(size)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_norm": 0.0}, "above 0"),
        ({"noise_multiplier": math.inf}, "above 0"),
        ({"threshold": 11}, "11"),
        ({"colluders": 7}, "7 colluders"),
        ({"steps": 2}, "give more or fewer steps"),
        ({"steps": 1 << 28}, "fewer"),
        ({"noise_multiplier": 1000.0}, "fewer steps"),
    ],
)
def test_numbers_that_cannot_be_are_refused_and_say_what_to_change(changed, said):
    with pytest.raises(ConfigError, match=said):
        noise_of(**changed)


@pytest.mark.parametrize(("orders", "variance"), [([1], 1.0), ([2], 0.0)])
def test_our_own_callers_mistakes_are_value_errors(orders, variance):
    with pytest.raises(ValueError):
        rdp(orders, sensitivity_l1=1, sensitivity_l2=1, variance=variance)
