"""Top-k, sketches, quantisation, codes: what each promises, none of it privacy."""

import numpy as np
import pytest
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.defenses.quantise import Quantise
from fedveil.gradient_leakage.defenses.sketch import Sketch
from fedveil.gradient_leakage.defenses.top_k import TopK
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.utils.errors import ConfigError, LayoutMismatchError, NonFiniteUpdateError
from fedveil.utils.tensors import Layout, Role
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

SHARES = st.floats(0.001, 1)
LAYOUT = Layout.of([("w", (10, 20), Role.PARAMETER), ("b", (10,), Role.PARAMETER)])


SMALL = st.floats(-1e4, 1e4, width=32)


def vectors(least=1, most=200, elements=SMALL):
    return arrays.arrays(np.float32, st.integers(least, most), elements=elements)


@given(vectors(elements=st.sampled_from([np.float32(x) for x in (-3, -1, -0.5, 0.5, 1, 2)])), SHARES)
def test_top_k_keeps_exactly_the_k_largest_to_the_last_bit(vector, share):
    before = vector.copy()
    sent = TopK(share)(vector, None)
    count = max(1, round(share * vector.size))
    assert np.array_equal(before, vector)
    assert (sent.dtype, sent.shape) == (np.float32, vector.shape)
    assert np.count_nonzero(sent) == count
    kept = sent != 0
    assert np.array_equal(sent[kept], vector[kept])
    if not kept.all():
        assert np.abs(vector[kept]).min() >= np.abs(vector[~kept]).max()


@given(vectors(), SHARES)
def test_sending_the_largest_of_the_largest_changes_nothing(vector, share):
    once = TopK(share)(vector, None)
    assert np.array_equal(TopK(share)(once, None), once)


def test_of_equal_numbers_the_first_are_kept():
    assert TopK(0.5)(np.array([1, -1, 1, 1], np.float32), None).tolist() == [1, -1, 0, 0]


@given(vectors(20, 20), vectors(20, 20), st.integers(0, 5), st.floats(0.05, 1))
def test_a_sketch_is_linear_and_never_longer_than_its_update(one, other, seed, share):
    sketch = Sketch(seed, share, 20)
    scale = max(1.0, float(np.abs(one).max()), float(np.abs(other).max()))
    together = sketch(one + 2 * other, None)
    assert together.shape == (max(1, round(share * 20)),)
    assert np.allclose(together, sketch(one, None) + 2 * sketch(other, None), atol=1e-5 * scale)
    assert np.linalg.norm(sketch(one, None).astype(float)) <= np.linalg.norm(one.astype(float)) * (1 + 1e-6)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
def test_the_rows_of_a_sketch_are_orthonormal_or_empty(share):
    sketch = Sketch(3, share, 100)
    matrix = np.stack([sketch(row, None) for row in np.eye(100, dtype=np.float32)], axis=1)
    lengths = np.linalg.norm(matrix, axis=1)
    assert np.linalg.norm(matrix, 2) == pytest.approx(1)
    assert np.allclose(matrix @ matrix.T, np.diag(lengths > 0), atol=1e-6)
    assert np.allclose(
        np.stack([sketch.decode(row) for row in np.eye(sketch.size, dtype=np.float32)], axis=1), matrix.T
    )


@given(vectors(50, 50), st.integers(0, 5))
def test_a_decoded_sketch_has_the_same_sketch(vector, seed):
    sketch = Sketch(seed, 0.2, 50)
    sent = sketch(vector, None)
    assert np.allclose(sketch(sketch.decode(sent), None), sent, atol=1e-5 * max(1.0, float(np.abs(sent).max())))


def test_a_sketch_follows_from_its_seed_alone(rng):
    vector = rng.standard_normal(200_000).astype(np.float32)
    sent = Sketch(7, 0.05, vector.size)(vector, rng)
    assert np.array_equal(sent, Sketch(7, 0.05, vector.size)(vector, None))
    assert not np.array_equal(sent, Sketch(8, 0.05, vector.size)(vector, None))
    assert len(sent) == 10_000


