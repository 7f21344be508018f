"""Counts and metrics stand behind the vector, sum exactly, and come back as what they were."""

import json
from pathlib import Path

import numpy as np
import pytest
from fedveil.utils.errors import MalformedMessageError, UnsendableUpdateError
from fedveil.utils.metrics import AUC_BINS, MetricKind, MetricSum, auc_of, mean_of, total
from fedveil.utils.secure_sum.tallies import MAX_VALUE, MetricShape, Tallies, TallyLayout, bin_of, padded
from hypothesis import given
from hypothesis import strategies as st

(VECTOR,) = json.loads((Path(__file__).parent / "vectors" / "tallies.json").read_text("utf-8"))["cases"]
LOSS, AUC = MetricShape("loss", MetricKind.MEAN), MetricShape("auc", MetricKind.AUC)
NOTHING = np.zeros(0, np.int64)


def test_published_vector():
    metrics = []
    for told in VECTOR["metrics"]:
        kind = MetricKind(told["kind"])
        count = 1 if kind is MetricKind.MEAN else 2 * AUC_BINS
        values = tuple(float(told["values"].get(str(at), 0)) for at in range(count))
        metrics.append(MetricSum(told["name"], kind, values, told["weight"]))
    layout = TallyLayout(tuple(MetricShape(m.name, m.kind) for m in metrics), VECTOR["tensors"], histogram=True)
    words = layout.encode(VECTOR["num_examples"], np.array(VECTOR["clipped"]), metrics, VECTOR["norm"])
    assert words.size == layout.counts == VECTOR["count"]
    assert {str(at): int(words[at]) for at in np.flatnonzero(words)} == VECTOR["words"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**20),
            st.lists(st.integers(0, 10**9), min_size=2, max_size=2),
            st.integers(-(10**6), 10**6),
            st.integers(0, 10**6),
            st.floats(0, 1e20),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_the_sum_of_tallies_is_the_tallies_of_the_sum(sites):
    layout, words = TallyLayout((LOSS,), 2, histogram=True), np.zeros(2 + 2 + 2 + 64, np.uint64)
    for examples, clipped, numerator, weight, norm in sites:
        metrics = [mean_of("other", 1, 1), mean_of("loss", numerator / 4, weight)]
        words += layout.encode(examples, np.array(clipped), metrics, norm)
    found = layout.decode(words)
    assert found.num_examples == sum(site[0] for site in sites)
    assert found.contributions == len(sites) == sum(found.histogram)
    assert found.clipped == tuple(sum(site[1][at] for site in sites) for at in (0, 1))
    assert found.metrics == total(mean_of("loss", site[2] / 4, site[3]) for site in sites)


def test_an_auc_over_the_sum_is_that_over_all_examples():
    rng, layout = np.random.default_rng(0), TallyLayout((AUC, LOSS), 0)
    sites = [auc_of("auc", rng.random(50), rng.integers(0, 2, 50)) for _ in range(4)]
    words = np.sum([layout.encode(50, NOTHING, [site, mean_of("loss", -3.25, 50)]) for site in sites], axis=0)
    auc, loss = layout.decode(words.astype(np.uint64)).metrics
    assert auc == total(sites)[0]
    assert loss.value == -3.25 / 50


def test_metrics_are_exact_to_a_millionth():
    layout = TallyLayout((LOSS,), 0)
    (metric,) = layout.decode(layout.encode(1, NOTHING, [mean_of("loss", 0.1, 3)])).metrics
    assert metric.values[0] == pytest.approx(0.1, abs=2.0**-21)


def test_a_sum_without_metrics_or_vector_counts_examples_and_sites():
    layout = TallyLayout((), 0)
    assert layout.words == 4
    assert layout.decode(layout.encode(7, NOTHING)) == Tallies(7, 1, (), ())


def test_every_word_has_its_place():
    layout = TallyLayout((AUC, LOSS), 3, histogram=True)
    assert layout.counts == 2 + 3 + (2 * AUC_BINS + 1) + 2 + 64
    assert layout.words == 2 * layout.counts
    assert [padded(words) for words in (0, 1, 2, 7)] == [0, 2, 2, 8]


@pytest.mark.parametrize(
    ("norm", "at"), [(0.0, 0), (1e-30, 0), (0.5, 31), (0.99, 31), (1.0, 32), (3.9, 33), (1e30, 63)]
)
def test_bins_are_powers_of_two(norm, at):
    assert bin_of(norm) == at


@pytest.mark.parametrize(
    "metrics", [[], [mean_of("auc", 1, 1)], [mean_of("loss", MAX_VALUE * 2, 1)], [mean_of("loss", 0, MAX_VALUE * 2)]]
)
def test_a_metric_that_was_announced_and_does_not_fit_is_not_sent(metrics):
    shape = AUC if metrics and metrics[0].name == "auc" else LOSS
    with pytest.raises(UnsendableUpdateError, match=shape.name):
        TallyLayout((shape,), 0).encode(1, NOTHING, metrics)


def with_word(layout, at, value):
    words = layout.encode(1, np.zeros(layout.tensors, np.int64), [mean_of("loss", 1, 1)], 1.0)
    words[at] = value
    return words


@pytest.mark.parametrize("at", [0, 1, 2])
def test_counts_below_zero_are_no_sum(at):
    layout = TallyLayout((LOSS,), 1)
    with pytest.raises(MalformedMessageError):
        layout.decode(with_word(layout, at, 2**64 - 1))


def test_a_metric_of_negative_weight_is_no_sum():
    layout = TallyLayout((LOSS,), 1)
    with pytest.raises(MalformedMessageError, match="loss"):
        layout.decode(with_word(layout, 4, 2**63))


def test_a_histogram_of_other_sites_than_contributed_is_no_sum():
    layout = TallyLayout((LOSS,), 0, histogram=True)
    with pytest.raises(MalformedMessageError):
        layout.decode(with_word(layout, 5, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TallyLayout((LOSS, AUC), 0),
        lambda: TallyLayout((LOSS, LOSS), 0),
        lambda: TallyLayout((), -1),
        lambda: TallyLayout((), 0).encode(-1, NOTHING),
        lambda: TallyLayout((), 2).encode(1, NOTHING),
        lambda: TallyLayout((), 1).encode(1, np.array([-1])),
        lambda: TallyLayout((), 0, histogram=True).encode(1, NOTHING),
        lambda: TallyLayout((), 0).decode(np.zeros(3, np.uint64)),
        lambda: TallyLayout((), 0).decode(np.zeros(2, np.int64)),
    ],
)
def test_our_own_callers_mistakes_are_value_errors(wrong):
    with pytest.raises(ValueError):
        wrong()
