"""Send the largest numbers alone: fewer bytes, and an attacker who matches only those."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...utils.errors import ConfigError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .pieces import require_sendable


@dataclass(frozen=True, slots=True)
class TopK:
    """Keep the numbers of largest magnitude, zero the others.

    Source: gradient compression, Lin et al. 2018 (arXiv:1712.01887), which Zhu et al. 2019 (arXiv:1906.08935, section
    5.2) put forward as a defense.

    Guarantees:
        - exactly k = max(1, round(share * size)) numbers are kept, to the last bit; each is at least as large as any
          that is not, and of equal ones the first in the layout;
        - sending what was sent changes nothing, shape and dtype are kept;
        - NaN and infinity are refused.

    Raises:
        ConfigError: a share outside (0, 1].
    """

    share: float

    def __post_init__(self) -> None:
        require_share(self.share)

    @property
    def label(self) -> str:
        """Its share.

        >>> TopK(0.01).label
        'top-k 1 %'
        """
        return f"top-k {100 * self.share:g} %"

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Keep the largest; nothing is drawn."""
        del rng
        require_sendable(vector)
        count = kept(self.share, vector.size)
        if count >= vector.size:
            return vector
        magnitudes = np.abs(vector)
        least = np.partition(magnitudes, vector.size - count)[vector.size - count]
        chosen = magnitudes > least
        ties = np.flatnonzero(magnitudes == least)[: count - int(chosen.sum())]
        chosen[ties] = True
        return np.where(chosen, vector, np.float32(0))


def kept(share: float, size: int) -> int:
    """How many numbers a share of ``size`` numbers is: at least one, where there are any."""
    return min(size, max(1, round(share * size)))


def require_share(share: float) -> None:
    """Refuse a share that is none.

    Raises:
        ConfigError: it is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"a share of {share:g}, expected more than 0 and at most 1")
