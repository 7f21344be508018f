"""A federated metric is what all examples in one place would give."""

import math

import numpy as np
import pytest
from fedveil.utils.metrics import AUC_BINS, MetricKind, MetricSum, auc_of, mean_of, total
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

scored = st.lists(st.tuples(st.floats(0, 1), st.sampled_from((0, 1))), min_size=2, max_size=80)


def parted(examples: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s for s, _ in examples]), np.array([label for _, label in examples], dtype=np.int64)


@settings(deadline=None)
@given(scored)
def test_auc_is_within_half_the_share_of_pairs_that_fall_into_one_bin(examples: list[tuple[float, int]]):
    scores, labels = parted(examples)
    value = auc_of("auc", scores, labels).value
    if len(set(labels.tolist())) < 2:
        assert value is None
        return
    bins = np.minimum((scores * AUC_BINS).astype(int), AUC_BINS - 1)
    together = (bins[labels == 1][:, None] == bins[labels == 0][None, :]).mean()
    assert value == pytest.approx(roc_auc_score(labels, scores), abs=together / 2 + 1e-12)


def test_auc_of_a_thousand_scores_is_within_a_thousandth():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 1_000)
    scores = 1 / (1 + np.exp(-(rng.standard_normal(1_000) + labels)))
    assert auc_of("auc", scores, labels).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)


@settings(deadline=None)
@given(scored, st.integers(0, 80), st.integers(0, 80))
def test_auc_of_sites_together_is_that_of_their_examples_in_one_place(
    examples: list[tuple[float, int]], one: int, other: int
):
    first, second = sorted((one, other))
    sites = [examples[:first], examples[first:second], examples[second:]]
    merged = total(auc_of("auc", *parted(site)) for site in sites)
    assert merged == (auc_of("auc", *parted(examples)),)


@given(st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, 100)), min_size=1, max_size=20))
def test_a_mean_over_sites_is_the_mean_over_examples(sites: list[tuple[int, int]]):
    (merged,) = total(mean_of("loss", numerator, weight) for numerator, weight in sites)
    weight = sum(w for _, w in sites)
    assert merged.value == (sum(n for n, _ in sites) / weight if weight else None)


def test_worked_numbers():
    # 3 positives at 0.9, 0.8, 0.3 and 2 negatives at 0.5, 0.1: 5 of 6 pairs are in order
    metric = auc_of("auc", [0.9, 0.8, 0.3, 0.5, 0.1], [1, 1, 1, 0, 0])
    assert metric.value == pytest.approx(5 / 6)
    assert metric.weight == 5
    assert auc_of("auc", [0.5, 0.5], [0, 1]).value == 0.5
    assert auc_of("auc", [1.0, 0.0], [1, 0]).value == 1.0


def test_names_keep_the_order_in_which_they_came():
    metrics = [mean_of("b", 1, 1), mean_of("a", 1, 1), mean_of("b", 3, 1)]
    assert [(metric.name, metric.value) for metric in total(metrics)] == [("b", 2.0), ("a", 1.0)]
    assert total([]) == ()


def test_one_name_for_two_kinds_is_refused():
    with pytest.raises(ValueError, match="mean at one site and a auc at another"):
        total([mean_of("x", 1, 1), auc_of("x", [0.5], [1])])


def test_without_examples_or_with_one_class_alone_there_is_no_value():
    assert mean_of("loss", 0, 0).value is None
    assert auc_of("auc", [], []).value is None
    assert auc_of("auc", [0.4, 0.6], [1, 1]).value is None


def test_a_quotient_beyond_the_range_of_a_float_is_no_value():
    assert mean_of("loss", 1e100, 5e-324).value is None
    largest = MetricSum("auc", MetricKind.AUC, (1e100,) * (2 * AUC_BINS), 1.0)
    (merged,) = total([largest] * 1_000)
    assert merged.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "values", "weight"),
    [
        ("", (1.0,), 1.0),
        ("x" * 33, (1.0,), 1.0),
        ("a b", (1.0,), 1.0),
        ("größe", (1.0,), 1.0),
        ("a\nb", (1.0,), 1.0),
        ("x", (), 1.0),
        ("x", (1.0, 2.0), 1.0),
        ("x", (math.nan,), 1.0),
        ("x", (math.inf,), 1.0),
        ("x", (1.0,), -1.0),
        ("x", (1.0,), math.nan),
    ],
)
def test_what_cannot_be_summed_is_no_metric(name: str, values: tuple[float, ...], weight: float):
    with pytest.raises(ValueError, match="metric"):
        MetricSum(name, MetricKind.MEAN, values, weight)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([0.5], [2]), ([0.5, 0.5], [1]), ([1.5], [1]), ([-0.1], [0]), ([math.nan], [1]), ([math.inf], [1])],
)
def test_scores_lie_in_zero_to_one_with_a_label_each(scores: list[float], labels: list[int]):
    with pytest.raises(ValueError, match=r"lie in|one label"):
        auc_of("auc", scores, labels)
