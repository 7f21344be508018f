"""A lower bound on the epsilon that a release really has, from one run with many canaries.

Source: Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv:2305.08846), Algorithm 1
and Theorem 5.2 with the calculation of its Appendix D. Each canary takes part by a fair coin; the auditor sees the
releases and guesses the coins of those canaries of which it is surest. A mechanism that is (epsilon, delta)-DP for one
contribution admits only so many right guesses.

What is audited is the code that runs, not its formula: canaries are ten times as long as the bound, so that a clip
that is left out shows, and lie along single numbers of what is sent (of a code, in code space), so that noise that is
too small shows. The bound is below the true epsilon, often far below: that it is small proves no privacy. That it is
above the ledger's epsilon proves, at the stated confidence, that the ledger or the mechanism is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom

from ..utils.errors import ConfigError
from ..utils.privacy.gaussian import exact_epsilon as gaussian_epsilon

__all__ = ["Audited", "OneRunAudit", "Release", "chance_under", "epsilon_lower_bound", "gaussian_epsilon"]

Release: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.floating]]
"""From the contributions that take part, (count, size) with count from 0, to what is seen of them, (size,)."""

_LARGEST_EPSILON = 50.0


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit found. The unit of privacy is one contribution, added or removed."""

    epsilon: float  # lower bound, at ``confidence``
    delta: float
    confidence: float
    canaries: int
    guessed: int  # canaries of which the auditor was sure enough
    correct: int

    def contradicts(self, epsilon: float) -> bool:
        """Is a claim of (epsilon, delta)-DP refuted?"""
        return self.epsilon > epsilon


@dataclass(frozen=True, slots=True)
class OneRunAudit:
    """Canaries in groups of ``group``, each group in a release of its own; a canary is in one release alone.

    Raises:
        ConfigError: a number that no audit has.
    """

    max_norm: float  # the bound that the mechanism claims for one contribution
    delta: float
    canaries: int = 60_000
    group: int = 200  # canaries of one release, each along a number of its own; at most the release's size
    overshoot: float = 10.0  # length of a canary over the bound
    confidence: float = 0.95
    shares: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)  # of the canaries that are guessed; the best is taken

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not (self.max_norm > 0 and self.overshoot > 0 and 0 <= self.delta < 1 and 0 < self.confidence < 1):
            raise ConfigError(
                f"max_norm {self.max_norm}, overshoot {self.overshoot}, delta {self.delta}, confidence "
                f"{self.confidence}: expected two positive numbers, one in [0, 1) and one in (0, 1)"
            )
        if self.group < 1 or self.canaries < 1 or not all(0 < share <= 1 for share in self.shares) or not self.shares:
            raise ConfigError(
                f"canaries {self.canaries}, group {self.group}, shares {self.shares}: expected at least 1, 1, and "
                "shares in (0, 1]"
            )

    def __call__(self, release: Release, size: int, rng: np.random.Generator) -> Audited:
        """Run the mechanism and guess.

        Args:
            release: the mechanism, as it runs; its noise is its own.
            size: numbers of a contribution and of what is seen.
            rng: draws who takes part.

        Raises:
            ConfigError: more canaries a release than numbers.
        """
        if self.group > size:
            raise ConfigError(f"{self.group} canaries a release of {size} numbers: expected at most one a number")
        rounds = -(-self.canaries // self.group)
        included = rng.random((rounds, self.group)) < 0.5
        canary = np.zeros((self.group, size), np.float32)
        np.fill_diagonal(canary, self.overshoot * self.max_norm)
        seen = np.stack([np.asarray(release(canary[chosen]), np.float64)[: self.group] for chosen in included])
        return self.of_scores(seen.ravel(), included.ravel())

    def of_scores(self, scores: NDArray[np.float64], included: NDArray[np.bool_]) -> Audited:
        """The bound of scores that somebody else made: the higher, the likelier that the canary took part.

        The share that is guessed may be chosen by its result, since each has only its part of the error.
        """
        order = np.argsort(scores)
        error = (1 - self.confidence) / len(self.shares)
        found = []
        for share in self.shares:
            half = max(1, round(share * len(scores) / 2))
            correct = int((~included[order[:half]]).sum() + included[order[-half:]].sum())
            epsilon = epsilon_lower_bound(len(scores), 2 * half, correct, self.delta, error)
            found.append(Audited(epsilon, self.delta, self.confidence, len(scores), 2 * half, correct))
        return max(found, key=lambda one: one.epsilon)


def chance_under(canaries: int, guessed: int, correct: int, epsilon: float, delta: float) -> float:
    """Of at least so many right guesses, at most, if the mechanism is (epsilon, delta)-DP; Theorem 5.2."""
    right = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(correct - 1, guessed, right))
    places = np.arange(1, correct + 1)
    below = np.cumsum(binom.pmf(correct - places, guessed, right))
    alpha = float((below / places).max()) if correct else 0.0
    return min(1.0, beta + 2 * canaries * delta * alpha)


def epsilon_lower_bound(canaries: int, guessed: int, correct: int, delta: float, error: float) -> float:
    """The largest epsilon that these guesses refute, at this probability of being wrong; 0 where they refute none."""

    def excess(epsilon: float) -> float:
        return chance_under(canaries, guessed, correct, epsilon, delta) - error

    if excess(0.0) >= 0:
        return 0.0
    if excess(_LARGEST_EPSILON) < 0:
        return _LARGEST_EPSILON
    return float(brentq(excess, 0.0, _LARGEST_EPSILON, xtol=1e-4))
