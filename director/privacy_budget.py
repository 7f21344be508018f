"""``[privacy_budget]`` of ``experiment.toml``: what a run may spend of anybody's privacy, and when it therefore ends.

A run ends before a training round that would pass its budget. Two things say so, and the first to do so counts:

- the plan, by its own public numbers: so many rounds of its noise fit into the budget, by the Renyi accountant that
  sites stop by too. Every attempt at a round counts, be its answers summed or not;
- the sites that publish their epsilon: of all that their data set has spent, over all its studies. Another round is
  taken to spend as much as the last one did.

Where the plan adds no noise, the sites' words are all that is known: a site that then answers without one ends the run.
A site's own budget is its own, and stands whatever is written here. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ..utils.errors import ConfigError
from ..utils.messages import EnvoyName, TaskKind
from ..utils.privacy.events import Gaussian, Mechanism, Skellam
from ..utils.privacy.planning import rounds_within
from ..utils.privacy.values import PublishedEpsilon, rounded_up
from ..utils.secure_sum.skellam import noise_in
from ..utils.secure_sum.terms import NoiseTerms
from .records import Published, RoundRecord


class BudgetMechanism(Enum):
    """What makes the noise."""

    GAUSSIAN = "gaussian"  # in the plan's training, or on each site's update
    SKELLAM = "skellam"  # of all sites together, inside a secure sum


@dataclass(frozen=True, slots=True)
class PrivacyBudget:
    """The table ``[privacy_budget]``.

    Raises:
        ConfigError: out of range.
    """

    epsilon: float
    delta: float = 1e-5
    mechanism: BudgetMechanism = BudgetMechanism.GAUSSIAN

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ConfigError(f"epsilon is {self.epsilon:g}, expected more than 0")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta is {self.delta:g}, expected more than 0 and less than 1, such as 1e-5")

    def __str__(self) -> str:
        return f"epsilon {self.epsilon:g} at delta {self.delta:g}"

    def fits(self, told: PublishedEpsilon) -> bool:
        """Is what a site tells within it? Never, where it is told at a larger delta: that bounds nothing here."""
        return told.delta <= self.delta and told.epsilon <= self.epsilon


def a_round_of(plan: Mechanism | None, site_noise: float, sum_noise: NoiseTerms | None, size: int) -> Mechanism | None:
    """What one training round releases of a site, by public numbers alone; None where they say nothing.

    Args:
        plan: of its private training, one round; None for a plan without.
        site_noise: the noise multiplier that each site is asked to add to its update.
        sum_noise: of a secure sum.
        size: numbers in an update.
    """
    if plan is not None:
        return plan
    if site_noise:
        return Gaussian(site_noise)
    if sum_noise is not None:
        summed = noise_in(sum_noise, size)
        return Skellam(summed.sensitivity_l1, summed.sensitivity_l2, summed.variance)
    return None


def check_budget(budget: PrivacyBudget, a_round: Mechanism | None, plan_delta: float | None) -> None:
    """Is a budget one that the rest of an experiment can keep to?

    Args:
        budget: the experiment's.
        a_round: see ``a_round_of``.
        plan_delta: of a plan that is trained privately.

    Raises:
        ConfigError: it contradicts the plan, or has room for no round.
    """
    if plan_delta is not None and plan_delta != budget.delta:
        raise ConfigError(
            f"privacy_budget.delta is {budget.delta:g} and the plan's privacy has delta {plan_delta:g}; say the same"
            " twice, or their epsilons cannot be compared"
        )
    is_skellam = isinstance(a_round, Skellam)
    if a_round is not None and is_skellam is not (budget.mechanism is BudgetMechanism.SKELLAM):
        there = "secure_sum.noise_multiplier adds Skellam noise" if is_skellam else f"the plan's noise is {a_round}"
        raise ConfigError(f"privacy_budget.mechanism is {budget.mechanism.value}, and {there}; say what it is")
    if a_round is not None and not rounds_within(a_round, budget.epsilon, budget.delta):
        raise ConfigError(
            f"privacy_budget: {budget} has room for no round of this plan ({a_round}): raise epsilon, or add noise"
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """What is known, once a training round ended, of what a run spent."""

    rounds: int  # attempts at training rounds that were opened so far
    told: Mapping[EnvoyName, Sequence[PublishedEpsilon]]  # by each site, the oldest first
    silent: Collection[EnvoyName] = ()  # who answered the last round without telling


def spent_of(told: Sequence[RoundRecord], published: Mapping[tuple[int, int], Mapping[EnvoyName, Published]]) -> Spent:
    """What a run's history says.

    Args:
        told: every attempt at every round.
        published: what sites told with their answers, by round and attempt.
    """
    training = [one.round for one in told if one.round.kind is TaskKind.TRAIN and one.round.cohort]
    by_site: dict[EnvoyName, list[PublishedEpsilon]] = {}
    for said in (published[place] for place in sorted(published)):
        for name, one in said.items():
            if one.privacy is not None:
                by_site.setdefault(name, []).append(one.privacy)
    silent: frozenset[EnvoyName] = frozenset()
    if training:
        last = training[-1]
        said = published.get((last.ref.round, last.ref.attempt), {})
        silent = frozenset(name for name in last.received if name not in said or said[name].privacy is None)
    return Spent(len(training), by_site, silent)


def exhausted(budget: PrivacyBudget, a_round: Mechanism | None, spent: Spent) -> str | None:
    """Why no further training round may begin; None where one may."""
    if a_round is not None:
        room = rounds_within(a_round, budget.epsilon, budget.delta)
        if spent.rounds >= room:
            return f"privacy_budget: {budget} has room for {_count(room)} of {a_round}"
    elif spent.silent:
        return (
            f"privacy_budget: {len(spent.silent)} of the sites that answered publish no epsilon, and the plan adds no"
            f" noise of its own: whether {budget} holds is not known"
        )
    for name in sorted(spent.told):
        values = spent.told[name]
        if not values:
            continue
        if values[-1].delta > budget.delta:
            return f"privacy_budget: {name} publishes {values[-1]}, which says nothing at delta {budget.delta:g}"
        after = next_epsilon(values)
        if after > budget.epsilon or values[-1].epsilon >= budget.epsilon:
            return f"privacy_budget: {name} publishes {values[-1]}; another round would be epsilon {rounded_up(after)}"
    return None


def next_epsilon(told: Sequence[PublishedEpsilon]) -> float:
    """What a site would publish after another round, if that spends what the last one did.

    >>> from fedveil.utils.privacy.values import Unit
    >>> next_epsilon([PublishedEpsilon(e, 1e-5, Unit.PATIENT) for e in (0.5, 0.75)])
    1.0
    """
    last = told[-1].epsilon
    before = told[-2].epsilon if len(told) > 1 and told[-2].delta == told[-1].delta else last
    return last + max(last - before, 0.0)


def _count(rounds: int) -> str:
    return "no round" if not rounds else "1 round" if rounds == 1 else f"{rounds} rounds"
