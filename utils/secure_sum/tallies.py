"""What is counted beside the vector: examples, cuts, metrics. Words of 64 bits, summed like the vector, masked like it.

The tallies stand behind the body of the vector, which is padded to an even number of 32-bit words (with zeros, masked
as all else). Each is a number modulo 2^64, in this order:

| word                     | holds                                                                     |
|--------------------------|---------------------------------------------------------------------------|
| 1                        | examples, after capping: the weight                                       |
| 1                        | contributions: 1                                                          |
| one for each tensor      | how many of its numbers were cut at the bound                             |
| of each metric, in order | its values and then its weight, each times 2^20, rounded, two's complement |
| 64, or none              | histogram of floor(log2) of the L2 norm of the vector: a 1 in one bin      |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import MalformedMessageError, UnsendableUpdateError
from ..metrics import AUC_BINS, MetricKind, MetricSum

SCALE = 1 << 20
"""What a metric's values are multiplied by."""
MAX_VALUE = 1 << 34
"""Largest magnitude of a metric's value at one site: 256 sites fit their sum in 63 bits."""
HISTOGRAM_BINS = 64
LOWEST_EXPONENT = -32
"""floor(log2 norm) of the first bin, which also holds all below it; the last holds all above it."""
_FIXED = 2


@dataclass(frozen=True, slots=True)
class MetricShape:
    """One metric's place in the tallies."""

    name: str
    kind: MetricKind

    @property
    def words(self) -> int:
        """Values and weight."""
        return 1 + (1 if self.kind is MetricKind.MEAN else 2 * AUC_BINS)


@dataclass(frozen=True, slots=True)
class Tallies:
    """What a sum says beside the vector."""

    num_examples: int  # the sum of the weights
    contributions: int  # of how many sites
    clipped: tuple[int, ...]  # numbers cut, of each tensor
    metrics: tuple[MetricSum, ...]
    histogram: tuple[int, ...] = ()  # sites whose norm lies in the bin; empty where none was asked for


@dataclass(frozen=True, slots=True)
class TallyLayout:
    """Which tallies a sum has.

    Raises:
        ValueError: fewer than 0 tensors, or metrics that are not sorted by name or have one name twice.
    """

    metrics: tuple[MetricShape, ...]
    tensors: int
    histogram: bool = False

    def __post_init__(self) -> None:
        names = [shape.name for shape in self.metrics]
        if self.tensors < 0 or names != sorted(set(names)):
            raise ValueError("metrics stand in the order of their names, each once, behind 0 or more tensors")

    @property
    def counts(self) -> int:
        """Words of 64 bits."""
        bins = HISTOGRAM_BINS if self.histogram else 0
        return _FIXED + self.tensors + sum(shape.words for shape in self.metrics) + bins

    @property
    def words(self) -> int:
        """Words of 32 bits."""
        return 2 * self.counts

    def encode(
        self,
        num_examples: int,
        clipped: NDArray[np.int64],
        metrics: Sequence[MetricSum] = (),
        norm: float | None = None,
    ) -> NDArray[np.uint64]:
        """One site's tallies.

        Args:
            num_examples: after capping.
            clipped: int64, one for each tensor, at least 0.
            metrics: those of the layout and perhaps others, which stay here.
            norm: L2, of the vector before cutting; where the layout has a histogram.

        Returns:
            uint64, shape (counts,).

        Raises:
            UnsendableUpdateError: a metric that the layout names is missing, of another kind, or too large.
            ValueError: counts that are none, or no norm for the histogram.
        """
        if num_examples < 0 or clipped.shape != (self.tensors,) or (clipped < 0).any():
            raise ValueError(f"{num_examples} examples, clipped counts of shape {clipped.shape}")
        words = np.zeros(self.counts, np.int64)
        words[:_FIXED] = num_examples, 1
        words[_FIXED : _FIXED + self.tensors] = clipped
        by_name, at = {metric.name: metric for metric in metrics}, _FIXED + self.tensors
        for shape in self.metrics:
            words[at : at + shape.words] = _fixed(shape, by_name.get(shape.name))
            at += shape.words
        if self.histogram:
            if norm is None or not 0 <= norm < math.inf:
                raise ValueError("the histogram needs a norm that is finite and at least 0")
            words[at + bin_of(norm)] = 1
        return words.view(np.uint64)

    def decode(self, total: NDArray[np.uint64]) -> Tallies:
        """The tallies of a sum, unmasked.

        Raises:
            MalformedMessageError: counts below 0, metrics that cannot be, a histogram of more or fewer sites: a site
                sent what is no part of the sum, or the masks did not cancel.
            ValueError: another shape or type.
        """
        if total.shape != (self.counts,) or total.dtype != np.uint64:
            raise ValueError(f"{total.dtype} {total.shape}, expected uint64 ({self.counts},)")
        words = total.view(np.int64)
        at = _FIXED + self.tensors
        counts, metrics = words[:at], []
        for shape in self.metrics:
            values = tuple(float(value) for value in words[at : at + shape.words] / SCALE)
            at += shape.words
            try:
                metrics.append(MetricSum(shape.name, shape.kind, values[:-1], values[-1]))
            except ValueError as error:
                raise MalformedMessageError(f"the tallies of a sum hold no metric {shape.name}: {error}") from None
        histogram = words[at:]
        if (counts < 0).any() or (histogram < 0).any() or (self.histogram and histogram.sum() != counts[1]):
            raise MalformedMessageError(
                "the tallies of a sum are no counts: a site sent what is no part of it, or the masks did not cancel"
            )
        num_examples, contributions, *clipped = map(int, counts)
        return Tallies(num_examples, contributions, tuple(clipped), tuple(metrics), tuple(map(int, histogram)))


def padded(words: int) -> int:
    """32-bit words of a body with its padding, behind which tallies begin at a multiple of 8 bytes."""
    return words + words % 2


def bin_of(norm: float) -> int:
    """The histogram's bin for an L2 norm.

    >>> bin_of(1.0), bin_of(0.0), bin_of(1e300)
    (32, 0, 63)
    """
    exponent = math.frexp(norm)[1] - 1 if norm else LOWEST_EXPONENT
    return min(max(exponent - LOWEST_EXPONENT, 0), HISTOGRAM_BINS - 1)


def _fixed(shape: MetricShape, metric: MetricSum | None) -> NDArray[np.int64]:
    if metric is None or metric.kind is not shape.kind:
        raise UnsendableUpdateError(
            f"metric {shape.name}: none of kind {shape.kind.value} came, though it was announced"
        )
    values = np.array((*metric.values, metric.weight))
    if not (np.abs(values) <= MAX_VALUE).all():
        raise UnsendableUpdateError(f"metric {shape.name}: a value beyond {MAX_VALUE} does not fit the sum")
    rounded: NDArray[np.int64] = np.rint(values * SCALE).astype(np.int64)
    return rounded
