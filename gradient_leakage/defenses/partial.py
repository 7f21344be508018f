"""Noise on some tensors alone: the second half of PPP, whose first half is a bottleneck in the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...utils.errors import ConfigError, LayoutMismatchError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .pieces import require_sendable


@dataclass(frozen=True, slots=True)
class PartialNoise:
    """Gaussian noise on the tensors before a bottleneck, where its own noise does not reach.

    Source: Scheliga, Mäder and Seeland 2022 (arXiv:2208.04767), "PRECODE with Partial Perturbation". We know the idea
    from the paper's abstract alone; which strength they settled on we are unsure of, so ``std`` is the caller's.

    Guarantees:
        - numbers outside the spans are kept to the last bit; each within gets a Gaussian of ``std`` of its own;
        - shape and dtype are kept; NaN and infinity are refused.

    Nothing is clipped, so this noise is calibrated to nothing: a heuristic, no differential privacy.

    Raises:
        ConfigError: spans that overlap or are out of order, or a deviation below 0.
    """

    spans: tuple[tuple[int, int], ...]  # start, stop
    std: float  # in the units of the update

    def __post_init__(self) -> None:
        ends = [0, *(stop for _, stop in self.spans)]
        if any(start < end or stop < start for (start, stop), end in zip(self.spans, ends, strict=False)):
            raise ConfigError("tensors of a partial perturbation overlap or are out of order")
        if not 0 <= self.std < math.inf:
            raise ConfigError(f"a standard deviation of {self.std:g}, expected 0 or more")

    @property
    def label(self) -> str:
        """Its strength.

        >>> PartialNoise((), 0.01).label
        'noise 0.01 before the bottleneck'
        """
        return f"noise {self.std:.2g} before the bottleneck"

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Draw one Gaussian for each number of each span, in order."""
        require_sendable(vector)
        if self.spans and self.spans[-1][1] > vector.size:
            raise LayoutMismatchError(f"an update of {vector.size} numbers, tensors end at {self.spans[-1][1]}")
        sent = vector.copy()
        for start, stop in self.spans:
            sent[start:stop] = vector[start:stop] + self.std * rng.standard_normal(stop - start)
        return sent
