"""Soteria: hide the part of a representation that gives the image away, in the gradient of the layer that it enters.

Here is the pure part, a mask of columns; ``representation`` chooses them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...utils.errors import ConfigError, LayoutMismatchError
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from .pieces import require_sendable


@dataclass(frozen=True, slots=True)
class Soteria:
    """Zero some columns of one linear layer's weights in the update.

    Source: Sun et al., CVPR 2021 (arXiv:2012.06043), as in their code: the gradient of the defended layer alone is that
    of a pruned representation, and a pruned feature is a column of zeros.

    Guarantees:
        - the columns are zero, every other number is kept to the last bit; so a second pass changes nothing;
        - shape and dtype are kept; NaN and infinity are refused.

    Which columns they are follows from the images, and everybody sees it: they are the zeros.

    Raises:
        ConfigError: columns that the layer does not have.
    """

    start: int  # of the layer's weight in the vector
    shape: tuple[int, int]  # out, in
    columns: tuple[int, ...]  # the hidden features

    def __post_init__(self) -> None:
        if self.start < 0 or any(not 0 <= column < self.shape[1] for column in self.columns):
            raise ConfigError(f"columns {self.columns} at {self.start}: the layer has {self.shape[1]}")

    @property
    def label(self) -> str:
        """How much of the representation it hides.

        >>> Soteria(0, (3, 10), (1, 4)).label
        'Soteria, 20 % of a representation'
        """
        return f"Soteria, {100 * len(self.columns) / self.shape[1]:.0f} % of a representation"

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Mask; nothing is drawn."""
        del rng
        require_sendable(vector)
        stop = self.start + self.shape[0] * self.shape[1]
        if stop > vector.size:
            raise LayoutMismatchError(f"an update of {vector.size} numbers, the defended layer ends at {stop}")
        masked = vector.copy()
        masked[self.start : stop].reshape(self.shape)[:, list(self.columns)] = np.float32(0)
        return masked
