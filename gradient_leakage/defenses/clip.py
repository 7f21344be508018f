"""Clip the whole update to a norm: bounds what one release can say, and hides nothing by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...utils.errors import ConfigError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .pieces import norm_of, pieces

_WITHIN = 1 - 2.0**-22
"""Rounding the factor and each product to float32 lengthens a number by 2^-23 of itself at most; the bound holds."""
_SMALLEST_FACTOR = 1e-30  # of those that float32 holds to its full precision


@dataclass(frozen=True, slots=True)
class Clip:
    """Scale the update down to an L2 norm of ``max_norm``, where it is longer.

    Guarantees:
        - the norm of what is sent is at most ``max_norm``, in exact arithmetic on the float32 numbers;
        - direction, shape and dtype are kept; an update within the bound is handed on as it is;
        - NaN and infinity are refused.

    A clip alone is no protection: it scales all numbers alike, and an attacker's cosine does not see it.

    Raises:
        ConfigError: a bound that is not above 0.
    """

    max_norm: float  # L2, in the units of the parameters

    def __post_init__(self) -> None:
        require_bound(self.max_norm)

    @property
    def label(self) -> str:
        """Its bound.

        >>> Clip(0.5).label
        'clip 0.5'
        """
        return f"clip {self.max_norm:g}"

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Clip; nothing is drawn."""
        del rng
        factor = factor_to(self.max_norm, vector)
        if factor == 1:
            return vector
        clipped = np.empty_like(vector)
        precision = np.float32 if factor > _SMALLEST_FACTOR else np.float64  # three times as fast where it will do
        for piece in pieces(vector.size):
            np.multiply(vector[piece], factor, out=clipped[piece], dtype=precision, casting="same_kind")
        return clipped


def factor_to(max_norm: float, vector: Vector) -> float:
    """What to multiply the vector by, in float64, to bring it within the bound; 1 where it is.

    Raises:
        UnsendableUpdateError: no finite float32 vector.
    """
    norm = norm_of(vector)
    return 1.0 if norm <= max_norm else max_norm / norm * _WITHIN


def require_bound(max_norm: float) -> None:
    """Refuse a bound that bounds nothing.

    Raises:
        ConfigError: it is not a finite number above 0.
    """
    if not 0 < max_norm < math.inf:
        raise ConfigError(f"max_norm is {max_norm:g}, expected a number above 0")
