"""What a plan says of its differentially private training: public numbers, in its manifest, known before anything runs.

Pure values. How a step is made is ``envoy/private_training.py``; what many steps spend is the site's ledger. The same
class, given an epsilon, is one release of a site's whole update, noised by hand (``privacy/noising.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, FederationError, PlanError
from .privacy.events import Gaussian, Release, SampledGaussian
from .privacy.values import Unit

if TYPE_CHECKING:
    from .privacy.noise import NoiseSource
    from .privacy.noising import NoisedGradients

_MOST_STEPS = 1_000_000
_MOST_UNITS = 1 << 53
_ONE_RELEASE_DELTA = 1e-5
_LARGEST_EPSILON = 1e3
_GAUSSIANS = {"gaussian": "exact", "analytic_gaussian": "exact", "classic_gaussian": "textbook"}
_LAPLACE = "laplace"
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

    **With an epsilon** it is no training, but one release of a site's whole update, which ``add_noise_to_gradients``
    makes: unit ``site``, one step, nothing sampled. A table ``privacy_budget`` {epsilon, delta, mechanism} is taken as
    it is; the mechanism is ``gaussian`` (calibrated exactly; ``analytic_gaussian`` is the same), ``laplace``, or
    ``classic_gaussian``, the textbook's formula, which is refused from epsilon 1 on.

    >>> DifferentialPrivacy(epsilon=0.5).label
    'one release of a site: epsilon 0.5, delta 1e-05, gaussian, noise 7.03 x the sensitivity'
    >>> DifferentialPrivacy(**{"epsilon": 0.5, "delta": 0.0, "mechanism": "laplace"}).noise_multiplier
    2.0

    Raises:
        PlanError: a value out of range, or a delta that lets a whole unit out.
        ConfigError: an epsilon with no such mechanism, or beside what a training alone has.
    """

    unit: Unit  # record or patient
    max_norm: float  # L2, of one unit's gradient
    noise_multiplier: float  # noise standard deviation / max_norm
    sampling_rate: float  # of each unit in each step, in (0, 1]
    units: int  # public: how many units a site is taken to have, the same number at every site
    steps: int = 1  # of one round, at every site, whatever it has
    delta: float = 1e-5  # that the epsilon of a report goes with
    epsilon: float | None = None  # of one release by hand; None: a training, whose epsilon follows from all of it
    mechanism: str = ""  # of one release by hand

    def __init__(
        self,
        unit: Unit | str | float | None = None,
        max_norm: float | None = None,
        noise_multiplier: float | None = None,
        sampling_rate: float | None = None,
        units: int | None = None,
        steps: int = 1,
        delta: float | None = None,
        *,
        epsilon: float | None = None,
        mechanism: str = "gaussian",
    ) -> None:
        """Words become units and whole numbers floats where they stand for them; then the ranges are checked.

        A number in the first place is an epsilon: ``DifferentialPrivacy(0.5)``.
        """
        of_training = {
            "max_norm": max_norm,
            "noise_multiplier": noise_multiplier,
            "sampling_rate": sampling_rate,
            "units": units,
        }
        if isinstance(unit, int | float) and not isinstance(unit, bool) and epsilon is None:
            unit, epsilon = None, unit
        if epsilon is not None:
            odd = [name for name, one in {"unit": unit, **of_training}.items() if one is not None]
            if odd or steps != 1:
                raise ConfigError(f"epsilon is of one release by hand; {', '.join(odd) or 'steps'} is a training's")
            self._be_one_release(epsilon, delta, mechanism)
            return
        missing = [name for name, one in {"unit": unit, **of_training}.items() if one is None]
        if missing:
            raise TypeError(f"a private training needs {', '.join(missing)}; one release by hand needs epsilon")
        delta = _ONE_RELEASE_DELTA if delta is None else delta
        values = {
            "unit": _unit(unit),
            "max_norm": _number("max_norm", max_norm),
            "noise_multiplier": _number("noise_multiplier", noise_multiplier),
            "sampling_rate": _number("sampling_rate", sampling_rate),
            "units": _whole("units", units, _MOST_UNITS),
            "steps": _whole("steps", steps, _MOST_STEPS),
            "delta": _number("delta", delta),
            "epsilon": None,
            "mechanism": "",
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_ranges()

    def _be_one_release(self, epsilon: float, delta: float | None, mechanism: str) -> None:
        """One release of all that a site sends: clipped to a sensitivity that is said when it is made, and noised."""
        is_number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
        if not is_number or not 0 < epsilon <= _LARGEST_EPSILON:
            raise ConfigError(f"epsilon {epsilon!r}, expected a number above 0 and at most {_LARGEST_EPSILON:g}")
        if mechanism == _LAPLACE:
            if delta:
                raise ConfigError(f"laplace noise has no delta; got {delta!r}, expected 0 or nothing")
            delta, multiplier = 0.0, 1 / epsilon
        elif mechanism in _GAUSSIANS:
            from .privacy.gaussian import calibrated_noise  # scipy, which a director has no need of

            delta = _number("delta", _ONE_RELEASE_DELTA if delta is None else delta)
            multiplier = calibrated_noise(float(epsilon), delta, by=_GAUSSIANS[mechanism])
        else:
            known = ", ".join((*_GAUSSIANS, _LAPLACE))
            raise ConfigError(f"mechanism {mechanism!r}, expected one of {known}")
        values = {"unit": Unit.SITE, "max_norm": 1.0, "noise_multiplier": multiplier, "sampling_rate": 1.0}
        values |= {"units": 1, "steps": 1, "delta": delta, "epsilon": float(epsilon), "mechanism": mechanism}
        for name, value in values.items():
            object.__setattr__(self, name, value)

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
        if self.epsilon is not None:
            return (
                f"one release of a site: epsilon {self.epsilon:g}, delta {self.delta:g}, {self.mechanism}, noise"
                f" {self.noise_multiplier:.3g} x the sensitivity"
            )
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
            ConfigError: no round, or Laplace noise, for which the ledger has no account.
        """
        if self.epsilon is not None:
            if self.mechanism == _LAPLACE:
                raise ConfigError(
                    "the ledger counts no laplace noise; take gaussian, or it is a release without epsilon"
                )
            return Release(Gaussian(self.noise_multiplier, rounds), Unit.SITE)
        return Release(SampledGaussian(self.sampling_rate, self.noise_multiplier, self.steps * rounds), self.unit)

    def add_noise_to_gradients(
        self, gradients: Mapping[str, Any], sensitivity: float = 1.0, *, rng: NoiseSource | None = None
    ) -> NoisedGradients:
        """Clip gradients to a norm, and add this release's noise: arrays by name, float32, with ``.noise`` beside them.

        The sensitivity is not believed: all arrays together are clipped to it (L2 for Gaussian noise, L1 for Laplace),
        so that the epsilon holds whatever was given.

        Args:
            gradients: what ``train_local`` gave; any floating-point arrays by name. Never written to.
            sensitivity: the bound, in their units.
            rng: where noise comes from; the operating system's, which nobody can repeat, by default.

        Raises:
            ConfigError: this declares a plan's training, whose noise is drawn in each step; or no such bound.
            UnsendableUpdateError: no arrays of floating-point numbers, or NaN or infinity in one of them.
        """
        if self.epsilon is None:
            raise ConfigError(
                "this declares a plan's training, which draws noise in each of its steps; for one release by hand:"
                " DifferentialPrivacy(epsilon=...)"
            )
        from .privacy.noise import SystemNoise
        from .privacy.noising import AddedNoise, Law, NoisedGradients, digest_of_arrays, noised

        law = Law.LAPLACE if self.mechanism == _LAPLACE else Law.GAUSSIAN
        source = SystemNoise() if rng is None else rng
        bound = _number("sensitivity", sensitivity, ConfigError)
        sent, norm = noised(gradients, law, bound, self.noise_multiplier, source)
        scale, digest = bound * self.noise_multiplier, digest_of_arrays(sent)
        return NoisedGradients(sent, AddedNoise(self.epsilon, self.delta, law, bound, scale, norm, digest))

    def to_document(self) -> dict[str, Any]:
        """JSON values, as a manifest holds them.

        Raises:
            PlanError: this is one release by hand, and no training.
        """
        if self.epsilon is not None:
            raise PlanError(
                "privacy: one release by hand declares no training; say unit, max_norm, noise_multiplier, …"
            )
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


def _number(name: str, value: object, refused: type[FederationError] = PlanError) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise refused(f"privacy: {name} {value!r}, expected a number")
    return float(value)
