"""What was released of a data set, as public numbers: enough to account for it, nothing of the data.

A release is a mechanism and the unit that its clip bounds. Noise multipliers are standard deviations over that bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from ..errors import ConfigError, PrivacyError
from .values import Unit

_MOST_STEPS = 10**9


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """Steps of DP-SGD: each unit takes part with the same chance, and the clipped sum gets Gaussian noise.

    Source: Abadi et al. 2016 (arXiv:1607.00133). The chances are independent (Poisson sampling); batches of a fixed
    size are another mechanism.

    Raises:
        ConfigError: a number that cannot be.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError(f"sampling_rate is {self.sampling_rate:g}, expected above 0 and at most 1")
        _check(self.noise_multiplier, self.steps)

    @property
    def label(self) -> str:
        """The kind of mechanism.

        >>> SampledGaussian(0.1, 1.0).label, SampledGaussian(1.0, 1.0).label
        ('Poisson-sampled Gaussian', 'Gaussian')
        """
        return "Poisson-sampled Gaussian" if self.sampling_rate < 1 else "Gaussian"

    def __str__(self) -> str:
        steps = f"{self.steps} step{'s' * (self.steps > 1)}"
        return f"{self.label}, sampling rate {self.sampling_rate:g}, noise {self.noise_multiplier:g}, {steps}"

    def scaled(self, count: int) -> SampledGaussian:
        """The same so many times."""
        return replace(self, steps=self.steps * count)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Whole releases with Gaussian noise: a site's update that is clipped and noised, a noised statistic.

    Raises:
        ConfigError: a number that cannot be.
    """

    noise_multiplier: float
    steps: int = 1

    def __post_init__(self) -> None:
        _check(self.noise_multiplier, self.steps)

    @property
    def label(self) -> str:
        """The kind of mechanism."""
        return "Gaussian"

    def __str__(self) -> str:
        return f"Gaussian, noise {self.noise_multiplier:g}, {self.steps} release{'s' * (self.steps > 1)}"

    def scaled(self, count: int) -> Gaussian:
        """The same so many times."""
        return replace(self, steps=self.steps * count)


@dataclass(frozen=True, slots=True)
class Skellam:
    """Integer noise that sites add inside a secure sum, each a part: the difference of two Poisson variables.

    All numbers are in steps of the sum's fixed point. The variance is that of the guaranteed honest sites together, so
    that it protects from everybody but them; what the others add is surplus.

    Raises:
        ConfigError: a number that cannot be.
    """

    sensitivity_l1: float
    sensitivity_l2: float
    variance: float
    steps: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.sensitivity_l2 <= self.sensitivity_l1 < math.inf and 0 < self.variance < math.inf):
            raise ConfigError(
                f"sensitivities {self.sensitivity_l1:g} (L1) and {self.sensitivity_l2:g} (L2), variance"
                f" {self.variance:g}: expected above 0, and L1 at least L2"
            )
        _check(self.noise_multiplier, self.steps)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation over the L2 sensitivity, as of a Gaussian."""
        return math.sqrt(self.variance) / self.sensitivity_l2

    @property
    def label(self) -> str:
        """The kind of mechanism."""
        return "Skellam in the secure sum"

    def __str__(self) -> str:
        return f"{self.label}, noise {self.noise_multiplier:g}, {self.steps} release{'s' * (self.steps > 1)}"

    def scaled(self, count: int) -> Skellam:
        """The same so many times."""
        return replace(self, steps=self.steps * count)


Mechanism: TypeAlias = SampledGaussian | Gaussian | Skellam
_KINDS: dict[str, type[Mechanism]] = {
    "sampled-gaussian": SampledGaussian,
    "gaussian": Gaussian,
    "skellam": Skellam,
}


@dataclass(frozen=True, slots=True)
class Release:
    """A mechanism, and whose contribution its clip bounds.

    Raises:
        ConfigError: sampling of whole sites, which nobody does here.
    """

    mechanism: Mechanism
    unit: Unit

    def __post_init__(self) -> None:
        if self.unit is Unit.SITE and isinstance(self.mechanism, SampledGaussian) and self.mechanism.sampling_rate < 1:
            raise ConfigError("a site's update is never sampled: sampling_rate must be 1 where the unit is site")

    def protecting(self, unit: Unit) -> Mechanism:
        """This release as one that protects another unit.

        A clipped and noised *update* is within its bound whoever the site's patients are, so one patient or record
        more or less moves it by at most twice the bound: the same mechanism with half the noise multiplier. Nothing
        else converts: a patient may have many records, and one record of a patient moves the patient's clipped
        gradient by up to twice its bound.

        Raises:
            PrivacyError: there is no such statement.
        """
        if unit is self.unit:
            return self.mechanism
        if self.unit is Unit.SITE:
            return _of_twice_the_bound(self.mechanism)
        raise PrivacyError(
            f"what protects each {self.unit.value} says nothing of each {unit.value}: the plan must protect the unit"
            " that the data set's budget counts"
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        kind = next(name for name, cls in _KINDS.items() if isinstance(self.mechanism, cls))
        return {"mechanism": kind, **asdict(self.mechanism), "unit": self.unit.value}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Release:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError, KeyError, TypeError, ValueError: not such a release.
        """
        values = dict(document)
        unit, kind = Unit(values.pop("unit")), _KINDS[values.pop("mechanism")]
        return cls(kind(**values), unit)


def grouped(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """The same history, shorter: equal steps counted together, all unsampled Gaussians as one.

    n_i Gaussian releases of noise s_i are one release of noise (sum n_i / s_i^2)^(-1/2), exactly.

    >>> [str(one) for one in grouped([Gaussian(2.0, 4), SampledGaussian(0.1, 1.0, 3), SampledGaussian(0.1, 1.0, 4)])]
    ['Gaussian, noise 1, 1 release', 'Poisson-sampled Gaussian, sampling rate 0.1, noise 1, 7 steps']
    """
    precision, others = 0.0, dict[Mechanism, int]()
    for one in mechanisms:
        if isinstance(one, Gaussian) or (isinstance(one, SampledGaussian) and one.sampling_rate == 1):
            precision += one.steps / one.noise_multiplier**2
        else:
            key = replace(one, steps=1)
            others[key] = others.get(key, 0) + one.steps
    whole = (Gaussian(1 / math.sqrt(precision)),) if precision else ()
    return (*whole, *(one.scaled(count) for one, count in others.items()))


def words(mechanisms: Iterable[Mechanism]) -> str:
    """The kinds of mechanism in a history, each once.

    >>> words([Gaussian(1.0), SampledGaussian(0.1, 1.0), Gaussian(3.0)])
    'Gaussian + Poisson-sampled Gaussian'
    """
    return " + ".join(dict.fromkeys(one.label for one in mechanisms)) or "nothing released"


def _of_twice_the_bound(mechanism: Mechanism) -> Mechanism:
    if isinstance(mechanism, Skellam):
        l1, l2 = 2 * mechanism.sensitivity_l1, 2 * mechanism.sensitivity_l2
        return replace(mechanism, sensitivity_l1=l1, sensitivity_l2=l2)
    return replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 2)


def _check(noise_multiplier: float, steps: int) -> None:
    if not 0 < noise_multiplier < math.inf:
        raise ConfigError(
            f"noise_multiplier is {noise_multiplier:g}, expected above 0: without noise nothing is private"
        )
    if not 1 <= steps <= _MOST_STEPS:
        raise ConfigError(f"steps is {steps}, expected 1 to {_MOST_STEPS}")
