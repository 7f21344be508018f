"""Sites that collude with the director subtract what they sent: what a sum hides is the honest sites, not one of them.

With n - 1 colluders the rest is one site's own update. No aggregation changes that; only noise that the honest sites
add themselves does (Kairouz et al. 2021, arXiv:1912.04977, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import ConfigError, LengthMismatchError
from .threat_model import Observation, SumObservation


def without_colluders(seen: SumObservation, updates: Mapping[int, NDArray[np.floating]]) -> Observation:
    """The sum of the honest sites alone, as the update of one site with all their examples.

    Args:
        seen: what secure aggregation shows.
        updates: of each colluder by its place in the sum, unweighted, shape (layout.size,).

    Raises:
        ConfigError: a colluder that is not in the sum, or nobody honest.
        LengthMismatchError: an update that is not one of this layout.
    """
    sites = range(len(seen.num_examples))
    if strangers := sorted(set(updates) - set(sites)):
        raise ConfigError(f"colluders {strangers} are not among the {len(sites)} sites of this sum")
    honest = [site for site in sites if site not in updates]
    if not honest:
        raise ConfigError(f"all {len(sites)} sites of this sum collude: nobody is left to attack")
    numbers = np.frombuffer(seen.sent, "<f4" if seen.dtype.itemsize == 4 else "<f8")
    rest = numbers.astype(np.float64)
    for site, update in updates.items():
        if update.shape != rest.shape:
            raise LengthMismatchError(
                f"colluder {site} brings an update of shape {update.shape}, expected {rest.shape}"
            )
        rest -= seen.num_examples[site] * update.astype(np.float64)
    return replace(
        seen,
        sent=rest.astype(numbers.dtype).tobytes(),
        models=tuple(seen.models[site] for site in honest),
        num_examples=tuple(seen.num_examples[site] for site in honest),
    ).as_one()
