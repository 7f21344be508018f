"""The nonlinear baseline: what it does, and that its codes do not sum."""

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.vae.nonlinear import NonlinearCoder, train_nonlinear
from fedveil.utils.errors import ConfigError, LayoutMismatchError
from fedveil.utils.tensors import Layout, Role


@pytest.fixture(scope="module")
def structured(small: Layout) -> np.ndarray:
    """300 updates along five directions, a tenth of their energy noise."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 5)) @ rng.standard_normal((5, small.size)) / np.sqrt(5)
    return (0.01 * (rows + 0.3 * rng.standard_normal(rows.shape))).astype(np.float32)


@pytest.fixture(scope="module")
def coder(small: Layout, structured: np.ndarray) -> NonlinearCoder:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as `one_thread` does, which comes after fixtures of a module
    try:
        return train_nonlinear(small, structured[:250], latent=8, hidden=64)
    finally:
        torch.set_num_threads(before)


def test_it_learns_updates_that_have_a_structure(coder, structured):
    parameters = coder.layout.slice_of(Role.PARAMETER)
    rng = np.random.default_rng(1)
    held = structured[250:, parameters]
    coded = np.stack([coder(update, rng) for update in structured[250:]])[:, parameters]
    assert np.square(coded - held).sum() < 0.5 * np.square(held).sum()


def test_an_update_goes_in_and_an_update_comes_out_whose_buffers_passed(coder, structured):
    sent = coder(structured[0], np.random.default_rng(0))
    buffers = coder.layout.slice_of(Role.BUFFER)
    assert (sent.shape, sent.dtype) == (structured[0].shape, np.float32)
    assert np.array_equal(sent[buffers], structured[0][buffers])
    assert not np.array_equal(sent, structured[0])


def test_its_codes_do_not_sum(coder, structured):
    parameters, network = coder.layout.slice_of(Role.PARAMETER), coder.network
    rows = torch.tensor(structured[:2, parameters]) / coder.scale
    codes = network.encode(rows)[0]
    mean_of_decoded, decoded_mean = network.decode(codes).mean(dim=0), network.decode(codes.mean(dim=0))
    assert (mean_of_decoded - decoded_mean).norm() > 0.05 * mean_of_decoded.norm()


def test_the_same_seed_trains_the_same_network_and_leaves_the_processs_generator_alone(small, structured):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (train_nonlinear(small, structured[:20], latent=2, hidden=4, steps=5) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    sent = [each(structured[0], np.random.default_rng(0)) for each in (first, second)]
    assert np.array_equal(*sent)


def test_what_it_is_not_for_is_refused(small, large, coder):
    with pytest.raises(ConfigError, match="at most 65536"):
        train_nonlinear(large, np.ones((2, large.size), np.float32))
    with pytest.raises(ConfigError, match="all 0"):
        train_nonlinear(small, np.zeros((2, small.size), np.float32))
    with pytest.raises(ConfigError, match="expected"):
        train_nonlinear(small, np.ones((2, 3), np.float32))
    with pytest.raises(LayoutMismatchError, match="this VAE is for"):
        coder(np.zeros(3, np.float32), np.random.default_rng(0))
