"""The terms of a run's secure sums: what its layout allows, and clip bounds that follow the sums. Pure.

Bounds adapt from what every site learns anyway: the sum, and how many elements were clipped in all. A tensor of which
more than a thousandth was clipped gets twice its bound; one whose mean stays below a sixteenth of it gets half.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.errors import ConfigError
from ..utils.secure_sum.terms import MAX_BOUNDS, NoiseTerms, SumTerms
from ..utils.tensors import Layout, Role
from .experiments import ExperimentSettings
from .sum_settings import noise_parts

MOST_CLIPPED = 1e-3
"""Of a tensor's elements, over all sites; more, and its bound doubles."""
LEAST_USED = 1 / 16
"""Of a bound, by the largest element of the mean; less, and nothing clipped, and the bound halves."""
HISTOGRAM_SITES = 20
"""With fewer sites a histogram of norms would show everybody's."""
_RANGE = 2.0**20
"""How far a bound moves from the first one at most, up or down: a tensor that rests keeps a bound to wake up with."""


def check_summable(settings: ExperimentSettings, layout: Layout) -> None:
    """Can this layout's updates be summed securely as the experiment asks?

    Raises:
        ConfigError: SCAFFOLD's control variates, which need a mean of their own.
    """
    if not settings.is_secure:
        return
    if layout.slice_of(Role.CONTROL).stop and settings.secure_sum.groups:
        raise ConfigError(
            "the plan uses SCAFFOLD, whose control variates need the mean of all sites, and no rule over groups shields"
            " them; leave secure_sum.groups out"
        )
    if layout.slice_of(Role.CONTROL).stop and not settings.secure_sum.equal_weights:
        raise ConfigError(
            "the plan uses SCAFFOLD, whose control variates are averaged without weights, and a secure sum has one"
            ' weight a site: set equal_weights = true in [secure_sum], or secure_aggregation = "off"'
        )
    if settings.secure_sum.noise_multiplier and layout.slice_of(Role.BUFFER).stop:
        raise ConfigError(
            "the plan has buffers (running means and variances of batch normalisation), and secure_sum.noise_multiplier"
            " would put noise on them as on the weights: a variance below 0 is none. Use another normalisation"
            " (GroupNorm, LayerNorm), or leave noise_multiplier out"
        )


def terms_of(settings: ExperimentSettings, bounds: Sequence[float]) -> SumTerms:
    """The terms of one round's sum."""
    asked = settings.secure_sum
    noise = noise_of(settings)
    if noise is not None:
        bounds = (noise.bound,)
    return SumTerms(
        suite=asked.suite,
        bounds=tuple(bounds),
        max_weight=asked.max_weight,
        equal_weights=asked.equal_weights,
        aggregator=asked.summing_envoy,
        histogram=settings.rounds.min_participants >= HISTOGRAM_SITES and not asked.equal_weights,
        noise=noise,
    )


def noise_of(settings: ExperimentSettings) -> NoiseTerms | None:
    """The noise of a run's sums: the same in each round, since a norm is public and clips nothing that it may show."""
    asked, max_norm = settings.secure_sum, settings.protection.max_norm
    parts = noise_parts(settings.rounds.min_participants, asked)
    if not settings.is_secure or not asked.noise_multiplier or max_norm is None or parts is None:
        return None
    return NoiseTerms(max_norm, asked.noise_multiplier, parts)


def first_bounds(settings: ExperimentSettings, tensors: int) -> tuple[float, ...]:
    """The bounds of a run's first round; one for all where there are more tensors than bounds may be.

    With noise in the sums they are not used: its terms have their own.
    """
    return (settings.secure_sum.clip,) * (tensors if 1 <= tensors <= MAX_BOUNDS else 1)


def next_bounds(
    bounds: Sequence[float],
    sizes: Sequence[int],
    clipped: Sequence[int],
    peaks: Sequence[float],
    contributions: int,
    first: float,
) -> tuple[float, ...]:
    """The bounds of the next round.

    Args:
        bounds: of this round, one a tensor or one for all.
        sizes: elements of each tensor.
        clipped: how many elements of each tensor were clipped, over all sites.
        peaks: the largest magnitude of the mean in each tensor, as a share of its bound.
        contributions: how many sites are in the sum.
        first: the bound of the run's first round.
    """
    if len(bounds) != len(sizes):  # one for all
        sizes, clipped, peaks = [sum(sizes)], [sum(clipped)], [max(peaks, default=0.0)]
    return tuple(
        _next(bound, count / max(size * contributions, 1), peak, first)
        for bound, size, count, peak in zip(bounds, sizes, clipped, peaks, strict=True)
    )


def _next(bound: float, clipped: float, peak: float, first: float) -> float:
    if clipped > MOST_CLIPPED:
        return min(bound * 2, first * _RANGE)
    if not clipped and peak < LEAST_USED:
        return max(bound / 2, first / _RANGE)
    return bound
