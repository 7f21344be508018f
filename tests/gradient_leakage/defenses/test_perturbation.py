"""Soteria, OUTPOST and partial noise: heuristics, and what can be said of them all the same."""

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.defenses.outpost import Outpost, Span
from fedveil.gradient_leakage.defenses.partial import PartialNoise
from fedveil.gradient_leakage.defenses.representation import soteria_of
from fedveil.gradient_leakage.defenses.soteria import Soteria
from fedveil.gradient_leakage.victim import layout_of
from fedveil.utils.errors import ConfigError, LayoutMismatchError, NonFiniteUpdateError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from torch import nn

SPANS = (Span(2, 12, 0.5), Span(12, 20, 0.1))


SMALL = st.floats(-1e4, 1e4, width=32)


def vectors(least=1, most=200, elements=SMALL):
    return arrays.arrays(np.float32, st.integers(least, most), elements=elements)


@given(vectors(20, 20), st.sets(st.integers(0, 4)))
def test_soteria_zeroes_its_columns_and_nothing_else(vector, columns):
    before, mask = vector.copy(), Soteria(3, (3, 5), tuple(sorted(columns)))
    sent = mask(vector, None)
    assert np.array_equal(before, vector)
    assert sent.dtype == np.float32
    hidden = np.zeros(20, bool)
    hidden[3:18].reshape(3, 5)[:, sorted(columns)] = True
    assert not sent[hidden].any()
    assert np.array_equal(sent[~hidden], vector[~hidden])
    assert np.array_equal(mask(sent, None), sent)


class Chosen(nn.Module):
    """A representation of which one feature hardly depends on the image, and is large."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [0.001, 0, 0, 0], [2, 0, 0, 2]]))
            self.body.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))

    def forward(self, images):
        return self.head(self.body(images.flatten(1)))


def test_soteria_hides_the_features_that_are_large_for_how_little_they_move():
    model, images = Chosen(), torch.full((2, 1, 2, 2), 0.5)
    layout = layout_of(model)
    mask = soteria_of(model, images, layout, share=0.3)
    assert mask.columns == (1,)
    assert mask.shape == (2, 3)
    assert layout.entries[2].name == "head.weight"
    assert mask.start == layout.entries[2].offset
    assert mask.label == "Soteria, 33 % of a representation"


def test_soteria_needs_a_layer_behind_trained_weights():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="no representation to defend"):
        soteria_of(flat, torch.rand(1, 1, 2, 2), layout_of(flat))


@given(vectors(25, 25), st.integers(0, 5), st.floats(0.05, 1))
def test_outpost_leaves_what_is_outside_its_spans_and_noises_the_largest_alone(vector, seed, share):
    before = vector.copy()
    sent = Outpost(SPANS, share=share, pruned=0.5)(vector, np.random.default_rng(seed))
    assert np.array_equal(before, vector)
    assert (sent.dtype, sent.shape) == (np.float32, (25,))
    outside = np.r_[0:2, 20:25]
    assert np.array_equal(sent[outside], vector[outside])
    moved = (sent != vector) & (sent != 0)
    count = max(1, round(share * 18))
    magnitudes = np.sort(np.abs(vector[2:20]))[::-1]
    assert (np.abs(vector[moved]) >= magnitudes[count - 1]).all()
    assert np.array_equal(Outpost(SPANS, share=share, pruned=0.5)(vector, np.random.default_rng(seed)), sent)


def test_outpost_without_noise_prunes_each_tensor():
    vector = np.arange(1, 26, dtype=np.float32)
    sent = Outpost(SPANS, pruned=0.5, noise=0.0)(vector, np.random.default_rng(0))
    assert sent[2:12].tolist() == [0] * 5 + [8, 9, 10, 11, 12]
    assert sent[12:20].tolist() == [0] * 4 + [17, 18, 19, 20]


def test_outposts_noise_is_as_large_as_the_risk_says():
    spans = (Span(0, 50_000, 0.5), Span(50_000, 100_000, 0.02))
    sent = Outpost(spans, share=1.0, pruned=0.0, noise=0.8)(np.zeros(100_000, np.float32), np.random.default_rng(1))
    assert stats.kstest(sent[:50_000] / 0.4, "norm").pvalue > 0.01
    assert stats.kstest(sent[50_000:] / 0.016, "norm").pvalue > 0.01


def test_outpost_perturbs_ever_more_rarely():
    vector = np.ones(25, np.float32)
    rng = np.random.default_rng(2)
    often = [np.mean([Outpost(SPANS, at)(vector, rng) is not vector for _ in range(2000)]) for at in (0, 8, 56)]
    assert often[0] == 1
    assert often[1:] == pytest.approx([1 / 2, 1 / 8], abs=0.04)


@given(vectors(20, 20), st.integers(0, 5))
def test_partial_noise_stays_where_it_belongs(vector, seed):
    before = vector.copy()
    sent = PartialNoise(((0, 4), (10, 15)), 2.0)(vector, np.random.default_rng(seed))
    assert np.array_equal(before, vector)
    assert (sent.dtype, sent.shape) == (np.float32, (20,))
    left = np.r_[4:10, 15:20]
    assert np.array_equal(sent[left], vector[left])
    drawn = np.random.default_rng(seed)
    noise = np.concatenate([drawn.standard_normal(4), drawn.standard_normal(5)])
    assert np.allclose(sent[np.r_[0:4, 10:15]] - vector[np.r_[0:4, 10:15]].astype(float), 2 * noise, atol=2e-3)


DEFENSES = [Soteria(0, (2, 2), (1,)), Outpost((Span(0, 4, 0.1),)), PartialNoise(((0, 4),), 1.0)]


@pytest.mark.parametrize("defense", DEFENSES)
def test_what_cannot_be_sent_or_is_too_short_is_refused(defense, rng):
    with pytest.raises(NonFiniteUpdateError):
        defense(np.array([0, np.inf, 1, 1], np.float32), rng)
    with pytest.raises(LayoutMismatchError, match="3 numbers"):
        defense(np.zeros(3, np.float32), rng)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="the layer has 2"):
        Soteria(0, (2, 2), (2,))
    with pytest.raises(ConfigError, match="overlap"):
        Outpost((Span(0, 5, 0.1), Span(4, 8, 0.1)))
    with pytest.raises(ConfigError, match="overlap"):
        PartialNoise(((0, 5), (4, 8)), 1.0)
    with pytest.raises(ConfigError, match="deviation of -1"):
        PartialNoise((), -1.0)
    with pytest.raises(ConfigError, match="pruned 1"):
        Outpost((), pruned=1.0)