@given(vectors(), st.integers(2, 16), st.integers(0, 5))
def test_quantised_numbers_are_one_of_their_two_neighbouring_levels(vector, bits, seed):
    before, quantise = vector.copy(), Quantise(bits)
    sent = quantise(vector, np.random.default_rng(seed))
    assert np.array_equal(before, vector)
    assert (sent.dtype, sent.shape) == (np.float32, vector.shape)
    largest = float(np.abs(vector).max())
    step = quantise.step_of(largest)
    assert (np.abs(sent.astype(float) - vector) <= step * (1 + 1e-6) + 1e-6 * largest).all()
    assert float(np.abs(sent).max()) == largest
    if step:
        levels = sent.astype(float) / step
        assert np.allclose(levels, np.rint(levels), atol=1e-2)


@given(vectors(), st.integers(2, 16), st.integers(0, 5))
def test_quantising_again_changes_nothing_and_the_same_draws_give_the_same(vector, bits, seed):
    once = Quantise(bits)(vector, np.random.default_rng(seed))
    assert np.array_equal(Quantise(bits)(vector, np.random.default_rng(seed)), once)
    assert np.array_equal(Quantise(bits)(once, np.random.default_rng(seed + 1)), once)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantisation_is_right_on_average(bits, rng):
    vector = rng.uniform(-1, 1, 50).astype(np.float32)
    draws = 4000
    mean = np.mean([Quantise(bits)(vector, rng) for _ in range(draws)], axis=0)
    step = Quantise(bits).step_of(float(np.abs(vector).max()))
    assert (np.abs(mean - vector) < 5 * step / 2 / np.sqrt(draws) + 1e-6).all()


def test_a_code_is_what_the_codec_gives_and_decodes_to_its_projection(rng):
    codec = fit(LAYOUT, rng.standard_normal((40, LAYOUT.size)).astype(np.float32), 10)
    coded, vector = Coded(codec), rng.standard_normal(LAYOUT.size).astype(np.float32)
    assert np.array_equal(coded(vector, rng), codec.encode(vector))
    assert np.allclose(coded(coded.decode(coded(vector, rng)), rng), coded(vector, rng), atol=1e-5)
    assert coded.label == "learned code 10x"
    assert Coded(seeded(LAYOUT, 10)).label == "seeded code 10x"


@pytest.mark.parametrize("defense", [TopK(0.5), Sketch(0, 0.5, 3), Quantise(4)])
def test_what_cannot_be_sent_is_refused(defense, rng):
    with pytest.raises(NonFiniteUpdateError):
        defense(np.array([0, np.nan, 1], np.float32), rng)
    with pytest.raises(LayoutMismatchError):
        defense(np.zeros(3), rng)


def test_settings_out_of_range_are_refused(rng):
    for share in (0, -0.1, 1.1, np.nan):
        with pytest.raises(ConfigError, match="share"):
            TopK(share)
        with pytest.raises(ConfigError, match="share"):
            Sketch(0, share, 10)
    with pytest.raises(ConfigError, match="seed -1"):
        Sketch(-1, 0.5, 10)
    for bits in (1, 17):
        with pytest.raises(ConfigError, match="2 to 16"):
            Quantise(bits)
    with pytest.raises(LayoutMismatchError, match=r"\(10,\)"):
        Sketch(0, 0.5, 10)(np.zeros(9, np.float32), rng)
    with pytest.raises(LayoutMismatchError, match=r"\(5,\)"):
        Sketch(0, 0.5, 10).decode(np.zeros(6, np.float32))


def test_nothing_but_zeros_stays_nothing_but_zeros(rng):
    nothing = np.zeros(10, np.float32)
    for defense in (TopK(0.5), Sketch(0, 0.5, 10), Quantise(8)):
        assert not defense(nothing, rng).any()
