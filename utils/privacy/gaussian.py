"""One Gaussian release, exactly: its epsilon, and the noise that an epsilon needs. No extra is needed for it."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import norm

from ..errors import ConfigError
from .values import Accountant, Epsilon, Unit

_TEXTBOOK_BELOW = 1.0


def exact_epsilon(noise_multiplier: float, delta: float) -> float:
    """Of one Gaussian release whose noise is so many times its sensitivity.

    Source: Balle and Wang 2018 (arXiv:1805.06530), Theorem 8. ``release_epsilon`` says it with its unit.

    Raises:
        ConfigError: no noise, or a delta outside (0, 1).
    """
    if not (noise_multiplier > 0 and 0 < delta < 1):
        raise ConfigError(f"noise_multiplier {noise_multiplier}, delta {delta}: expected above 0, and in (0, 1)")
    half = 1 / (2 * noise_multiplier)

    def excess(epsilon: float) -> float:
        far = epsilon * noise_multiplier
        return float(norm.cdf(half - far) - math.exp(epsilon + norm.logcdf(-half - far)) - delta)

    if excess(0.0) <= 0:
        return 0.0
    largest = 1.0
    while excess(largest) > 0:
        largest *= 2
    return float(brentq(excess, 0.0, largest, xtol=1e-9))


def release_epsilon(noise_multiplier: float, delta: float, unit: Unit) -> Epsilon:
    """``exact_epsilon`` with all that belongs to it."""
    return Epsilon(exact_epsilon(noise_multiplier, delta), delta, unit, "Gaussian", Accountant.PLD)


def calibrated_noise(epsilon: float, delta: float, *, by: str = "exact") -> float:
    """The least noise multiplier of one Gaussian release of at most this epsilon.

    Args:
        epsilon: of the release.
        delta: of the release.
        by: "exact" (Balle and Wang 2018); "textbook", sqrt(2 ln(1.25 / delta)) / epsilon, which is proven for epsilon
            below 1 alone, and wastes noise there.

    Raises:
        ConfigError: no such numbers, or the textbook's formula where it does not hold.

    >>> round(calibrated_noise(0.5, 1e-5), 3), round(calibrated_noise(0.5, 1e-5, by="textbook"), 3)
    (7.032, 9.69)
    """
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise ConfigError(f"epsilon {epsilon}, delta {delta}: expected above 0, and in (0, 1)")
    if by == "textbook":
        if epsilon >= _TEXTBOOK_BELOW:
            raise ConfigError(
                f"sqrt(2 ln(1.25/delta))/epsilon is refused for epsilon {epsilon:g}: its proof needs epsilon below 1"
                " (Dwork and Roth 2014, theorem 3.22), and for large epsilon its noise is too small; take the exact one"
            )
        return math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    if by != "exact":
        raise ConfigError(f"calibration {by!r}: expected exact or textbook")
    most, least = 1.0, 1.0
    while exact_epsilon(most, delta) > epsilon:
        most *= 2
    while exact_epsilon(least, delta) <= epsilon:
        least /= 2
    found = float(brentq(lambda noise: exact_epsilon(noise, delta) - epsilon, least, most, xtol=1e-9))
    while exact_epsilon(found, delta) > epsilon:
        found *= 1 + 1e-9
    return found
