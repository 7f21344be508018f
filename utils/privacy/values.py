"""What privacy is measured in: a unit, an accountant, and an epsilon with its delta, unit and mechanism beside it.

Neighbouring data sets always differ by *one unit that is added or removed*; another adjacency is another number, and is
not mixed with this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from enum import Enum
from typing import Any

from ..errors import ConfigError

ADJACENCY = "one added or removed"
_FOUR_DIGITS = Context(prec=4, rounding=ROUND_CEILING)
_FORBIDDEN = {
    "gdp": "Gaussian DP by the central limit theorem gives less than the true epsilon (0.852 for noise 1, sampling rate"
    " 0.032, 32 steps at delta 1e-5; the true one is 1.544)",
    "moments": "it is the Renyi accountant with fewer orders; take rdp",
    "basic": "adding epsilons up is right and far too large; take pld",
}


class Unit(Enum):
    """Whose presence is hidden."""

    RECORD = "record"  # one image or row
    PATIENT = "patient"  # all records of one patient
    SITE = "site"  # everything that one site sends at once


class Accountant(Enum):
    """How releases are composed."""

    PLD = "pld"  # privacy loss distributions: what is reported
    RDP = "rdp"  # Renyi divergence on a fixed grid of orders: what stops
    PRV = "prv"  # Opacus': the cross-check


def accountant_named(name: str) -> Accountant:
    """The accountant of that name.

    Raises:
        ConfigError: there is none, or it is one that understates; the text says why.

    >>> accountant_named("pld").name
    'PLD'
    """
    wanted = name.casefold().strip()
    if wanted in _FORBIDDEN:
        raise ConfigError(f"the accountant {wanted!r} is refused: {_FORBIDDEN[wanted]}")
    try:
        return Accountant(wanted)
    except ValueError:
        names = ", ".join(one.value for one in Accountant)
        raise ConfigError(f"accountant {name!r}: expected one of {names}") from None


@dataclass(frozen=True, slots=True, order=False)
class Epsilon:
    """An upper bound on the privacy loss, with all that it is worth nothing without.

    It prints rounded up, never down.

    >>> print(Epsilon(1.54381, 1e-5, Unit.PATIENT, "Poisson-sampled Gaussian", Accountant.PLD))
    epsilon 1.544 at delta 1e-05 per patient (one added or removed; Poisson-sampled Gaussian; pld)
    """

    value: float  # infinity where nothing bounds it
    delta: float
    unit: Unit
    mechanism: str
    accountant: Accountant

    def __post_init__(self) -> None:
        if not self.value >= 0 or not 0 < self.delta < 1:
            raise ValueError(f"epsilon {self.value}, delta {self.delta}: expected at least 0, and in (0, 1)")

    def __str__(self) -> str:
        return (
            f"epsilon {self.rounded} at delta {self.delta:g} per {self.unit.value}"
            f" ({ADJACENCY}; {self.mechanism}; {self.accountant.value})"
        )

    @property
    def rounded(self) -> str:
        """The number alone, to four digits and rounded up; "infinity" where nothing bounds it."""
        return rounded_up(self.value)

    def is_within(self, epsilon: float) -> bool:
        """Does a bound of ``epsilon`` at the same delta and unit hold?"""
        return self.value <= epsilon

    def published(self) -> PublishedEpsilon:
        """What may be told outside the site.

        Raises:
            ValueError: there is no finite bound.
        """
        return PublishedEpsilon(self.value, self.delta, self.unit)

    def to_json(self) -> dict[str, Any]:
        """All of it; an epsilon that nothing bounds is null."""
        return {
            "epsilon": self.value if math.isfinite(self.value) else None,
            "delta": self.delta,
            "unit": self.unit.value,
            "adjacency": ADJACENCY,
            "mechanism": self.mechanism,
            "accountant": self.accountant.value,
        }


@dataclass(frozen=True, slots=True)
class PublishedEpsilon:
    """All that a site tells of its ledger.

    Raises:
        ValueError: not such numbers.
    """

    epsilon: float
    delta: float
    unit: Unit

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf or not 0 < self.delta < 1:
            raise ValueError(f"epsilon {self.epsilon}, delta {self.delta}: expected at least 0, finite; and in (0, 1)")

    def __str__(self) -> str:
        return f"epsilon {rounded_up(self.epsilon)} at delta {self.delta:g} per {self.unit.value}"

    def to_json(self) -> dict[str, Any]:
        """The three of them."""
        return {"epsilon": self.epsilon, "delta": self.delta, "unit": self.unit.value}


def rounded_up(epsilon: float) -> str:
    """Four significant digits, never below the number.

    >>> rounded_up(1.54301), rounded_up(0.9), rounded_up(12.0), rounded_up(float("inf"))
    ('1.544', '0.9', '12', 'infinity')
    """
    if not math.isfinite(epsilon):
        return "infinity"
    return f"{_FOUR_DIGITS.create_decimal(repr(float(epsilon))).normalize():f}"
