"""Renyi divergence of a history of releases, on a fixed grid of orders: what stops a site before its budget is passed.

Pure numpy: a site that trains need not have the extra ``dp`` for it. Looser than ``accounting``'s privacy loss
distributions (2.009 against 1.544 for noise 1, sampling rate 0.032, 32 steps, delta 1e-5), and unlike them right also
where later plans are chosen by what earlier ones gave.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .events import Gaussian, Mechanism, Skellam, grouped

ORDERS: tuple[int, ...] = (*range(2, 33), *range(34, 65, 2), 80, 96, 128, 192, 256, 512, 1024)

Curve: TypeAlias = NDArray[np.float64]
"""(len(ORDERS),): the divergence at each order; two histories together have the sum of theirs."""


def curve(mechanisms: Iterable[Mechanism]) -> Curve:
    """Of a whole history; zeros where nothing was released."""
    total = np.zeros(len(ORDERS))
    for one in grouped(mechanisms):
        total += one.steps * _of_one(one)
    return total


def epsilons(divergence: Curve, delta: float) -> Curve:
    """What each order says of (epsilon, delta): each is an upper bound.

    Source: Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), Proposition 12.
    """
    return np.where(divergence > 0, np.maximum(divergence + _price(delta), 0.0), 0.0)


def best_order(divergence: Curve, delta: float) -> int:
    """The place in ``ORDERS`` whose bound is least."""
    return int(np.argmin(epsilons(divergence, delta)))


def filter_order(history: Curve, next_: Curve, epsilon: float, delta: float) -> int:
    """The place of the order by which a budget is kept: that which lets most repetitions of ``next_`` in.

    A budget is kept by *one* order, fixed before anything that it covers is released. By the order that is best in the
    end, chosen in the end, the budget could be passed where plans depend on what was released; with a fixed order it
    cannot (Feldman and Zrnic 2021, arXiv:2008.11193).
    """
    return int(np.argmax((epsilon - _price(delta) - history) / next_))


def repetitions(history: Curve, next_: Curve, epsilon: float, delta: float, place: int) -> int:
    """How often ``next_``, which must cost something, still fits by one order; 0 where it does not fit once."""
    left = epsilon - float(_price(delta)[place]) - float(history[place])
    return max(0, int(left / float(next_[place]) * (1 - 1e-12)))


def _price(delta: float) -> Curve:
    """What each order adds to its divergence for delta."""
    order = np.asarray(ORDERS, np.float64)
    found: Curve = np.log1p(-1 / order) - np.log(delta * order) / (order - 1)
    return found


def _of_one(mechanism: Mechanism) -> Curve:
    """One step at each order."""
    if isinstance(mechanism, Skellam):
        from ..secure_sum.skellam import rdp

        l1, l2 = mechanism.sensitivity_l1, mechanism.sensitivity_l2
        found = rdp(ORDERS, sensitivity_l1=l1, sensitivity_l2=l2, variance=mechanism.variance)
        return np.asarray(found, np.float64)
    if isinstance(mechanism, Gaussian) or mechanism.sampling_rate == 1:
        return np.asarray(ORDERS, np.float64) / (2 * mechanism.noise_multiplier**2)
    rate, noise = mechanism.sampling_rate, mechanism.noise_multiplier
    return np.array([_sampled(order, rate, noise) for order in ORDERS])


def _sampled(order: int, rate: float, noise: float) -> float:
    """The Poisson-sampled Gaussian at a whole order.

    Source: Mironov, Talwar and Zhang 2019 (arXiv:1908.10530), section 3.3: log of the sum over k of
    binom(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 s^2)), over a - 1.
    """
    k = np.arange(order + 1, dtype=np.float64)
    binomial = [math.lgamma(order + 1) - math.lgamma(i + 1) - math.lgamma(order - i + 1) for i in range(order + 1)]
    terms = np.asarray(binomial) + (order - k) * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * noise**2)
    largest = float(terms.max())
    return max(0.0, largest + math.log(float(np.exp(terms - largest).sum()))) / (order - 1)
