"""The linear-Gaussian VAE in closed form: probabilistic PCA of updates, of mean 0.

``x = W z + noise``, z standard normal in r dimensions, noise of variance sigma^2 in each of d. With a linear Gaussian
encoder the evidence lower bound is highest exactly where the marginal likelihood is, and it has no further spurious
maxima (Lucas et al. 2019, arXiv:1911.02469, theorem 1): W = U (L - sigma^2 I)^(1/2), with U the first eigenvectors of
the second moments of x and L their eigenvalues (Tipping & Bishop 1999, equation 7); sigma^2 is the mean of the
eigenvalues that are left out (equation 8), or given. Directions with at most sigma^2
collapse and are dropped.

Updates are *not* centred: moments are about 0, which makes decoding linear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...utils.tensors import Vector
from .blocks import Matrix

_NEGLIGIBLE = 1e-11  # of the largest eigenvalue: below it a float64 Gram matrix of float32 numbers holds rounding alone
_COLUMNS = 1 << 15  # coordinates that are in float64 at once


@dataclass(frozen=True, slots=True, eq=False)
class LinearGaussian:
    """A fitted model. Along direction i the data have second moment ``variances[i]``, above the noise variance."""

    directions: Matrix  # (r, d), orthonormal rows, by falling variance
    variances: Vector  # (r,)
    noise_variance: float  # sigma squared

    @property
    def weights(self) -> NDArray[np.float64]:
        """W, (d, r)."""
        scale = np.sqrt(np.maximum(0, self.variances.astype(np.float64) - self.noise_variance))
        return self.directions.astype(np.float64).T * scale

    def posterior_mean(self, rows: Matrix) -> NDArray[np.float64]:
        """E[z|x] of each row, (count, r): M^-1 W^T x with M = W^T W + sigma^2 I (Tipping & Bishop, section 3.2)."""
        return rows @ (self.weights / self.variances)

    def posterior_variance(self) -> NDArray[np.float64]:
        """Of each z given x, (r,): sigma^2 M^-1, which is diagonal here and the same for every x."""
        return self.noise_variance / self.variances.astype(np.float64)


def fit(rows: Matrix, rank: int, noise_variance: float | None = None) -> LinearGaussian:
    """The maximum-likelihood model with at most ``rank`` directions.

    Exact, by the eigenvalues of the smaller Gram matrix, in float64 block by block: O(count * d * min(count, d)).

    Args:
        rows: (count, d) updates, as they are.
        rank: of the code, if so many directions stand out.
        noise_variance: sigma squared; None: its maximum-likelihood value, 0 where no direction is left out.

    Raises:
        ValueError: a rank below 1, no rows, or all of them 0.
    """
    count, dimensions = rows.shape
    values, vectors = np.linalg.eigh(_gram(rows) / count)
    values, vectors = values[::-1], vectors[:, ::-1]
    present = int((values > _NEGLIGIBLE * values[0]).sum()) if values.size and values[0] > 0 else 0
    if rank < 1 or not present:
        raise ValueError(f"no {rank} directions in {count} updates: they are all 0, or none is wanted")
    kept = min(rank, present)
    if noise_variance is None:
        left_out = dimensions - kept
        noise_variance = float(max(0.0, values[kept:present].sum())) / left_out if left_out else 0.0
    kept = int((values[:kept] > noise_variance).sum())
    directions = _directions(rows, vectors[:, :kept])
    return LinearGaussian(directions, values[:kept].astype(np.float32), noise_variance)


def elbo(
    rows: Matrix,
    weights: NDArray[np.float64],
    encoder: NDArray[np.float64],
    posterior_variance: NDArray[np.float64],
    noise_variance: float,
) -> float:
    """Mean evidence lower bound, in nats a row, of a linear VAE with *any* parameters.

    E_q[log N(x; W z, sigma^2 I)] - KL(q(z|x) || N(0, I)) with q(z|x) = N(V x, diag(D)): Lucas et al. 2019, equations 6
    to 8, of mean 0.

    Args:
        rows: (count, d).
        weights: W, (d, r).
        encoder: V, (r, d).
        posterior_variance: the diagonal of D, (r,), above 0.
        noise_variance: sigma squared, above 0.
    """
    dimensions = rows.shape[1]
    means = rows @ encoder.T
    misfit = np.square(rows - means @ weights.T).sum(axis=1).mean()
    misfit += (np.square(weights).sum(axis=0) * posterior_variance).sum()
    reconstruction = -0.5 * (misfit / noise_variance + dimensions * math.log(2 * math.pi * noise_variance))
    divergence = 0.5 * (posterior_variance - np.log(posterior_variance) - 1).sum()
    divergence += 0.5 * np.square(means).sum(axis=1).mean()
    return float(reconstruction - divergence)


def _gram(rows: Matrix) -> NDArray[np.float64]:
    """``rows @ rows.T`` in float64, or ``rows.T @ rows`` where that is smaller."""
    count, dimensions = rows.shape
    if count > dimensions:
        wide = rows.astype(np.float64)
        return wide.T @ wide
    gram = np.zeros((count, count))
    for start in range(0, dimensions, _COLUMNS):
        piece = rows[:, start : start + _COLUMNS].astype(np.float64)
        gram += piece @ piece.T
    return gram


def _directions(rows: Matrix, vectors: NDArray[np.float64]) -> Matrix:
    """Orthonormal rows from eigenvectors of the Gram matrix, each with its largest element above 0."""
    if len(rows) <= rows.shape[1]:
        # Rounding of the Gram matrix leaves the images of its last eigenvectors a little oblique.
        vectors = np.linalg.qr(rows.T.astype(np.float64) @ vectors)[0]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return np.ascontiguousarray((vectors * signs).T, np.float32)
