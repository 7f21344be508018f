"""A private step: what one patient can change, what noise is on it, and a second implementation to hold it against."""

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.private_steps import private_gradient, private_payload
from fedveil.gradient_leakage.vae.codec import codec_of
from fedveil.gradient_leakage.vae.codec_file import Basis
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.utils.errors import ConfigError, LayoutMismatchError, NonFiniteUpdateError
from fedveil.utils.tensors import Layout, Role
from hypothesis import given
from hypothesis import strategies as st

LAYOUT = Layout.of([("w", (8, 9), Role.PARAMETER), ("seen", (5,), Role.BUFFER), ("b", (8,), Role.PARAMETER)])
LARGE = Layout.of([("w", (300, 240), Role.PARAMETER), ("b", (3,), Role.PARAMETER)])


def gradients(count, layout=LAYOUT, seed=0, scale=1.0):
    return np.random.default_rng(seed).standard_normal((count, layout.size), np.float32) * np.float32(scale)


CODECS = {
    "none": None,
    "learned": fit(LAYOUT, gradients(40), 5),
    "half fresh": fit(LAYOUT, gradients(40), 5, seeded_share=0.5).for_round(b"1"),
    "seeded": seeded(LAYOUT, 5).for_round(b"1"),
}


class Counted:
    """Noise that says how much of it was asked for."""

    def __init__(self):
        self.drawn = []

    def standard_normal(self, size):
        self.drawn.append(size)
        return np.ones(size)

    def random(self, size):
        raise AssertionError(size)


@pytest.mark.parametrize("name", CODECS)
@given(
    count=st.integers(1, 6),
    seed=st.integers(0, 99),
    bound=st.floats(1e-3, 50),
    scale=st.floats(1e-3, 1e3),
)
def test_one_patient_more_changes_the_sum_by_at_most_the_bound(name, count, seed, bound, scale):
    rows, silent = gradients(count, seed=seed, scale=scale), GaussianMechanism(bound, 0.0)
    whole, less = (private_payload(some, CODECS[name], silent, Counted()) for some in (rows, rows[:-1]))
    assert np.linalg.norm(whole - less) <= bound * (1 + 1e-9)
    alone = private_payload(rows[-1:], CODECS[name], silent, Counted())
    np.testing.assert_allclose(whole - less, alone, rtol=1e-4, atol=1e-5 * bound)  # BLAS rounds by the number of rows


@pytest.mark.parametrize("name", CODECS)
def test_the_noise_is_the_mechanisms_on_every_number_whoever_is_there(name):
    codec, mechanism = CODECS[name], GaussianMechanism(2.0, 1.5)
    size = LAYOUT.size if codec is None else codec.size
    for count in (0, 1, 5):
        source = Counted()
        noised = private_payload(gradients(count), codec, mechanism, source)
        silent = private_payload(gradients(count), codec, GaussianMechanism(2.0, 0.0), Counted())
        np.testing.assert_allclose(noised - silent, 3.0, rtol=1e-9)
        assert source.drawn == [size]


def test_the_noise_has_the_law_of_its_name():
    drawn = private_payload(gradients(0, LARGE), None, GaussianMechanism(0.5, 2.0), np.random.default_rng(1))
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert drawn.std() == pytest.approx(1.0, rel=0.02)


def test_code_and_entries_that_pass_are_clipped_together():
    codec = CODECS["learned"]
    assert [entry.name for entry in codec.passed] == ["seen"]
    sent = private_payload(gradients(1, scale=100), codec, GaussianMechanism(1.0, 0.0), Counted())
    assert np.linalg.norm(sent) == pytest.approx(1.0, rel=1e-5)
    assert 0 < np.linalg.norm(sent[codec.code_size :]) < 1


def test_two_gradients_by_hand():
    rows = np.array([[3.0, 4.0], [0.3, 0.4]], np.float32)
    found = private_gradient(rows, None, GaussianMechanism(1.0, 0.0), Counted(), expected_patients=4)
    np.testing.assert_allclose(found, [(0.6 + 0.3) / 4, (0.8 + 0.4) / 4], rtol=1e-6)


def test_the_denominator_is_the_expected_number_and_not_how_many_came():
    found = private_gradient(gradients(0), CODECS["learned"], GaussianMechanism(1.0, 0.0), Counted(), 10)
    assert found.shape == (LAYOUT.size,)
    assert not found.any()


@pytest.mark.parametrize("name", ["learned", "half fresh", "seeded"])
def test_with_a_bound_that_nobody_reaches_the_step_is_the_projected_mean(name):
    codec, rows = CODECS[name], gradients(7)
    found = private_gradient(rows, codec, GaussianMechanism(1e6, 0.0), Counted(), 7)
    np.testing.assert_allclose(found, codec.decode(codec.encode(rows.mean(0))), atol=1e-5)


def test_rows_are_encoded_as_each_would_be():
    large = fit(LARGE, gradients(12, LARGE), 100)
    for codec in (*filter(None, CODECS.values()), large):
        rows = gradients(5, codec.layout, seed=3)
        np.testing.assert_allclose(codec.encode_rows(rows), [codec.encode(row) for row in rows], rtol=1e-4, atol=1e-4)


def test_what_is_no_gradient_is_refused():
    rows, codec = gradients(2), codec_of(LAYOUT, Basis.LEARNED, CODECS["learned"].blocks)
    with pytest.raises(LayoutMismatchError, match="rows of 85"):
        private_payload(rows[:, 1:], codec, GaussianMechanism(1.0, 0.0), Counted())
    with pytest.raises(ConfigError, match="expected_patients is 0"):
        private_gradient(rows, None, GaussianMechanism(1.0, 0.0), Counted(), 0)
    rows[1, 3] = np.nan
    for one in (None, codec):
        with pytest.raises(NonFiniteUpdateError):
            private_payload(rows, one, GaussianMechanism(1.0, 0.0), Counted())


@pytest.mark.parametrize("bound", [0.05, 1.0, 1e3])
def test_without_codec_and_noise_it_is_the_clipped_sum_of_opacus(bound):
    optimizers = pytest.importorskip("opacus.optimizers")
    torch.manual_seed(0)
    shapes, count = ((6, 4), (6,)), 9
    each = [torch.randn(count, *shape) for shape in shapes]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = optimizers.DPOptimizer(
        torch.optim.SGD(parameters, lr=1.0), noise_multiplier=0.0, max_grad_norm=bound, expected_batch_size=count
    )
    for parameter, one in zip(parameters, each, strict=True):
        parameter.grad_sample = one
    optimizer.step()
    theirs = torch.cat([-parameter.detach().reshape(-1) for parameter in parameters]).numpy()
    rows = torch.cat([one.reshape(count, -1) for one in each], dim=1).numpy()
    ours = private_gradient(rows, None, GaussianMechanism(bound, 0.0), Counted(), count)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
