"""What a random projection promises."""

import hashlib

import numpy as np
import pytest
from fedveil.gradient_leakage.vae.projection import Projection
from hypothesis import given, settings
from hypothesis import strategies as st


def dense(projection: Projection) -> np.ndarray:
    """The matrix itself, (count, size)."""
    return np.stack([projection.encode(axis) for axis in np.eye(projection.size, dtype=np.float32)], axis=1)


@given(st.binary(max_size=40), st.integers(1, 200), st.data())
@settings(max_examples=30, deadline=None)
def test_rows_are_orthonormal_and_decoding_is_the_transposed_matrix(seed, size, data):
    projection = Projection.drawn(seed, size, data.draw(st.integers(1, size)))
    matrix = dense(projection)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(projection.count), atol=1e-6)
    code = np.random.default_rng(0).standard_normal(projection.count, np.float32)
    np.testing.assert_allclose(projection.decode(code), matrix.T @ code, atol=1e-5)


@given(st.integers(1000, 70_000), st.floats(0.001, 1))
@settings(max_examples=15, deadline=None)
def test_a_code_comes_back_from_its_decoding_whatever_the_length(size, share):
    projection = Projection.drawn(b"round", size, max(1, int(size * share)))
    code = np.random.default_rng(1).standard_normal(projection.count, np.float32)
    decoded = projection.decode(code)
    np.testing.assert_allclose(projection.encode(decoded), code, atol=1e-5)
    assert np.linalg.norm(decoded) == pytest.approx(np.linalg.norm(code), rel=1e-5)


def test_the_same_seed_gives_the_same_bits_on_every_machine():
    projection = Projection.drawn(b"fedveil", 5000, 64)
    drawn = hashlib.sha256(projection.signs.astype("<f4").tobytes() + projection.chosen.astype("<i8").tobytes())
    assert drawn.hexdigest() == "4398d8a0434df12aa97697d3507fa5ccb9fbfe3bf28435827af11bf9d8837b7a"
    assert (projection.chosen[:4] >= [0, 78, 156, 234]).all()
    assert (np.diff(projection.chosen) > 0).all()
    assert set(np.unique(projection.signs)) == {-1.0, 1.0}


def test_over_many_seeds_the_mean_of_what_comes_back_is_the_vector_times_count_over_size():
    vector = np.arange(1, 65, dtype=np.float32)
    draws = (Projection.drawn(n.to_bytes(4, "big"), 64, 16) for n in range(3000))
    mean = np.mean([draw.decode(draw.encode(vector)) for draw in draws], axis=0)
    # An element's standard deviation is at most |vector| sqrt(count / size / size) = 18.6; of 3,000 draws 0.34.
    np.testing.assert_allclose(mean, vector / 4, atol=5 * 0.34)


def test_rounds_are_drawn_apart():
    one, other = (Projection.drawn(seed, 4096, 256) for seed in (b"1", b"2"))
    shared = np.linalg.norm(one.encode(other.decode(np.ones(256, np.float32)))) ** 2 / 256
    assert shared == pytest.approx(256 / 4096, rel=0.3)


def test_more_rows_than_coordinates_are_refused():
    with pytest.raises(ValueError, match="5 orthonormal rows of 4"):
        Projection.drawn(b"", 4, 5)
