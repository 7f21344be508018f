"""``[secure_sum]`` of ``experiment.toml``: how a run's secure sums are asked for.

What a site accepts (how many organizations at least, which threshold, which suites) is the site's own policy; what
stands here can only be refused there, never weaken it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from ..utils.errors import ConfigError
from ..utils.messages import NAME_PATTERN
from ..utils.secure_sum.groups import LEAST_GROUPS
from ..utils.secure_sum.rules import SumFloors, threshold_of
from ..utils.secure_sum.terms import LEAST_NOISE, MAX_COHORT, MAX_GROUP, MAX_WEIGHT, MOST_NOISE, Suite

MIN_PARTICIPANTS = 3
"""A sum of two tells each of them the other's update."""
_ENVOY_PREFIX = "envoy:"
_MOST_CLIP = 1e6


class SecureAggregation(Enum):
    """Whether the director may see single updates."""

    REQUIRED = "required"  # sums alone leave the sites
    OFF = "off"  # each site's update comes in clear


@dataclass(frozen=True, slots=True)
class SecureSumSettings:
    """The table ``[secure_sum]``.

    Raises:
        ConfigError: out of range, or an aggregator that is neither the director nor an envoy.
    """

    suite: Suite = Suite.MLKEM768_X25519
    max_examples: int = 65_536  # of one site; one with more counts as so many
    clip: float = 8.0  # of the first round: the largest magnitude of an element; then it follows the sums
    colluding: int = 1  # organizations that may collude with the director
    honest: int = 2  # organizations that a share's secret needs beside them
    aggregator: str = "director"  # or "envoy:NAME": who sums and sees the sum first
    equal_weights: bool = False  # every site weighs 1, publicly, and sends no metrics
    groups: int = 0  # summed apart, for a median or trimmed mean over them; 0: one sum of all
    noise_multiplier: float = 0.0  # Skellam noise of the honest sites together / protection.max_norm; 0: none
    stage_timeout_seconds: float = 60.0  # how long a stage after the training waits for stragglers

    def __post_init__(self) -> None:
        if not 1 <= self.max_examples <= MAX_WEIGHT:
            raise ConfigError(f"max_examples is {self.max_examples}, expected 1 to {MAX_WEIGHT}")
        if not 0 < self.clip <= _MOST_CLIP:
            raise ConfigError(f"clip is {self.clip:g}, expected more than 0 and at most {_MOST_CLIP:g}")
        if self.colluding < 0:
            raise ConfigError(f"colluding is {self.colluding}, expected at least 0, and better 1")
        if self.honest < 2:
            raise ConfigError(f"honest is {self.honest}, expected at least 2: with one, its update would be the sum")
        if self.groups and not LEAST_GROUPS <= self.groups <= MAX_GROUP:
            raise ConfigError(
                f"groups is {self.groups}, expected {LEAST_GROUPS} at least, since the median of two is their mean; or"
                " leave it out for one sum of all"
            )
        if self.groups and self.summing_envoy:
            raise ConfigError(
                f"aggregator is {self.aggregator}, and an aggregator elsewhere opens one sum a round; with groups the"
                " director opens them, or leave groups out"
            )
        if not (0 < self.stage_timeout_seconds < math.inf):
            raise ConfigError(f"stage_timeout_seconds is {self.stage_timeout_seconds:g}, expected more than 0")
        is_envoy = self.aggregator.startswith(_ENVOY_PREFIX) and NAME_PATTERN.fullmatch(self.summing_envoy)
        if self.aggregator != "director" and not is_envoy:
            raise ConfigError(f'aggregator is {self.aggregator[:80]!r}, expected "director" or "envoy:NAME"')
        if self.noise_multiplier:
            self._check_noise()

    def _check_noise(self) -> None:
        if self.groups:
            raise ConfigError(
                f"groups is {self.groups} and noise_multiplier {self.noise_multiplier:g}; each group would need all of"
                " the noise for itself, and a median of noised means was not measured: leave one of them out"
            )
        if not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise ConfigError(
                f"noise_multiplier is {self.noise_multiplier:g}, expected 0 for none, or {LEAST_NOISE:.3g} to"
                f" {MOST_NOISE:g}"
            )
        if not self.equal_weights:
            raise ConfigError(
                f"noise_multiplier is {self.noise_multiplier:g} without equal_weights; how many examples a site has"
                " and its metrics would leave without noise: set equal_weights = true"
            )

    @property
    def floors(self) -> SumFloors:
        """What each sum needs, as far as the director can say; each site has its own."""
        return SumFloors(colluding=self.colluding, honest=self.honest)

    @property
    def summing_envoy(self) -> str:
        """The envoy that sums; "" where the director does."""
        return self.aggregator.removeprefix(_ENVOY_PREFIX) if self.aggregator != "director" else ""

    @property
    def max_weight(self) -> int:
        """The largest weight of one site."""
        return 1 if self.equal_weights else self.max_examples


def noise_parts(participants: int, settings: SecureSumSettings) -> int | None:
    """In how many parts the noise is: the honest envoys that every sum of a quorum or more has; None: no such sum.

    Each envoy is taken for an organization of its own; a site that knows better refuses.

    >>> noise_parts(10, SecureSumSettings()), noise_parts(4, SecureSumSettings())
    (6, 2)
    """
    threshold = threshold_of([1] * min(participants, MAX_COHORT), settings.colluding, settings.honest)
    return None if threshold is None else threshold - settings.colluding
