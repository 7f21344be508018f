"""Before a study: how many rounds a budget has room for, and how much noise so many rounds need.

By the rule that stops (Renyi divergence), so that what is planned is what a site's ledger lets through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import ConfigError
from .events import Mechanism
from .renyi import curve, filter_order, repetitions

_LEAST_NOISE, _MOST_NOISE = 0.2, 1e5
_PRECISION = 1e-4
_MOST_ROUNDS = 10**7


def rounds_within(a_round: Mechanism, epsilon: float, delta: float, spent: Sequence[Mechanism] = ()) -> int:
    """How many rounds fit into a budget of which ``spent`` is gone.

    >>> from fedveil.utils.privacy.events import SampledGaussian
    >>> rounds_within(SampledGaussian(0.032, 1.0, 32), 3.0, 1e-5)
    4

    Raises:
        ConfigError: numbers that are no budget.
    """
    _check(epsilon, delta)
    history, next_ = curve(spent), curve([a_round])
    place = filter_order(history, next_, epsilon, delta)
    return min(_MOST_ROUNDS, repetitions(history, next_, epsilon, delta, place))


def noise_for(
    of_noise: Callable[[float], Mechanism], rounds: int, epsilon: float, delta: float, spent: Sequence[Mechanism] = ()
) -> float:
    """The least noise multiplier, to a part in 10,000, with which so many rounds fit.

    Args:
        of_noise: a round of that noise multiplier.
        rounds: how many.
        epsilon: of the budget.
        delta: of the budget.
        spent: what is gone of it.

    Raises:
        ConfigError: no noise up to 100,000 does, or numbers that are no budget.
    """
    _check(epsilon, delta)
    least, most = _LEAST_NOISE, _MOST_NOISE
    if rounds_within(of_noise(most), epsilon, delta, spent) < rounds:
        raise ConfigError(f"no noise multiplier up to {_MOST_NOISE:g} lets {rounds} rounds into what is left")
    while most > least * (1 + _PRECISION):
        middle = (least * most) ** 0.5
        if rounds_within(of_noise(middle), epsilon, delta, spent) < rounds:
            least = middle
        else:
            most = middle
    return most


def _check(epsilon: float, delta: float) -> None:
    if not (0 < epsilon < float("inf") and 0 < delta < 1):
        raise ConfigError(f"epsilon {epsilon:g}, delta {delta:g}: expected above 0, and in (0, 1)")
