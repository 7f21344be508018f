"""What a run asks of a secure sum: the terms that travel in each task. What a site accepts is ``rules.py``.

The terms say how numbers become ring elements; they hold no threshold and no floor, since those are the site's own.
This module imports nothing of ``messages``, which holds the terms in ``Task``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from ..errors import ConfigError

MAX_WEIGHT = 1 << 20
"""Most examples of one site that terms may let count."""
MAX_BOUNDS = 1 << 16
LEAST_BOUND, MOST_BOUND = 1e-37, 1e38
"""Of a clip bound: within float32, so that nobody finds out in the middle of a sum that it is none."""
MAX_GROUP = 1 << 12
MAX_COHORT = 128
"""Envoys of one sum: every pair masks, which is right for so many and no more."""
NOISE_STEPS = 1 << 18
"""Into which the clip norm of a sum with noise is divided. 128 such vectors fill a 32nd of the ring's half."""
LEAST_NOISE, MOST_NOISE = 2.0**-10, 16.0
"""Noise multipliers for which the noise can be drawn, and cannot leave the ring, whoever takes part."""
_ENVOY = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class Suite(Enum):
    """How shares and pair seeds are sealed from site to site (HPKE, RFC 9180)."""

    MLKEM768_X25519 = "mlkem768-x25519"  # post-quantum hybrid: the default
    X25519 = "x25519"


@dataclass(frozen=True, slots=True)
class NoiseTerms:
    """Skellam noise that the sites add to a sum, each a part: ``skellam`` says what it protects.

    All of it is public, and no part of it depends on who turns up: the same vector with the same key gives the same
    integers in each attempt of a round. Each site holds ``parts`` against the threshold and its own floors.

    Raises:
        ConfigError: out of range; the message says which.
    """

    max_norm: float  # L2, to which each site clips its vector
    noise_multiplier: float  # standard deviation of ``parts`` sites' noise together / max_norm
    parts: int  # the fewest honest sites of a sum: each adds this part of the variance

    def __post_init__(self) -> None:
        if not 2.0**-60 <= self.max_norm <= 2.0**60:
            raise ConfigError(f"max_norm of a secure sum's noise is {self.max_norm:g}, expected a norm above 0")
        if not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise ConfigError(
                f"noise_multiplier of a secure sum is {self.noise_multiplier:g}, expected {LEAST_NOISE:.3g} to"
                f" {MOST_NOISE:g}"
            )
        if not 1 <= self.parts <= MAX_COHORT:
            raise ConfigError(f"the noise of a secure sum is in {self.parts} parts, expected 1 to {MAX_COHORT}")

    @property
    def bound(self) -> float:
        """The clip bound of every number, so that ``max_norm`` is ``NOISE_STEPS`` steps: 32 times it, never reached."""
        return self.max_norm * ((1 << 30) / (NOISE_STEPS * MAX_COHORT))

    def surplus(self, sites: int) -> float:
        """How many times the counted variance is in the sum of so many honest sites.

        >>> NoiseTerms(1.0, 1.0, parts=4).surplus(10)
        2.5
        """
        return sites / self.parts

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> NoiseTerms | None:
        """Read what ``to_json`` wrote; None stays None.

        Raises:
            ConfigError, KeyError, TypeError, ValueError: no such terms.
        """
        if document is None:
            return None
        max_norm, multiplier, parts = document["max_norm"], document["noise_multiplier"], document["parts"]
        if not isinstance(parts, int) or isinstance(parts, bool):
            raise TypeError("parts is no whole number")
        return cls(float(max_norm), float(multiplier), parts)


@dataclass(frozen=True, slots=True)
class SumTerms:
    """How one task's answers are summed.

    Raises:
        ConfigError: out of range, or settings that contradict each other; the message says which.
    """

    suite: Suite = Suite.MLKEM768_X25519
    bounds: tuple[float, ...] = (8.0,)  # largest magnitude kept, a tensor of the payload each; or one for all
    max_weight: int = 65536  # most examples of one site that count; a site with more counts as this many
    equal_weights: bool = False  # every site weighs 1, publicly, and no metrics are sent
    aggregator: str = ""  # an envoy's name; "" for the director
    histogram: bool = False  # the sum also holds a histogram of the sites' L2 norms
    group: int = 0  # from 1 on: which group of the run this sum is of; 0: there are none
    noise: NoiseTerms | None = None  # differential privacy inside the sum; nothing but the noised vector is summed then

    def __post_init__(self) -> None:
        if not 1 <= len(self.bounds) <= MAX_BOUNDS:
            raise ConfigError(f"a secure sum has {len(self.bounds)} clip bounds, expected one for each tensor, or one")
        for bound in self.bounds:
            if not LEAST_BOUND <= bound <= MOST_BOUND:
                expected = f"{LEAST_BOUND:g} to {MOST_BOUND:g}"
                raise ConfigError(f"a clip bound of a secure sum is {bound:g}, expected {expected}")
        if not 1 <= self.max_weight <= MAX_WEIGHT:
            raise ConfigError(f"max_weight is {self.max_weight}, expected 1 to {MAX_WEIGHT}")
        if not 0 <= self.group <= MAX_GROUP:
            raise ConfigError(f"group is {self.group}, expected 0 to {MAX_GROUP}")
        if self.equal_weights and self.max_weight != 1:
            raise ConfigError(f"equal_weights with max_weight {self.max_weight}: where all weigh the same, give 1")
        if self.aggregator and not _ENVOY.fullmatch(self.aggregator):
            raise ConfigError(f"aggregator is {self.aggregator[:80]!r}, expected an envoy's name, or none")
        if self.noise is not None:
            self._check_noise(self.noise)

    def _check_noise(self, noise: NoiseTerms) -> None:
        if not self.equal_weights or self.histogram or self.group:
            raise ConfigError("noise in a secure sum: every site weighs 1, no histogram of norms, and no groups")
        if self.bounds != (noise.bound,):
            raise ConfigError(
                f"noise in a secure sum: the clip bounds are {self.bounds[:3]}, expected {noise.bound!r} for all"
            )
