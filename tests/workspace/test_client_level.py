"""Client-level privacy with an adaptive bound: the paper's arithmetic, and where it is refused."""

import math

import numpy as np
import pytest
from fedveil import ArrayPlan, DataKind, DataSpec
from fedveil.envoy.records import LoadedDataset
from fedveil.utils.errors import ConfigError, NonFiniteUpdateError
from fedveil.workspace.adaptive_clipping import AdaptiveClipping, private_mean
from fedveil.workspace.client_level import simulate_clients
from hypothesis import given
from hypothesis import strategies as st


class Silent:
    def standard_normal(self, size):
        return np.zeros(size)

    def random(self, size):
        return np.zeros(size)


def clipping(**changes):
    return AdaptiveClipping(**({"noise_multiplier": 1.0, "expected_clients": 4.0, "bit_noise": 1.0} | changes))


def test_a_round_by_hand():
    updates = [np.array(row, np.float32) for row in ([3, 4], [0.3, 0.4], [0, 0.5], [0, 10])]
    mean, within = private_mean(updates, 2, 1.0, clipping(), Silent())
    np.testing.assert_allclose(mean, [(0.6 + 0.3) / 4, (0.8 + 0.4 + 0.5 + 1) / 4], rtol=1e-6)
    assert within == pytest.approx(0.5)
    assert clipping().next_bound(1.0, 0.5) == 1.0
    assert clipping().next_bound(1.0, 1.0) == pytest.approx(math.exp(-0.1))


@given(st.floats(0.1, 5), st.floats(1, 50))
def test_updates_and_count_together_spend_what_the_round_may(noise, factor):
    one = clipping(noise_multiplier=noise, bit_noise=noise * (0.5 + factor))
    # Theorem 1: precisions of the two Gaussian releases add up; the count's sensitivity is a half.
    assert one.update_noise**-2 + (2 * one.count_noise) ** -2 == pytest.approx(noise**-2)
    assert one.update_noise > noise


@given(st.integers(0, 99), st.floats(0.01, 10), st.integers(1, 9))
def test_one_client_moves_the_mean_by_at_most_the_bound_and_the_count_by_a_half(seed, bound, count):
    rows = np.random.default_rng(seed).standard_normal((count, 5)).astype(np.float32)
    one = clipping()
    (whole, within), (less, before) = (private_mean(list(r), 5, bound, one, Silent()) for r in (rows, rows[1:]))
    assert np.linalg.norm(whole - less) * 4 <= bound * (1 + 1e-5)
    assert abs(within - before) * 4 == pytest.approx(0.5)


def test_an_update_that_is_no_number_is_refused():
    with pytest.raises(NonFiniteUpdateError):
        private_mean([np.array([np.nan], np.float32)], 1, 1.0, clipping(), Silent())


class Mean(ArrayPlan):
    """Moves all the way to a client's own mean."""

    data = DataSpec("x", DataKind.TABLE, (1,), ("a", "b"))

    def initial(self):
        return {"mean": np.zeros(1, np.float32)}

    def train(self, weights, data, rng):
        return {"mean": data.features.mean(0)}, len(data)

    def evaluate(self, weights, data):
        return []


def clients(count):
    values = np.random.default_rng(0).lognormal(0.0, 0.5, count).astype(np.float32)
    return [LoadedDataset(np.array([[v]], np.float32), np.zeros(1, np.int64), np.zeros(1, np.uint8)) for v in values]


def test_the_bound_finds_the_median_norm_of_the_clients():
    rule = AdaptiveClipping(1.0, expected_clients=100, first_bound=0.01, learning_rate=0.5)

    class Fresh(Mean):
        def train(self, weights, data, rng):  # of the same length in every round
            return {"mean": weights["mean"] + data.features.mean(0)}, len(data)

    run = simulate_clients(Fresh(), clients(200), rule, rounds=40, sampling_rate=0.5, noise=np.random.default_rng(1))
    assert np.median(run.bounds[20:]) == pytest.approx(1.0, rel=0.25)
    assert run.mechanism.steps == 40


def test_the_model_comes_near_the_clients_mean():
    rule = AdaptiveClipping(0.5, expected_clients=100, first_bound=1.0)
    run = simulate_clients(Mean(), clients(200), rule, rounds=30, sampling_rate=0.5, noise=np.random.default_rng(1))
    assert run.vector[0] == pytest.approx(1.1, abs=0.3)


def test_ten_hospitals_are_refused_with_the_reason():
    rule = AdaptiveClipping(0.5, expected_clients=10)
    with pytest.raises(ConfigError, match=r"hides a whole client.*and no patient of it"):
        simulate_clients(Mean(), clients(10), rule, rounds=1, sampling_rate=1.0)


def test_a_denominator_that_is_not_the_clients_is_refused():
    with pytest.raises(ConfigError, match="expected_clients is 10, and a round draws 100"):
        simulate_clients(Mean(), clients(200), AdaptiveClipping(0.5, 10.0), rounds=1, sampling_rate=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantile": 1.0}, "quantile is 1"),
        ({"first_bound": 0.0}, "first_bound is 0"),
        ({"bit_noise": 0.5}, "the count alone would spend more"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        clipping(**changes)
