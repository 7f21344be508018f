"""OUTPOST: prune, and put noise where the Fisher information is large, less and less often along the rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...utils.errors import ConfigError, LayoutMismatchError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .pieces import require_sendable
from .top_k import TopK, kept, require_share


@dataclass(frozen=True, slots=True)
class Span:
    """One tensor in the vector, with what OUTPOST reads off the model that everybody has."""

    start: int
    stop: int
    risk: float  # variance of the tensor's weights, at most 1


@dataclass(frozen=True, slots=True)
class Outpost:
    """Perturb an update, with probability ``1 / (1 + decay * iteration)``.

    Source: Wang, Hugenroth and Li, INFOCOM 2023, "More than Enough is Too Much: Adaptive Defenses against Gradient
    Leakage in Production Federated Learning". Taken over: the risk of a tensor is the variance of its weights; the
    smallest numbers of each tensor are pruned; Gaussian noise of ``noise * risk`` goes to the ``share`` of all numbers
    with the largest Fisher information. Simplified: the Fisher information is the square of the update itself, number
    by number (their code averages it over a tensor's first axis), and a whole update is perturbed once, where they
    perturb each local step. The decay is written down from memory of the paper.

    Guarantees:
        - numbers outside the spans are kept to the last bit; within, without noise, a number is kept or zero;
        - at most ``share`` of the numbers in the spans get noise, those of largest magnitude;
        - shape and dtype are kept; NaN and infinity are refused.

    A heuristic: which numbers got noise shows in their size, the others of a tensor match as before, and late rounds
    are mostly sent as they are.

    Raises:
        ConfigError: spans that overlap, or a setting out of range.
    """

    spans: tuple[Span, ...]
    iteration: int = 0  # of the training, as the site counts
    share: float = 0.4
    pruned: float = 0.8
    noise: float = 0.8
    decay: float = 0.125

    def __post_init__(self) -> None:
        require_share(self.share)
        ends = [0, *(span.stop for span in self.spans)]
        if any(span.start < end or span.stop < span.start for span, end in zip(self.spans, ends, strict=False)):
            raise ConfigError("tensors of OUTPOST overlap or are out of order")
        if not (0 <= self.pruned < 1 and 0 <= self.noise < math.inf and self.decay >= 0 and self.iteration >= 0):
            numbers = f"pruned {self.pruned:g}, noise {self.noise:g}, decay {self.decay:g}, iteration {self.iteration}"
            raise ConfigError(f"{numbers}: out of range")

    @property
    def label(self) -> str:
        """What is noised and what pruned.

        >>> Outpost(()).label
        'OUTPOST, noise on 40 %, 80 % pruned'
        """
        return f"OUTPOST, noise on {100 * self.share:g} %, {100 * self.pruned:g} % pruned"

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Draw whether to perturb; then a Gaussian for each number of each span, in order."""
        require_sendable(vector)
        if self.spans and self.spans[-1].stop > vector.size:
            raise LayoutMismatchError(f"an update of {vector.size} numbers, tensors end at {self.spans[-1].stop}")
        if float(rng.random(1)[0]) >= 1 / (1 + self.decay * self.iteration) or not self.spans:
            return vector
        least = self._least(vector)
        sent = vector.copy()
        for span in self.spans:
            held = vector[span.start : span.stop]
            if not held.size:
                continue
            kept_ones = TopK(1 - self.pruned)(held, rng)
            drawn = rng.standard_normal(held.size) * (self.noise * span.risk)
            sent[span.start : span.stop] = kept_ones + np.where(np.abs(held) >= least, drawn, 0.0)
        return sent

    def _least(self, vector: Vector) -> float:
        """The smallest magnitude that still gets noise, over all spans."""
        magnitudes = np.concatenate([np.abs(vector[span.start : span.stop]) for span in self.spans])
        if not magnitudes.size:
            return math.inf
        place = magnitudes.size - kept(self.share, magnitudes.size)
        return float(np.partition(magnitudes, place)[place])
