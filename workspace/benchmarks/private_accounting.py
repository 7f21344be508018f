"""Epsilon of many noised steps with Poisson sampling, by two accountants of ``dp-accounting`` (the extra ``dp``).

Neighbours differ by one unit that is added or removed. What is reported is the privacy-loss-distribution accountant's
(Koskela et al. 2020, arXiv:1906.03049; Doroshenko et al. 2022, arXiv:2207.04380); Renyi divergence (Mironov et al.
2019, arXiv:1908.10530) is the cross-check, which is looser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...utils.errors import ConfigError

if TYPE_CHECKING:
    from dp_accounting.pld import PLDAccountant

_INTERVAL = 1e-3  # of the discretized privacy loss; the result is an upper bound at any
_TOLERANCE = 1e-3  # of the noise multiplier
_ORDERS = (1.5, 1.75, *(number / 4 for number in range(8, 40)), *range(10, 65), 128, 256, 512)
_SEARCHED = (0.2, 50.0)


@dataclass(frozen=True, slots=True)
class Steps:
    """All that the accountant must know of a run at one site."""

    sampling_rate: float  # of each unit in each step, independently
    count: int
    delta: float

    def epsilon(self, noise_multiplier: float) -> float:
        """What one unit spends, by privacy loss distributions."""
        return float(self._accountant(noise_multiplier).get_epsilon(self.delta))

    def renyi_epsilon(self, noise_multiplier: float) -> float:
        """The same by Renyi divergence; not below ``epsilon`` but for rounding."""
        accounting = _accounting()
        from dp_accounting.rdp import RdpAccountant

        event = _event(accounting, self, noise_multiplier)
        return float(RdpAccountant(_ORDERS).compose(event).get_epsilon(self.delta))

    def noise_multiplier(self, epsilon: float) -> float:
        """The least noise that spends at most ``epsilon``, to a thousandth.

        Raises:
            ConfigError: none between 0.2 and 50 does, or the extra ``dp`` is not installed.
        """
        accounting = _accounting()
        from dp_accounting.pld import PLDAccountant

        try:
            found = accounting.calibrate_dp_mechanism(
                lambda: PLDAccountant(value_discretization_interval=_INTERVAL),
                lambda noise: _event(accounting, self, noise),
                epsilon,
                self.delta,
                accounting.ExplicitBracketInterval(*_SEARCHED),
                tol=_TOLERANCE,
            )
        except ValueError as error:
            raise ConfigError(f"epsilon {epsilon:g}, delta {self.delta:g}, {self.count} steps: {error}") from error
        return float(found)

    def reconstruction_bound(self, noise_multiplier: float, prior_success: float) -> float:
        """At most how often an attacker who knows all others names the right one of 1 / ``prior_success`` candidates.

        The least of e^epsilon kappa + delta(epsilon) over epsilon, straight from the definition: without the unit the
        release is independent of it, and is right with a chance of kappa. With sampling; ``vae.recovery`` has the bound
        of Hayes et al. for units that are in every step.
        """
        epsilons = [number / 20 for number in range(int(-20 * math.log(prior_success)) + 1)]
        deltas = self._accountant(noise_multiplier).get_delta(epsilons)
        return min(1.0, *(math.exp(e) * prior_success + float(d) for e, d in zip(epsilons, deltas, strict=True)))

    def _accountant(self, noise_multiplier: float) -> PLDAccountant:
        accounting = _accounting()
        from dp_accounting.pld import PLDAccountant

        empty = PLDAccountant(value_discretization_interval=_INTERVAL)
        return empty.compose(_event(accounting, self, noise_multiplier))


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ConfigError("the accountant is not installed; `pip install 'fedveil[dp]'` brings it") from error
    return dp_accounting


def _event(accounting: Any, steps: Steps, noise_multiplier: float) -> Any:
    one = accounting.PoissonSampledDpEvent(steps.sampling_rate, accounting.GaussianDpEvent(noise_multiplier))
    return accounting.SelfComposedDpEvent(one, steps.count)
