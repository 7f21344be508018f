"""Clip and noise as one object, since the noise is only right for the bound that was in fact applied."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...utils.errors import ConfigError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .clip import Clip, factor_to, require_bound
from .pieces import pieces


@dataclass(frozen=True, slots=True)
class GaussianMechanism:
    """Clip the whole update, then add Gaussian noise in proportion to the bound.

    Source: Abadi et al. 2016 (arXiv:1607.00133), on one site's whole update (McMahan et al. 2018, arXiv:1710.06963).

    Guarantees:
        - before the noise the L2 norm is at most ``max_norm``;
        - the noise is independent in each number, of standard deviation ``noise_multiplier * max_norm``, and is added
          in float64 before the one rounding to float32;
        - shape and dtype are kept; NaN and infinity are refused.

    The unit that this protects is *one release of one site*, whoever of its patients is in it, and two sites of
    different data are told apart by at most 2 * ``max_norm``. No patient has an epsilon by it.

    Raises:
        ConfigError: a bound that is not above 0, or a multiplier below 0.
    """

    max_norm: float  # L2, in the units of what is clipped
    noise_multiplier: float  # standard deviation / max_norm; 0 is clipping alone

    def __post_init__(self) -> None:
        require_bound(self.max_norm)
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigError(f"noise_multiplier is {self.noise_multiplier:g}, expected 0 or more")

    @property
    def label(self) -> str:
        """Bound and multiplier.

        >>> GaussianMechanism(1.0, 0.1).label
        'clip 1 + noise 0.1'
        """
        return f"clip {self.max_norm:g} + noise {self.noise_multiplier:g}"

    @property
    def noise_std(self) -> float:
        """Of each number."""
        return self.max_norm * self.noise_multiplier

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Clip, then draw one Gaussian for each number, in order; none where there is no noise."""
        if not self.noise_multiplier:
            return Clip(self.max_norm)(vector, rng)
        factor = factor_to(self.max_norm, vector)
        sent = np.empty_like(vector)
        for piece in pieces(vector.size):
            noisy = rng.standard_normal(piece.stop - piece.start) * self.noise_std
            noisy += np.multiply(vector[piece], factor, dtype=np.float64)
            sent[piece] = noisy
        return sent
