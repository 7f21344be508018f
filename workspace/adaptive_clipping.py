"""Client-level differential privacy with a clip bound that follows the updates: for simulations of many clients.

Andrew, Thakkar, McMahan and Ramaswamy 2019, "Differentially Private Learning with Adaptive Clipping"
(arXiv:1905.03871), Algorithm 1. Whoever sums is trusted: he sees every update, and adds the noise.

**It says nothing of a patient.** The unit is one client with all of its data; in a federation of ten hospitals that is
a whole hospital, and the noise that hides one of ten leaves nothing to learn from. So ``experiment.toml`` refuses it,
and only ``client_level`` uses it. What protects a patient is ``DifferentialPrivacy`` in the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..gradient_leakage.defenses.clip import factor_to
from ..utils.errors import ConfigError
from ..utils.privacy.events import SampledGaussian
from ..utils.privacy.noise import NoiseSource
from ..utils.tensors import Vector


@dataclass(frozen=True, slots=True)
class AdaptiveClipping:
    """How the bound moves, and how the noise is shared out between the updates and what moves it.

    Each round tells how many clients were within the bound, with noise of ``bit_noise``; the updates' noise is a little
    more than ``noise_multiplier``, so that both together spend what one release of ``noise_multiplier`` would
    (Andrew et al., Theorem 1).

    >>> round(AdaptiveClipping(1.0, expected_clients=100).update_noise, 4)
    1.005

    Raises:
        ConfigError: out of range, or a bit so quiet that nothing is left for the updates.
    """

    noise_multiplier: float  # of a round as a whole; standard deviation / bound
    expected_clients: float  # of a round: sampling rate times clients, public and fixed
    quantile: float = 0.5  # of the updates' norms, which the bound follows
    learning_rate: float = 0.2  # of the bound's logarithm
    first_bound: float = 0.1
    bit_noise: float | None = None  # standard deviation on the count; None: a twentieth of the expected clients

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.quantile < 1:
            raise ConfigError(f"quantile is {self.quantile:g}, expected between 0 and 1")
        for name in ("noise_multiplier", "expected_clients", "learning_rate", "first_bound"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name):g}, expected a number above 0")
        if not 2 * self.count_noise > self.noise_multiplier:
            raise ConfigError(
                f"bit_noise is {self.count_noise:g}, expected more than half of noise_multiplier"
                f" ({self.noise_multiplier:g}): the count alone would spend more than the round may"
            )

    @property
    def count_noise(self) -> float:
        """Standard deviation on how many were within the bound."""
        return self.expected_clients / 20 if self.bit_noise is None else self.bit_noise

    @property
    def update_noise(self) -> float:
        """Noise multiplier of the updates: (z^-2 - (2 sigma_b)^-2)^(-1/2)."""
        return float((self.noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5)

    def next_bound(self, bound: float, within: float) -> float:
        """The bound of the next round, from the (noised) share of clients that were within this one's.

        The share may leave [0, 1] by its noise.
        """
        return bound * math.exp(-self.learning_rate * (within - self.quantile))

    def mechanism(self, sampling_rate: float, rounds: int) -> SampledGaussian:
        """What the rounds spend of one *client*, with all of its data.

        Raises:
            ConfigError: out of range.
        """
        return SampledGaussian(sampling_rate, self.noise_multiplier, rounds)


def private_mean(
    updates: Iterable[Vector], size: int, bound: float, clipping: AdaptiveClipping, noise: NoiseSource
) -> tuple[Vector, float]:
    """The noised mean of clipped updates, and the noised share of those that were within the bound.

    Both are divided by the expected number of clients. What counts whether a client was within the bound is shifted by
    a half, so that one client moves it by a half and not by one.

    Args:
        updates: of the sampled clients; read once.
        size: numbers of an update.
        bound: of this round.
        clipping: how much noise.
        noise: its source.

    Raises:
        NonFiniteUpdateError: an update holds NaN or infinity.
    """
    total, shifted, count = np.zeros(size), 0.0, clipping.expected_clients
    for update in updates:
        factor = factor_to(bound, update)
        total += np.multiply(update, factor, dtype=np.float64)
        shifted += 0.5 if factor == 1 else -0.5
    total += noise.standard_normal(size) * (clipping.update_noise * bound)
    shifted += float(noise.standard_normal(1)[0]) * clipping.count_noise
    return (total / count).astype(np.float32), shifted / count + 0.5
