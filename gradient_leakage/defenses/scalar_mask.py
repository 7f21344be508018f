"""BROKEN, kept as a baseline: a mask that is one number, added to every number of the update.

It is what OpenFL 1.9 calls secure aggregation, as read in its own code (``utilities/secagg/crypto.py``,
``calculate_mask`` and ``calculate_shared_mask``; ``component/collaborator/collaborator.py``, ``_apply_masks``): a
private number in [0, 1) and, for each pair of sites, a number in [0, 1) that one adds and the other takes away; their
sum goes to every element of every tensor, the same in all rounds, and metrics stay in clear. Taking the mean away from
what was sent takes the mask away with it; two rounds of one site differ by exactly what their updates differ by.

Nothing of this project sends so. It stands here so that a test of masks has something that it must catch, and an attack
something that it must break.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import ConfigError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .pieces import require_sendable


@dataclass(frozen=True, slots=True)
class ScalarMask:
    """Add one number to all of an update, as the site at ``place`` among ``sites`` does.

    Guarantees:
        - every number is moved by the same amount, up to float32 rounding;
        - the amount is the private number and the pairs' numbers; shape and dtype are kept;
        - NaN and infinity are refused.

    Raises:
        ConfigError: a place that is none of the sites'.
    """

    place: int = 0
    sites: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.place < self.sites:
            raise ConfigError(f"site {self.place} of {self.sites}: expected a place from 0 on, below the count")

    @property
    def label(self) -> str:
        """What it is.

        >>> ScalarMask().label
        'one scalar as a mask (broken)'
        """
        return "one scalar as a mask (broken)"

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """The private number, plus those shared with sites before it, minus those with sites after it."""
        require_sendable(vector)
        drawn = rng.random(self.sites)
        drawn[self.place + 1 :] *= -1
        masked: Vector = vector + np.float32(drawn.sum())
        return masked


def scalar_masks(sites: int, rng: NoiseSource) -> NDArray[np.float64]:
    """The numbers of all sites of one federation, (sites,): those of the pairs cancel in their sum."""
    shared = np.triu(rng.random(sites * sites).reshape(sites, sites), 1)
    masks: NDArray[np.float64] = rng.random(sites) + shared.sum(0) - shared.sum(1)
    return masks
