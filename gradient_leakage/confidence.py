"""How sure a measured figure is: intervals by patient, exact binomial bounds, and the equivalence test.

Pure: numbers in, numbers out, and the generator of whatever is drawn is an argument. Patients are the unit: two images
of one patient are no two observations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from ..utils.errors import ConfigError

Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
MIN_TARGETS = 500  # fewer cannot bound rank@1 well enough: 0 of 30 only says "below 9.5 %"
MAX_SSIM_GAIN = 0.02
MAX_RANK1_GAIN = 0.01  # one point


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where its true value lies with 95 % confidence; NaN where that cannot be said."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its exact two-sided 95 % interval (Clopper and Pearson 1934)."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        """The share; NaN without a trial."""
        return self.successes / self.trials if self.trials else math.nan

    @property
    def interval(self) -> Interval:
        """The share and its bounds.

        >>> Rate(0, 30).interval.high  # doctest: +ELLIPSIS
        0.115...
        """
        tail = (1 - LEVEL) / 2
        return Interval(self.value, self._low(tail), self._high(tail))

    @property
    def upper(self) -> float:
        """One-sided upper 95 % bound.

        >>> round(Rate(0, 30).upper, 3)
        0.095
        """
        return self._high(1 - LEVEL)

    def _low(self, tail: float) -> float:
        return float(beta.ppf(tail, self.successes, self.trials - self.successes + 1)) if self.successes else 0.0

    def _high(self, tail: float) -> float:
        if self.successes == self.trials:
            return 1.0
        return float(beta.ppf(1 - tail, self.successes + 1, self.trials - self.successes))


@dataclass(frozen=True, slots=True)
class TruePositives:
    """A membership attack at one threshold."""

    threshold: float  # a score above it says "member"
    true_positives: Rate  # among members
    false_positives: Rate  # among the others; its interval says how well the wanted rate could be resolved


@dataclass(frozen=True, slots=True)
class Equivalence:
    """The test behind the words "no measurable leakage"."""

    targets: int
    ssim_gain: float  # over the null
    ssim_gain_upper: float  # one-sided 95 %
    rank1: float
    rank1_upper: float  # one-sided 95 %, exact
    chance: float  # of rank@1
    objections: tuple[str, ...]  # why the claim may not be made

    @property
    def holds(self) -> bool:
        """May it be claimed that nothing measurable leaks?"""
        return not self.objections


def bootstrap_mean(values: ArrayLike, rng: np.random.Generator, patients: Sequence[str] | None = None) -> Interval:
    """Mean with its percentile interval; whole patients are drawn again (Efron 1979; Field and Welsh 2007).

    Args:
        values: (count,); NaN stands for "not measured" and is left out.
        rng: draws the patients.
        patients: (count,); None where each image is of another patient.

    Returns:
        NaN bounds where there are fewer than two patients.
    """
    means, mean = _resampled(values, rng, patients)
    if not len(means):
        return Interval(mean, math.nan, math.nan)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(mean, float(low), float(high))


def upper_bound(values: ArrayLike, rng: np.random.Generator, patients: Sequence[str] | None = None) -> float:
    """One-sided upper 95 % bound of the mean, by the bootstrap of ``bootstrap_mean``; NaN where it cannot be said."""
    means, _ = _resampled(values, rng, patients)
    return float(np.percentile(means, 100 * LEVEL)) if len(means) else math.nan


def tpr_at_fpr(scores: ArrayLike, is_member: ArrayLike, fpr: float) -> TruePositives:
    """True positives at the lowest threshold that keeps the share of false positives at or under ``fpr``.

    Source: the headline figure of Carlini et al. 2022 (arXiv:2112.03570). With n others, rates under 1/n cannot be
    told from 0; the interval of the false positives shows it.

    Args:
        scores: (count,), higher for "member".
        is_member: (count,) bool.
        fpr: such as 0.001.

    Raises:
        ConfigError: NaN among the scores, no member, no other, or a rate outside [0, 1).
    """
    values, members = np.asarray(scores, np.float64), np.asarray(is_member, bool)
    if values.ndim != 1 or values.shape != members.shape or np.isnan(values).any():
        raise ConfigError("membership needs one score an example, and none of them NaN")
    inside, outside = values[members], np.sort(values[~members])[::-1]
    if not len(inside) or not len(outside) or not 0 <= fpr < 1:
        raise ConfigError(f"{len(inside)} members, {len(outside)} others, rate {fpr}: membership cannot be measured")
    # A score must be above the threshold, so as many others may be above it as the rate allows.
    threshold = float(outside[math.floor(fpr * len(outside) + 1e-9)])
    return TruePositives(
        threshold,
        Rate(int((inside > threshold).sum()), len(inside)),
        Rate(int((outside > threshold).sum()), len(outside)),
    )


def equivalence(
    ssim_gains: ArrayLike,
    rank1_hits: ArrayLike,
    gallery: int,
    rng: np.random.Generator,
    patients: Sequence[str] | None = None,
) -> Equivalence:
    """May it be said that nothing measurable leaks? Both one-sided 95 % bounds must stay under their margins.

    An absence of evidence is none: with fewer than ``MIN_TARGETS`` targets the answer is no. At 500 targets and a
    gallery of 100 the claim survives at most 4 hits (5 are expected from chance), so it wants a larger gallery.

    Args:
        ssim_gains: (targets,), SSIM minus the null's for the same target.
        rank1_hits: (targets,) bool, the target was first in its gallery.
        gallery: images in each gallery, the target's own among them.
        rng: of the bootstrap.
        patients: (targets,); None where each target is of another patient.
    """
    gains, hits = np.asarray(ssim_gains, np.float64), np.asarray(rank1_hits, bool)
    if gains.shape != hits.shape:
        raise ConfigError(f"{gains.shape} SSIM gains and {hits.shape} ranks: expected one of each a target")
    names = [str(place) for place in range(len(gains))] if patients is None else list(patients)
    measured = ~np.isnan(gains)
    gain_upper = upper_bound(gains, rng, names)
    # Two targets of one patient are not independent: the exact bound counts patients, of which any hit is one.
    first = {name: bool(hits[[n == name for n in names]].any()) for name in dict.fromkeys(names)}
    rank1, chance = Rate(sum(first.values()), len(first)), 1 / gallery
    targets = min(int(measured.sum()), len(first))
    objections = []
    if targets < MIN_TARGETS:
        objections.append(f"{targets} targets of different patients with a null, at least {MIN_TARGETS} are needed")
    if not gain_upper < MAX_SSIM_GAIN:
        objections.append(f"the SSIM gain over the null may be {gain_upper:.4f}, not under {MAX_SSIM_GAIN}")
    if not rank1.upper < chance + MAX_RANK1_GAIN:
        objections.append(
            f"rank@1 may be {rank1.upper:.2%}, not under chance + 1 point = {chance + MAX_RANK1_GAIN:.2%}"
        )
    gain = float(gains[measured].mean()) if measured.any() else math.nan
    return Equivalence(targets, gain, gain_upper, rank1.value, rank1.upper, chance, tuple(objections))


def _resampled(values: ArrayLike, rng: np.random.Generator, patients: Sequence[str] | None) -> tuple[Floats, float]:
    """The means of many resamples (none with fewer than two patients), and the mean itself."""
    every = np.asarray(values, np.float64)
    kept = ~np.isnan(every)
    measured = every[kept]
    if not len(measured):
        return np.empty(0), math.nan
    names = np.arange(len(every)) if patients is None else np.asarray(patients)
    if names.shape != every.shape:
        raise ConfigError(f"{len(names)} patients for {len(every)} values; expected one each")
    _, patient = np.unique(names[kept], return_inverse=True)
    counts = np.bincount(patient).astype(np.float64)
    sums = np.bincount(patient, measured)
    mean = float(measured.mean())
    if len(counts) < 2:
        return np.empty(0), mean
    means = np.empty(RESAMPLES)
    for place in range(RESAMPLES):  # one at a time: the table of all draws of 500 patients would be 8 MB
        drawn = rng.integers(len(counts), size=len(counts))
        means[place] = sums[drawn].sum() / counts[drawn].sum()
    return means, mean
