"""The VAE codec as a step of a chain. An encoder alone is no privacy mechanism."""

from __future__ import annotations

from dataclasses import dataclass

from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector
from ..vae.codec import Codec


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Send the code in place of the update, without noise; ``Codec`` says what holds of it.

    What comes after it in a chain sees code and passed entries as one vector, so one clip bounds them jointly.
    """

    codec: Codec  # of the round, where it draws its directions

    @property
    def label(self) -> str:
        """Which basis, and how much smaller."""
        return f"{self.codec.basis.value} code {self.codec.compression:.0f}x"

    def __call__(self, vector: Vector, rng: NoiseSource) -> Vector:
        """Encode; nothing is drawn. (codec.size,) float32 comes out.

        Raises:
            LayoutMismatchError: not as long as the codec's layout.
            NonFiniteUpdateError: NaN or infinity.
        """
        del rng
        return self.codec.encode(vector)

    def decode(self, payload: Vector) -> Vector:
        """What the director reads: (codec.layout.size,)."""
        return self.codec.decode(payload)
