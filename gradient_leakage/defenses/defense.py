"""What a defense is: a vector goes in, and what is sent for it comes out."""

from __future__ import annotations

from typing import Protocol

from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector


class Defense(Protocol):
    """A frozen dataclass, pure. It never writes to what it is given, and may hand the very same vector on.

    Each guarantee in a defense's docstring has a property test. The same draws give the same result.
    """

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """What is sent for this update.

        Raises:
            UnsendableUpdateError: it holds NaN or infinity, or is not of the defense's layout.
        """
        ...

    @property
    def label(self) -> str:
        """One short phrase for records and tables."""
        ...
