"""What a history of releases spends: privacy loss distributions to report, Renyi divergence to stop, PRV to check.

Distributions are composed by Google's ``dp-accounting`` (the extra ``dp``) and rounded so that the result is an upper
bound; the grid is made finer until the rounding counts for less than a part in 500. It is imported when it is used.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, PrivacyError
from .events import Mechanism, SampledGaussian, Skellam, grouped, words
from .renyi import curve, epsilons
from .values import Accountant, Epsilon, PublishedEpsilon, Unit

PRV_GAP = 0.03
"""Of what PRV and PLD may differ; more is an error, of one of them or of ours."""
_COARSEST, _FINEST = 1e-2, 1e-6
_ROUNDING = 2e-3
_LEAST_COMPARED = 1e-3
_MISSING = "the accountant is not installed; `pip install 'fedveil[dp]'` brings dp-accounting and opacus"


@dataclass(frozen=True, slots=True)
class Account:
    """One history by all accountants that apply."""

    pld: Epsilon
    rdp: Epsilon
    prv: Epsilon | None  # None: it does not apply, or Opacus is not installed

    @property
    def reported(self) -> Epsilon:
        """The tighter of the two upper bounds."""
        return self.pld


def stopping(history: Sequence[Mechanism], delta: float, unit: Unit) -> Epsilon:
    """By Renyi divergence, at the best order of the grid; needs no extra."""
    value = float(epsilons(curve(history), delta).min()) if history else 0.0
    return Epsilon(value, delta, unit, words(history), Accountant.RDP)


def reported(history: Sequence[Mechanism], delta: float, unit: Unit) -> Epsilon:
    """By privacy loss distributions: at most a hundredth above the exact epsilon of these releases, and never below.

    A history with Skellam noise has no such distribution here, and is reported by Renyi divergence; it says so.

    Raises:
        ConfigError: the extra ``dp`` is not installed.
    """
    if any(isinstance(one, Skellam) for one in history):
        return stopping(history, delta, unit)
    value = _by_pld(grouped(history), delta) if history else 0.0
    return Epsilon(value, delta, unit, words(history), Accountant.PLD)


def published(history: Sequence[Mechanism], delta: float, unit: Unit) -> PublishedEpsilon:
    """What may be told of a history: as reported; without the extra ``dp`` by Renyi divergence, larger and as true."""
    try:
        return reported(history, delta, unit).published()
    except ConfigError:
        return stopping(history, delta, unit).published()


def checked(history: Sequence[Mechanism], delta: float, unit: Unit) -> Account:
    """All three.

    Raises:
        ConfigError: the extra ``dp`` is not installed.
        PrivacyError: PRV and PLD are further apart than ``PRV_GAP``.
    """
    pld, rdp = reported(history, delta, unit), stopping(history, delta, unit)
    prv = cross_check(history, delta, unit, pld)
    return Account(pld, rdp, prv)


def cross_check(history: Sequence[Mechanism], delta: float, unit: Unit, against: Epsilon) -> Epsilon | None:
    """Opacus' epsilon of the same history; None without Opacus, with Skellam noise, or where there is next to nothing.

    Raises:
        PrivacyError: the two are further apart than ``PRV_GAP``.
    """
    if not history or against.value < _LEAST_COMPARED or against.accountant is not Accountant.PLD:
        return None
    value = _by_prv(grouped(history), delta, against.value / 100)
    if value is None:
        return None
    if abs(value - against.value) > PRV_GAP * against.value:
        raise PrivacyError(
            f"two accountants disagree by more than {PRV_GAP:.0%}: pld {against.rounded}, prv {value:.4g} at delta"
            f" {delta:g} for {words(history)}; do not release anything until it is understood"
        )
    return Epsilon(value, delta, unit, words(history), Accountant.PRV)


def _by_pld(history: Sequence[Mechanism], delta: float) -> float:
    before, interval = math.inf, _COARSEST
    while True:
        value = _composed(history, delta, interval)
        if before - value <= _ROUNDING * value or interval <= _FINEST:
            return value
        before, interval = value, interval / 10


def _composed(history: Sequence[Mechanism], delta: float, interval: float) -> float:
    try:
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    total: Any = None
    for one in history:
        rate = one.sampling_rate if isinstance(one, SampledGaussian) else 1.0
        step = privacy_loss_distribution.from_gaussian_mechanism(
            one.noise_multiplier,
            sampling_prob=rate,
            value_discretization_interval=interval,
            pessimistic_estimate=True,
        )
        many = step.self_compose(one.steps)
        total = many if total is None else total.compose(many)
    return max(0.0, float(total.get_epsilon_for_delta(delta)))


def _by_prv(history: Sequence[Mechanism], delta: float, error: float) -> float | None:
    try:
        from opacus.accountants import PRVAccountant
    except ImportError:
        return None
    accountant: Any = PRVAccountant()
    accountant.history = [
        (one.noise_multiplier, one.sampling_rate if isinstance(one, SampledGaussian) else 1.0, one.steps)
        for one in history
    ]
    logging.getLogger("opacus").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logarithms of 0 where nothing is sampled out; orders of its own search
        return float(accountant.get_epsilon(delta, eps_error=error, delta_error=delta / 1000))
