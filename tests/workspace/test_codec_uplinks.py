"""What a round's updates are after the way up: bytes as promised, and what error feedback keeps for later."""

import numpy as np
import pytest
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.utils.tensors import Layout, Role
from fedveil.workspace.benchmarks.uplinks import Coded, PowerSGD, TopK, Uncompressed

LAYOUT = Layout.of([("w", (20, 30), Role.PARAMETER), ("k", (8, 4, 3, 3), Role.PARAMETER), ("b", (20,), Role.PARAMETER)])
SEED = bytes(32)


def updates(count=3, seed=0):
    return list(np.random.default_rng(seed).standard_normal((count, LAYOUT.size), np.float32))


def plain_mean(vectors, weights):
    return sum(np.float32(weight) * vector for weight, vector in zip(weights, vectors, strict=True))


def every_uplink():
    history = np.stack(updates(40, seed=9))
    return {
        "none": Uncompressed(LAYOUT),
        "learned": Coded(fit(LAYOUT, history, 30)),
        "seeded": Coded(seeded(LAYOUT, 30), has_feedback=True),
        "top-k": TopK(LAYOUT.num_bytes // 30),
        "power": PowerSGD(LAYOUT, 1),
    }


@pytest.mark.parametrize("name", every_uplink())
def test_the_weights_of_the_sites_count(name):
    uplink, one = every_uplink()[name], updates(1)[0]
    found = uplink.mean([one, one], [0.25, 0.75], SEED)
    alone = every_uplink()[name].mean([one], [1.0], SEED)
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_uncompressed_is_the_weighted_mean_and_all_its_bytes():
    found = Uncompressed(LAYOUT).mean(updates(), [0.5, 0.3, 0.2], SEED)
    np.testing.assert_allclose(found, plain_mean(updates(), [0.5, 0.3, 0.2]), atol=1e-6)
    assert Uncompressed(LAYOUT).num_bytes == LAYOUT.num_bytes


def test_a_coded_mean_is_the_projection_of_the_mean():
    codec = fit(LAYOUT, np.stack(updates(40, seed=9)), 30)
    found = Coded(codec).mean(updates(), [0.5, 0.3, 0.2], SEED)
    mean = plain_mean(updates(), [0.5, 0.3, 0.2])
    np.testing.assert_allclose(found, codec.decode(codec.encode(mean)), atol=1e-4)
    assert Coded(codec).num_bytes == 4 * codec.size


def test_top_k_sends_its_numbers_with_two_bytes_of_place_each():
    uplink = TopK(100)
    assert uplink.count == 16
    assert uplink.num_bytes == 96
    found = uplink.mean(updates(1), [1.0], SEED)
    assert np.count_nonzero(found) == 16
    largest = np.argsort(-np.abs(updates(1)[0]))[:16]
    assert set(np.flatnonzero(found)) == set(largest)


def test_low_rank_sends_both_factors_and_small_tensors_as_they_are():
    uplink = PowerSGD(LAYOUT, 2)
    assert uplink.num_bytes == 4 * (2 * (20 + 30) + 2 * (8 + 36) + 20)
    found = uplink.mean(updates(), [0.5, 0.3, 0.2], SEED)
    assert np.linalg.matrix_rank(found[:600].reshape(20, 30)) == 2
    np.testing.assert_allclose(found[-20:], plain_mean(updates(), [0.5, 0.3, 0.2])[-20:], atol=1e-6)


def test_low_rank_follows_an_update_that_has_one():
    left, right = np.random.default_rng(1).standard_normal((2, 30))
    update = np.concatenate([np.outer(left[:20], right).ravel(), np.zeros(LAYOUT.size - 600)]).astype(np.float32)
    uplink = PowerSGD(LAYOUT, 1)
    np.testing.assert_allclose(uplink.mean([update], [1.0], SEED), update, atol=1e-4)


@pytest.mark.parametrize("name", ["seeded", "top-k", "power"])
def test_with_error_feedback_nothing_is_lost_for_good(name):
    uplink, sent = every_uplink()[name], np.zeros(LAYOUT.size, np.float32)
    update = updates(1)[0]
    for round_ in range(200):
        sent += uplink.mean([update], [1.0], bytes([round_]) * 32)
    direction = float(sent @ update / (np.linalg.norm(sent) * np.linalg.norm(update)))
    assert direction > 0.9
    assert np.linalg.norm(sent) == pytest.approx(200 * np.linalg.norm(update), rel=0.3)
