"""What a run asks of a secure sum: the terms that travel in each task. What a site accepts is ``rules.py``.

The terms say how numbers become ring elements; they hold no threshold and no floor, since those are the site's own.
This module imports nothing of ``messages``, which holds the terms in ``Task``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from ..errors import ConfigError

MAX_WEIGHT = 1 << 20
"""Most examples of one site that terms may let count."""
MAX_BOUNDS = 1 << 16
LEAST_BOUND, MOST_BOUND = 1e-37, 1e38
"""Of a clip bound: within float32, so that nobody finds out in the middle of a sum that it is none."""
MAX_GROUP = 1 << 12
_ENVOY = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class Suite(Enum):
    """How shares and pair seeds are sealed from site to site (HPKE, RFC 9180)."""

    MLKEM768_X25519 = "mlkem768-x25519"  # post-quantum hybrid: the default
    X25519 = "x25519"


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
