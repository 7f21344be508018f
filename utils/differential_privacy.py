"""What a plan says of its differentially private training: public numbers, in its manifest, known before anything runs.

Pure values. How a step is made is ``envoy/private_training.py``; what many steps spend is the site's ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import PlanError
from .privacy.events import Release, SampledGaussian
from .privacy.values import Unit

_MOST_STEPS = 1_000_000
_MOST_UNITS = 1 << 53
_FIELDS = ("unit", "max_norm", "noise_multiplier", "sampling_rate", "units", "steps", "delta")


@dataclass(frozen=True, slots=True, init=False)
class DifferentialPrivacy:
    """How a plan is trained so that no unit can be told from its absence: DP-SGD.

    Source: Abadi et al. 2016 (arXiv:1607.00133), Algorithm 1; Poisson sampling as its accounting asks for.

    Two datasets of a site are neighbours if one has one unit more: a record (an example), or a patient with all of its
    examples. A patient of two hospitals is a unit at each. One step draws every unit by its own coin of
    ``sampling_rate``, clips the mean gradient of each drawn unit to ``max_norm``, and adds Gaussian noise of standard
    deviation ``noise_multiplier * max_norm`` to their sum. The sum is divided by ``sampling_rate * units``, which is
    **this setting's own constant and never a count of the site**: how many examples a site has, or how many were
    drawn, is nowhere in what leaves. A site with more units than ``units`` takes a larger step, one with fewer a
    smaller one, so that sites weigh as their sizes do although each has the public weight 1.

    >>> DifferentialPrivacy("patient", 1.0, 1.1, 0.05, units=800).label
    'per patient: clip 1, noise 1.1, sampling 0.05, 1 step a round'

    Raises:
        PlanError: a value out of range, or a delta that lets a whole unit out.
    """

    unit: Unit  # record or patient
    max_norm: float  # L2, of one unit's gradient
    noise_multiplier: float  # noise standard deviation / max_norm
    sampling_rate: float  # of each unit in each step, in (0, 1]
    units: int  # public: how many units a site is taken to have, the same number at every site
    steps: int = 1  # of one round, at every site, whatever it has
    delta: float = 1e-5  # that the epsilon of a report goes with

    def __init__(
        self,
        unit: Unit | str,
        max_norm: float,
        noise_multiplier: float,
        sampling_rate: float,
        units: int,
        steps: int = 1,
        delta: float = 1e-5,
    ) -> None:
        """Words become units and whole numbers floats where they stand for them; then the ranges are checked."""
        values = {
            "unit": _unit(unit),
            "max_norm": _number("max_norm", max_norm),
            "noise_multiplier": _number("noise_multiplier", noise_multiplier),
            "sampling_rate": _number("sampling_rate", sampling_rate),
            "units": _whole("units", units, _MOST_UNITS),
            "steps": _whole("steps", steps, _MOST_STEPS),
            "delta": _number("delta", delta),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_ranges()

    def _check_ranges(self) -> None:
        if not self.max_norm > 0 or not self.noise_multiplier > 0:
            raise PlanError(
                f"privacy: max_norm {self.max_norm:g} and noise_multiplier {self.noise_multiplier:g}, expected numbers"
                " above 0; without noise nothing is private, leave privacy out"
            )
        if not 0 < self.sampling_rate <= 1:
            raise PlanError(f"privacy: sampling_rate {self.sampling_rate:g}, expected more than 0 and at most 1")
        if not 0 < self.delta < 1 / self.units:
            raise PlanError(
                f"privacy: delta {self.delta:g}, expected more than 0 and less than 1 / units = {1 / self.units:g}: a"
                " larger one allows to publish somebody's data as they are"
            )

    @property
    def label(self) -> str:
        """In words."""
        return (
            f"per {self.unit.value}: clip {self.max_norm:g}, noise {self.noise_multiplier:g}, sampling"
            f" {self.sampling_rate:g}, {self.steps} step{'s' if self.steps > 1 else ''} a round"
        )

    @property
    def expected_units(self) -> float:
        """What a step's sum is divided by: public."""
        return self.sampling_rate * self.units

    def release(self, rounds: int = 1) -> Release:
        """What so many rounds of training release of a site, for its ledger: known before any of them runs.

        >>> print(DifferentialPrivacy("record", 1.0, 1.5, 0.1, units=100, steps=4).release(10).mechanism)
        Poisson-sampled Gaussian, sampling rate 0.1, noise 1.5, 40 steps

        Raises:
            ConfigError: no round.
        """
        return Release(SampledGaussian(self.sampling_rate, self.noise_multiplier, self.steps * rounds), self.unit)

    def to_document(self) -> dict[str, Any]:
        """JSON values, as a manifest holds them."""
        return {name: getattr(self, name) for name in _FIELDS} | {"unit": self.unit.value}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> DifferentialPrivacy:
        """Read what ``to_document`` made, and nothing else.

        Raises:
            PlanError: another key, or a value that does not fit.
        """
        if set(document) != set(_FIELDS):
            raise PlanError(f"privacy has {', '.join(sorted(document))}, expected {', '.join(_FIELDS)}")
        return cls(**document)


def _unit(word: object) -> Unit:
    for unit in (Unit.RECORD, Unit.PATIENT):
        if word in {unit, unit.value}:
            return unit
    raise PlanError(f"privacy: unit {word!r}, expected record or patient; no training protects a site")


def _whole(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise PlanError(f"privacy: {name} {value!r}, expected a whole number from 1 to {most}")
    return value


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise PlanError(f"privacy: {name} {value!r}, expected a number")
    return float(value)
