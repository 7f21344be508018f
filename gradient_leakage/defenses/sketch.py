"""A count sketch whose rows are scaled to length 1: sums of a few numbers each, with random signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import ConfigError, LayoutMismatchError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .pieces import pieces, require_sendable
from .top_k import kept, require_share


@dataclass(frozen=True, slots=True)
class Sketch:
    """Each number goes, with a random sign, into one of few sums. What is sent is shorter: ``size`` numbers.

    Source: Charikar, Chen and Farach-Colton 2002 (one row of their sketch), divided by the root of how many numbers
    share a sum. The plain sketch stretches a vector by up to the root of the fullest sum; this one's rows are
    orthonormal, so it can be clipped and noised like an update.

    Guarantees:
        - linear: the sketch of a sum is the sum of the sketches, up to float32 rounding;
        - operator norm 1: a sketch is never longer than its update, and decoding keeps the length;
        - ``decode`` is the transpose: decoding a sketch is the orthogonal projection, and sketching that again gives
          the same sketch; so a decoded number is its share of its sum, shrunk by how many share it;
        - the same seed gives the same sketch on every machine; NaN and infinity are refused.

    The seed is public and hides nothing. Two rounds want two seeds.

    Raises:
        ConfigError: a share outside (0, 1], a negative seed or length.
    """

    seed: int
    share: float  # of the update's length that is sent
    length: int  # of the updates

    def __post_init__(self) -> None:
        require_share(self.share)
        if self.seed < 0 or self.length < 1:
            raise ConfigError(f"a sketch of {self.length} numbers with seed {self.seed}: expected positive ones")

    @property
    def label(self) -> str:
        """Its share.

        >>> Sketch(1, 0.05, 100).label
        'sketch to 5 %'
        """
        return f"sketch to {100 * self.share:g} %"

    @property
    def size(self) -> int:
        """Numbers that are sent."""
        return kept(self.share, self.length)

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Sum; nothing is drawn. (size,) float32 comes out."""
        del rng
        require_sendable(vector)
        self._require(vector, self.length)
        places, weights = self.placed()
        sums = np.zeros(self.size)
        for piece in pieces(self.length):
            sums += np.bincount(places[piece], weights[piece] * vector[piece].astype(np.float64), self.size)
        return sums.astype(np.float32)

    def decode(self, payload: Vector) -> Vector:
        """What a sketch, or a mean of sketches, stands for: (length,) float32."""
        self._require(payload, self.size)
        places, weights = self.placed()
        decoded: Vector = payload[places]
        decoded *= weights
        return decoded

    def placed(self) -> tuple[NDArray[np.uint32], Vector]:
        """The sum that each number goes into, and the weight that it has there; each of shape (length,)."""
        drawn = np.random.Generator(np.random.PCG64(self.seed))
        places = drawn.integers(self.size, size=self.length, dtype=np.uint32)
        signs = drawn.integers(2, size=self.length, dtype=np.int8)
        roots = np.sqrt(np.bincount(places, minlength=self.size)).astype(np.float32)
        weights = (2 * signs - 1).astype(np.float32)
        weights /= roots[places]
        return places, weights

    def _require(self, vector: Vector, length: int) -> None:
        if vector.shape != (length,):
            raise LayoutMismatchError(f"{vector.shape} numbers, this sketch takes ({length},) here")
