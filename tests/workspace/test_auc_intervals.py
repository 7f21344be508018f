"""AUC with its interval, and paired differences."""

import numpy as np
import pytest
from fedveil.workspace.benchmarks.auc_intervals import auc_difference, auc_interval
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score


@pytest.fixture
def labels():
    return np.array([0, 1] * 60)


def scored(labels, strength, seed):
    return np.random.default_rng(seed).standard_normal(len(labels)) + strength * labels


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 100]))
def test_the_value_is_that_of_scikit_learn_also_with_ties(seed, levels):
    labels = np.array([0, 1] * 20)
    scores = np.round(scored(labels, 1, seed) * levels) / levels
    assert auc_interval(labels, [scores]).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)


def test_several_seeds_give_the_mean_of_their_aucs_within_the_interval(labels):
    several = [scored(labels, 1, seed) for seed in range(3)]
    found = auc_interval(labels, several)
    assert found.value == pytest.approx(np.mean([roc_auc_score(labels, one) for one in several]), abs=1e-6)
    assert 0.5 < found.low < found.value < found.high < 1


def test_a_loss_is_positive_where_the_other_was_better_and_zero_beside_itself(labels):
    weak, strong = [[scored(labels, strength, seed) for seed in range(3)] for strength in (0.3, 2)]
    lost = auc_difference(labels, weak, strong)
    assert lost.low > 0
    same = auc_difference(labels, weak, weak)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_pair_makes_the_interval_narrower_than_two_intervals_would(labels):
    one = [scored(labels, 1, seed) for seed in range(3)]
    nearly = [scores + 0.01 * scored(labels, 0, 9) for scores in one]
    lost = auc_difference(labels, nearly, one)
    alone = auc_interval(labels, one)
    assert lost.high - lost.low < (alone.high - alone.low) / 3


def test_seeds_that_do_not_pair_are_refused(labels):
    with pytest.raises(ValueError, match="paired"):
        auc_difference(labels, [scored(labels, 1, 0)], [scored(labels, 1, 0)] * 2)
