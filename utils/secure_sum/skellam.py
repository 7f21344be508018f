"""Differential privacy for a secure sum in which no single party must be trusted: each site adds a part of the noise.

Source: Agarwal, Kairouz and Liu 2021, "The Skellam mechanism for differentially private federated learning"
(arXiv:2110.04995). Skellam variables are whole numbers and closed under addition, so the parts survive the ring and the
sum of n parts is again Skellam.

**Whose noise counts.** A site that works with the director can take its own part away, and one that drops out adds
none. So the parts are such that ``threshold - colluders`` sites, the fewest honest ones that can be in a sum, have the
whole noise together. The others' parts are surplus: ``SkellamSum.surplus`` times the variance where nobody drops out
(2.5 for 10 sites, threshold 7 and 3 colluders). Dordis (arXiv:2209.12528) shows how it could be taken back.

**Conditions**, under which alone the divergence is that of ``rdp``: every site weighs the same; the L2 norm of the
whole vector is clipped, with one step for all tensors; numbers are rounded to the nearest (``FixedPoint.encode``
without a rounding key), so that the sensitivity is strict and not a matter of luck; no metrics and no counts of the
data are in the tallies; the same noise is used when the same vector is sent again.

``noise_in`` gives the noise of a federation's sum: ``parts`` honest sites, which its terms name and each site holds
against its own floors, and one scale whoever was asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .fixed_point import LEVELS
from .skellam_noise import LEAST_VARIANCE, MOST_VARIANCE
from .terms import MAX_COHORT, NOISE_STEPS, NoiseTerms

_FLOATS = 1 + 2.0**-20
"""What clipping in float32 may leave of a norm above its bound."""
_DEVIATIONS = 12
"""Of the noise, for which the ring has room; beyond it are fewer than 1 of 10^30 numbers where the noise is of a few
hundred steps or more (Bernstein: 2 exp(-72 / (1 + 4 / deviation)))."""


@dataclass(frozen=True, slots=True)
class SkellamSum:
    """The noise of one sum, and what it protects.

    Raises:
        ConfigError: numbers that cannot be, noise that is too fine or too coarse for its sampler, or a sum that would
            leave the ring; says which and what to change.
    """

    max_norm: float  # L2 bound of the unit's vector, in the units of its numbers
    noise_multiplier: float  # standard deviation of the counted noise / max_norm
    size: int  # numbers in the vector
    contributors: int  # sites that were asked
    threshold: int
    colluders: int  # sites among them that may work with the director
    steps: int = 1 << 18  # into which max_norm is divided
    is_whole: bool = True  # the unit is a site's whole vector; False: a part of it, as a patient's clipped gradient is

    def __post_init__(self) -> None:
        if not (0 < self.max_norm < math.inf and 0 < self.noise_multiplier < math.inf and self.size > 0):
            raise ConfigError("Skellam noise: max_norm, noise_multiplier and size are above 0")
        if not 0 <= self.colluders < self.threshold <= self.contributors or self.steps < 1:
            raise ConfigError(
                f"Skellam noise: {self.colluders} colluders, threshold {self.threshold}, {self.contributors} sites; "
                "each is to be more than the one before"
            )
        if not LEAST_VARIANCE <= self.site_variance <= MOST_VARIANCE:
            raise ConfigError(
                f"Skellam noise: a part of variance {self.site_variance:g} steps, expected {LEAST_VARIANCE:g} to "
                f"{MOST_VARIANCE:g}; give more or fewer steps than {self.steps}"
            )
        if self.bound < self.max_norm:
            raise ConfigError(f"Skellam noise: {self.steps} steps of {self.contributors} sites leave the ring; fewer")
        room = LEVELS + _DEVIATIONS * math.sqrt(self.contributors * self.site_variance)
        if room >= 2 * LEVELS:
            raise ConfigError(f"Skellam noise: the noise leaves the ring of 32 bits; fewer steps than {self.steps}")

    @property
    def bound(self) -> float:
        """The clip bound of each number that the sum's terms must have, so that ``max_norm`` is so many steps."""
        return float(np.float32(self.max_norm * LEVELS / (self.steps * self.contributors)))

    @property
    def variance(self) -> float:
        """Of the noise that counts, in steps squared."""
        return (self.noise_multiplier * self._length) ** 2

    @property
    def site_variance(self) -> float:
        """Of each site's part."""
        return self.variance / (self.threshold - self.colluders)

    @property
    def surplus(self) -> float:
        """How many times the needed variance is in the sum if nobody drops out.

        >>> SkellamSum(1.0, 1.0, 100, contributors=10, threshold=7, colluders=3).surplus
        2.5
        """
        return self.contributors / (self.threshold - self.colluders)

    @property
    def sensitivity_l2(self) -> float:
        """How far one unit moves the sum, in steps.

        A whole vector is rounded once: by half a step a number at most. Of a part, the sums with it and without are
        both rounded: by less than a step a number.
        """
        return self._length * _FLOATS + math.sqrt(self.size) * (0.5 if self.is_whole else 1.0)

    @property
    def sensitivity_l1(self) -> float:
        """The same in L1; of whole numbers it is at most the square of the L2 norm."""
        return self.sensitivity_l2 * min(math.sqrt(self.size), self.sensitivity_l2)

    def rdp(self, orders: Sequence[float]) -> tuple[float, ...]:
        """Rényi divergence of one sum, at each order, towards whoever knows all but ``threshold - colluders`` parts."""
        l1, l2 = self.sensitivity_l1, self.sensitivity_l2
        return rdp(orders, sensitivity_l1=l1, sensitivity_l2=l2, variance=self.variance)

    @property
    def _length(self) -> float:
        """``max_norm`` in steps, as the bound in float32 has it."""
        return self.max_norm * LEVELS / (self.contributors * self.bound)


def noise_in(terms: NoiseTerms, size: int) -> SkellamSum:
    """The noise of a sum under these terms, over vectors of ``size`` numbers."""
    return SkellamSum(
        max_norm=terms.max_norm,
        noise_multiplier=terms.noise_multiplier,
        size=size,
        contributors=MAX_COHORT,
        threshold=terms.parts,
        colluders=0,
        steps=NOISE_STEPS,
    )


def rdp(orders: Sequence[float], *, sensitivity_l1: float, sensitivity_l2: float, variance: float) -> tuple[float, ...]:
    """Rényi divergence of one release with Skellam noise, an upper bound at each order.

    Source: Agarwal et al. 2021, corollary 3.6, for whole orders; an order between two gets the bound of the next, since
    the divergence grows with the order. The first term is the Gaussian's.

    Args:
        orders: above 1.
        sensitivity_l1: in steps.
        sensitivity_l2: in steps.
        variance: of the noise, in steps squared.

    Raises:
        ValueError: an order of 1 or less, sensitivities below 0, or no variance.

    >>> rdp([2, 32], sensitivity_l1=1, sensitivity_l2=1, variance=100)
    (0.010225, 0.161725)
    """
    if not all(order > 1 for order in orders) or min(sensitivity_l1, sensitivity_l2) < 0 or not variance > 0:
        raise ValueError("orders above 1, sensitivities of 0 or more and a variance above 0")
    squared, divergences = sensitivity_l2**2, []
    for order in map(math.ceil, orders):
        by_both = ((2 * order - 1) * squared + 6 * sensitivity_l1) / (4 * variance**2)
        by_first = 3 * sensitivity_l1 / (2 * variance)
        divergences.append(order * squared / (2 * variance) + min(by_both, by_first))
    return tuple(divergences)
