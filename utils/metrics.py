"""Metrics that can be summed over sites: each is a numerator (one number or a histogram) and a weight.

A site never sends a ratio, so the federated value is exact: sum of numerators over sum of weights. AUC, which
is no mean, travels as histograms of scores of the positive and the negative class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

AUC_BINS = 512
MAX_METRICS = 16
"""Of one message: those of the validation and of the test split."""
_NAME = re.compile(r"[!-~]{1,32}")


class MetricKind(Enum):
    """How the summed values are read."""

    MEAN = "mean"  # values = (numerator,)
    AUC = "auc"  # values = AUC_BINS counts of positives, then AUC_BINS counts of negatives, by score in [0, 1]


@dataclass(frozen=True, slots=True)
class MetricSum:
    """One metric's numerators and weight, of one site or summed over many.

    Raises:
        ValueError: not finite, a negative weight, or not the number of values that its kind has.
    """

    name: str
    kind: MetricKind
    values: tuple[float, ...]
    weight: float  # number of examples, as a rule

    def __post_init__(self) -> None:
        expected = 1 if self.kind is MetricKind.MEAN else 2 * AUC_BINS
        if not _NAME.fullmatch(self.name):
            raise ValueError("a metric's name has 1 to 32 printable ASCII characters and no spaces")
        if len(self.values) != expected:
            raise ValueError(f"metric {self.name}: {len(self.values)} values, expected {expected}")
        if not all(map(math.isfinite, self.values)) or not math.isfinite(self.weight) or self.weight < 0:
            raise ValueError(f"metric {self.name}: values must be finite and the weight at least 0")
        if self.kind is MetricKind.AUC and min(self.values) < 0:
            raise ValueError(f"metric {self.name}: a histogram has no negative counts")

    @property
    def value(self) -> float | None:
        """The metric's value; None where there is nothing to divide by (no examples, or one class alone)."""
        if self.kind is MetricKind.MEAN:
            mean = self.values[0] / self.weight if self.weight else math.nan
            return mean if math.isfinite(mean) else None  # a tiny weight, too
        return _area_under_curve(self.values[:AUC_BINS], self.values[AUC_BINS:])


def mean_of(name: str, numerator: float, weight: float) -> MetricSum:
    """A metric that is a mean: ``numerator / weight`` over all sites together.

    >>> total([mean_of("loss", 3.0, 2), mean_of("loss", 1.0, 2)])[0].value
    1.0
    """
    return MetricSum(name, MetricKind.MEAN, (float(numerator),), float(weight))


def auc_of(
    name: str, scores: NDArray[np.floating] | Sequence[float], labels: NDArray[np.generic] | Sequence[int]
) -> MetricSum:
    """Area under the ROC curve, as histograms: scores in [0, 1], labels 0 or 1.

    Within one of the 512 bins, ties count half, so the value differs from the exact one by at most half the
    share of pairs that fall into the same bin.

    Raises:
        ValueError: a score outside [0, 1], or other labels.
    """
    score, label = np.asarray(scores, np.float64).ravel(), np.asarray(labels).ravel()
    if score.shape != label.shape or not np.isin(label, (0, 1)).all():
        raise ValueError("one label, 0 or 1, for each score")
    if score.size and not (np.isfinite(score).all() and score.min() >= 0 and score.max() <= 1):
        raise ValueError("scores lie in [0, 1]")
    bins = np.minimum((score * AUC_BINS).astype(np.int64), AUC_BINS - 1)
    positives = np.bincount(bins[label == 1], minlength=AUC_BINS)
    negatives = np.bincount(bins[label == 0], minlength=AUC_BINS)
    values = tuple(float(count) for count in np.concatenate([positives, negatives]))
    return MetricSum(name, MetricKind.AUC, values, float(score.size))


def total(metrics: Iterable[MetricSum]) -> tuple[MetricSum, ...]:
    """Sum metrics of the same name, in the order in which each name first came.

    Raises:
        ValueError: two sites use one name for different kinds.
    """
    sums: dict[str, MetricSum] = {}
    for metric in metrics:
        before = sums.get(metric.name)
        if before is None:
            sums[metric.name] = metric
            continue
        if before.kind is not metric.kind:
            raise ValueError(
                f"metric {metric.name} is a {before.kind.value} at one site and a {metric.kind.value} at another"
            )
        values = tuple(a + b for a, b in zip(before.values, metric.values, strict=True))
        sums[metric.name] = MetricSum(metric.name, metric.kind, values, before.weight + metric.weight)
    return tuple(sums.values())


def _area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    positive, negative = np.asarray(positives), np.asarray(negatives)
    pairs = positive.sum() * negative.sum()
    if not pairs:
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)
