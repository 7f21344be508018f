"""The closed form is the best linear VAE there is, and scikit-learn's PCA says the same of it."""

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.vae.linear_gaussian import LinearGaussian, elbo, fit
from sklearn.decomposition import PCA


def drawn(count: int = 200, dimensions: int = 12, seed: int = 0) -> np.ndarray:
    """Rows with four strong directions in noise of variance about 0.04."""
    rng = np.random.default_rng(seed)
    strong = rng.standard_normal((count, 4)) * [3, 2, 1, 0.7] @ rng.standard_normal((4, dimensions)) / 3
    return (strong + 0.2 * rng.standard_normal((count, dimensions))).astype(np.float32)


def bound_of(model: LinearGaussian, rows: np.ndarray) -> float:
    weights = model.weights
    encoder = (weights / model.variances).T
    return elbo(rows, weights, encoder, model.posterior_variance(), model.noise_variance)


def symmetric(rows: np.ndarray) -> np.ndarray:
    """The rows and their mirror images: a mean of 0, so that a PCA that centres finds the same model."""
    return np.concatenate([rows, -rows])


def test_directions_variances_and_noise_are_those_of_scikit_learn():
    rows = symmetric(drawn())
    model, oracle = fit(rows, 4), PCA(4).fit(rows)
    factor = (len(rows) - 1) / len(rows)  # scikit-learn divides by one less
    np.testing.assert_allclose(model.variances, oracle.explained_variance_ * factor, rtol=1e-4)
    assert model.noise_variance == pytest.approx(oracle.noise_variance_ * factor, rel=1e-4)
    np.testing.assert_allclose(np.abs(model.directions @ oracle.components_.T), np.eye(4), atol=1e-4)
    covariance = model.weights @ model.weights.T + model.noise_variance * np.eye(12)
    np.testing.assert_allclose(covariance, oracle.get_covariance() * factor, atol=1e-4)


def test_at_the_closed_form_the_bound_is_the_likelihood_itself():
    rows = symmetric(drawn())
    model = fit(rows, 4)
    covariance = model.weights @ model.weights.T + model.noise_variance * np.eye(12)
    exponent = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(covariance), rows).mean()
    likelihood = -0.5 * (12 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + exponent)
    assert bound_of(model, rows) == pytest.approx(likelihood, abs=1e-5)
    assert likelihood == pytest.approx(PCA(4).fit(rows).score(rows), abs=1e-3)


def test_the_posterior_is_that_of_the_textbook():
    rows = drawn()
    model = fit(rows, 3)
    joint = model.weights.T @ model.weights + model.noise_variance * np.eye(3)  # M of Tipping and Bishop
    np.testing.assert_allclose(model.posterior_mean(rows), rows @ model.weights @ np.linalg.inv(joint), rtol=1e-4)
    np.testing.assert_allclose(
        np.diag(model.posterior_variance()), model.noise_variance * np.linalg.inv(joint), atol=1e-7
    )


@pytest.mark.parametrize("start", ["random", "perturbed", "fixed noise"])
def test_gradient_ascent_never_beats_the_closed_form(start):
    rows = drawn(100, 8)
    model = fit(rows, 3, 0.2 if start == "fixed noise" else None)
    best = bound_of(model, rows)
    reached = ascended(rows, model, start)
    assert reached <= best + 1e-4
    if start != "random":
        assert reached >= best - 0.02  # it comes back to where it was pushed away from


def ascended(rows: np.ndarray, model: LinearGaussian, start: str) -> float:
    """The bound after Adam on weights, encoder, posterior variance and, unless it is fixed, the noise."""
    generator = torch.Generator().manual_seed(0)
    scale = 1.0 if start == "random" else 0.1
    begin = [model.weights, (model.weights / model.variances).T, np.log(model.posterior_variance())]
    begin = [np.zeros_like(each) for each in begin] if start == "random" else begin
    values = [torch.tensor(each) for each in begin]
    values = [each + scale * torch.randn(each.shape, generator=generator) for each in values]
    noise = torch.tensor(np.log(model.noise_variance))
    free = [each.requires_grad_() for each in (values if start == "fixed noise" else [*values, noise])]
    optimizer, data = torch.optim.Adam(free, lr=0.02), torch.tensor(rows, dtype=torch.float64)
    for _ in range(1200):
        optimizer.zero_grad()
        (-torch_elbo(data, *values, noise)).backward()
        optimizer.step()
    weights, encoder, spread, noise = (each.detach().numpy() for each in (*values, noise))
    return elbo(rows, weights, encoder, np.exp(spread), float(np.exp(noise)))


def torch_elbo(rows, weights, encoder, spread, noise):
    """Lucas et al. 2019 again, by the densities of torch."""
    normal = torch.distributions.Normal
    means = rows @ encoder.T
    misfit = (rows - means @ weights.T).square().sum(1).mean() + (weights.square().sum(0) * spread.exp()).sum()
    reconstruction = -0.5 * (misfit / noise.exp() + rows.shape[1] * (np.log(2 * np.pi) + noise))
    posterior = normal(means, (0.5 * spread).exp().expand_as(means))
    divergence = torch.distributions.kl_divergence(posterior, normal(torch.zeros_like(means), 1.0))
    return reconstruction - divergence.sum(1).mean()


def test_directions_below_the_noise_collapse_and_are_dropped():
    rows = drawn()
    assert len(fit(rows, 12, 0.0).variances) == 12
    model = fit(rows, 12, 0.3)
    assert 0 < len(model.variances) < 5
    assert (model.variances > 0.3).all()


def test_fewer_rows_than_coordinates_give_the_same_model_as_the_large_matrix():
    rows = drawn(8, 40)
    model = fit(rows, 3)
    values, vectors = np.linalg.eigh(rows.T.astype(np.float64) @ rows / 8)
    np.testing.assert_allclose(model.variances, values[:-4:-1], rtol=1e-5)
    np.testing.assert_allclose(np.abs(model.directions @ vectors[:, :-4:-1]), np.eye(3), atol=1e-5)
    assert model.noise_variance == pytest.approx(values[:-3].sum() / 37, rel=1e-4)


def test_no_direction_is_made_up_where_rows_repeat():
    rows = np.repeat(drawn(3, 50), 4, axis=0)
    model = fit(rows, 10)
    assert len(model.variances) == 3
    np.testing.assert_allclose(model.directions @ model.directions.T, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_the_scale_of_updates_does_not_matter(scale):
    model = fit(drawn() * np.float32(scale), 4)
    np.testing.assert_allclose(np.abs(model.directions @ fit(drawn(), 4).directions.T), np.eye(4), atol=1e-3)


def test_nothing_is_learned_from_zeros():
    with pytest.raises(ValueError, match="they are all 0"):
        fit(np.zeros((5, 9), np.float32), 2)
