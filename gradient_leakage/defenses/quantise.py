"""Round to few levels at random, so that the mean is right: fewer bits, and no protection of any size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...utils.errors import ConfigError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .pieces import pieces, require_sendable

_ON_A_LEVEL = 2.0**-22  # relative; a number that float32 holds for a level is one


@dataclass(frozen=True, slots=True)
class Quantise:
    """Unbiased stochastic rounding to 2^bits - 1 levels, evenly from minus to plus the largest magnitude.

    Source: QSGD, Alistarh et al. 2017 (arXiv:1610.02132), with the largest magnitude in place of the norm.

    Guarantees:
        - each number becomes one of its two neighbouring levels, and the expectation over the draws is the number
          itself, up to 2^-22 of it;
        - a number on a level stays, so quantising again changes nothing;
        - shape and dtype are kept (the levels come out as numbers, not as bits); NaN and infinity are refused.

    Raises:
        ConfigError: bits outside 2 to 16.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ConfigError(f"{self.bits} bits, expected 2 to 16")

    @property
    def label(self) -> str:
        """Its width.

        >>> Quantise(8).label
        '8 bits'
        """
        return f"{self.bits} bits"

    def step_of(self, largest: float) -> float:
        """The distance of two levels, where the largest magnitude is this; also of what was quantised."""
        return largest / ((1 << self.bits - 1) - 1)

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Round; one uniform number is drawn for each number, in order."""
        require_sendable(vector)
        largest = float(max(vector.max(), -vector.min())) if vector.size else 0.0
        step = self.step_of(largest)
        if not step:
            return vector
        rounded = np.empty_like(vector)
        for piece in pieces(vector.size):
            levels = np.divide(vector[piece], step, dtype=np.float64)
            nearest = np.rint(levels)
            is_on = np.abs(levels - nearest) <= _ON_A_LEVEL * np.maximum(np.abs(levels), 1.0)
            below = np.where(is_on, nearest, np.floor(levels))
            below += rng.random(levels.size) < np.where(is_on, 0.0, levels - below)
            rounded[piece] = below * step
        return rounded
