"""What numbers that were sent can give away at most: a count without noise, a proven bound with it.

*Counting* (``predicted_exact_recovery``): a code without noise is a set of equations in the pixels. With as many
numbers as unknown pixels, all rounds together, images may come back exactly. It is a warning, never a policy margin: in
the study before this code (three images each) 2,148 numbers of a 1,024-pixel X-ray gave it back at 114 dB and 429 at 11
to 21 dB, and still 64 learned ones re-identified 3 of 3 patients.

*Reconstruction robustness* (``reconstruction_bound``): under Gaussian noise no attacker, however much it knows of the
others, finds an image within a given error more often than the bound says. Whoever guesses from the prior alone
succeeds with ``prior_success``, so that is where the bound starts: it says something where a good guess is rare, and
nothing where the prior already looks like the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtr, ndtri


@dataclass(frozen=True, slots=True)
class Prediction:
    """Numbers that an attacker holds against those that it looks for."""

    numbers: int  # sent, of all rounds together
    unknowns: int  # pixels of all images together

    @property
    def ratio(self) -> float:
        """Equations per unknown."""
        return self.numbers / self.unknowns

    @property
    def is_exact_recovery_expected(self) -> bool:
        """At least one equation per unknown, and no noise. False promises nothing."""
        return self.numbers >= self.unknowns

    def __str__(self) -> str:
        if self.is_exact_recovery_expected:
            said = "without noise expect images to come back exactly"
        else:
            said = "too few for exact images, not for recognising a patient"
        return f"{self.numbers:,} numbers against {self.unknowns:,} pixels ({self.ratio:.2g} each): {said}"


def predicted_exact_recovery(numbers_sent: int, rounds: int, pixels: int, batch: int) -> Prediction:
    """Whether codes without noise determine the images that they are of.

    Args:
        numbers_sent: numbers of one payload.
        rounds: of the same images that an attacker sees, if each brings other numbers: other weights, or other
            directions. One batch that is seen once counts 1.
        pixels: of one image, over all channels.
        batch: images behind one payload.

    Raises:
        ValueError: a number below 1.
    """
    if min(numbers_sent, rounds, pixels, batch) < 1:
        raise ValueError("numbers, rounds, pixels and batch are at least 1")
    return Prediction(numbers_sent * rounds, pixels * batch)


def reconstruction_bound(noise_multiplier: float, rounds: int, prior_success: float) -> float:
    """Upper bound on the probability of a reconstruction within an error, for the Gaussian mechanism.

    Phi(Phi^-1(kappa) + sqrt(rounds) / z): the blow-up function of two Gaussians, Hayes et al. 2023 (arXiv:2302.07225,
    theorem 2), for all rounds in which the unit takes part. Tight for whoever knows all others, so it also bounds
    rank@1 in a gallery of N equally likely images, with a kappa of 1 / N.

    Args:
        noise_multiplier: z, standard deviation of the noise / the norm that one unit (a patient, or a site) is clipped
            to, in a sum whose denominator is fixed.
        rounds: releases to which the unit contributes.
        prior_success: kappa, the chance of the best guess before anything is seen.

    Raises:
        ValueError: noise below 0, rounds below 1, or kappa outside (0, 1].
    """
    shift = _shift(noise_multiplier, rounds, prior_success)
    return 1.0 if math.isinf(shift) else float(ndtr(ndtri(prior_success) + shift))


def renyi_reconstruction_bound(noise_multiplier: float, rounds: int, prior_success: float) -> float:
    """The looser bound from Renyi divergence: Balle, Cherubin & Hayes 2022 (arXiv:2201.04845, theorem 2).

    (kappa e^epsilon(alpha))^((alpha - 1) / alpha) with epsilon(alpha) = alpha m^2 / 2 and m = sqrt(rounds) / z, at its
    best order alpha = sqrt(2 log 1/kappa) / m: exp(-(sqrt(log 1/kappa) - m / sqrt 2)^2). Arguments and errors are those
    of ``reconstruction_bound``, which is never above it.
    """
    shift = _shift(noise_multiplier, rounds, prior_success)
    margin = math.sqrt(-math.log(prior_success)) - shift / math.sqrt(2)
    return math.exp(-(margin**2)) if margin > 0 else 1.0


def _shift(noise_multiplier: float, rounds: int, prior_success: float) -> float:
    """How many standard deviations of the noise one unit moves what is released."""
    if not (noise_multiplier >= 0 and rounds >= 1 and 0 < prior_success <= 1):
        raise ValueError(
            f"noise multiplier {noise_multiplier}, {rounds} rounds, prior success {prior_success}: expected "
            "at least 0, at least 1, and above 0 to 1"
        )
    return math.sqrt(rounds) / noise_multiplier if noise_multiplier else math.inf
