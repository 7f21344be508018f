"""Named arrays, clipped together and noised: one release of all that a site's update says, by hand.

Source of the Gaussian's calibration: Balle and Wang 2018 (``gaussian``); of Laplace noise without holes that floating
point leaves: Holohan and Braghin 2021 (arXiv:2107.10138), section 4.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, NonFiniteUpdateError, UnsendableUpdateError
from ..tensors import Digest, Vector
from .noise import NoiseSource

_WITHIN = 1 - 2.0**-22  # a factor and a product that are rounded stay below the bound
_LEAST_SENSITIVITY, _MOST_SENSITIVITY = 1e-12, 1e30  # of which float32 still holds noise


class Law(Enum):
    """What is drawn for each number."""

    GAUSSIAN = "gaussian"  # clipped in L2
    LAPLACE = "laplace"  # clipped in L1


@dataclass(frozen=True, slots=True)
class AddedNoise:
    """What was done to some arrays, in public numbers.

    The unit is *one release of one site*: two sites, of which one sends nothing, cannot be told apart by more than
    epsilon. Whoever sees the sum of several sites sees at least this noise. It says nothing of any second release: what
    releases cost together is the ledger's to say.
    """

    epsilon: float
    delta: float  # 0 for Laplace
    law: Law
    sensitivity: float  # to which all arrays together were clipped: L2 for Gaussian, L1 for Laplace
    scale: float  # standard deviation of Gaussian noise, b of Laplace noise; of each number
    norm_before: float  # of all arrays together, as they came; it stays at the site
    digest: Digest  # of the noised arrays: names, shapes and bytes

    @property
    def was_clipped(self) -> bool:
        """Were the arrays larger than the sensitivity?"""
        return self.norm_before > self.sensitivity

    @property
    def noise_multiplier(self) -> float:
        """The noise's scale over the bound."""
        return self.scale / self.sensitivity


class NoisedGradients(dict[str, Vector]):
    """Noised arrays by name, and what was done to them."""

    __slots__ = ("noise",)

    def __init__(self, arrays: Mapping[str, Vector], noise: AddedNoise) -> None:
        super().__init__(arrays)
        self.noise = noise

    @property
    def is_unchanged(self) -> bool:
        """Are they still what the noise was added to? What was changed after it has no epsilon of ours."""
        return self.noise.digest == digest_of_arrays(self)


def noised(
    gradients: Mapping[str, Any], law: Law, sensitivity: float, multiplier: float, rng: NoiseSource
) -> tuple[dict[str, Vector], float]:
    """Clip all arrays together, and draw noise for each number.

    Args:
        gradients: floating-point arrays by name; never written to.
        law: of the noise; says in which norm is clipped.
        sensitivity: the bound, in the units of the arrays.
        multiplier: the noise's scale over the bound.
        rng: draws.

    Returns:
        float32 arrays of the same names and shapes; and the norm of what came.

    Guarantees (property-tested): before the noise the norm is at most ``sensitivity``, whatever was given; the noise is
    independent in each number, and added in float64 before the one rounding to float32.

    Raises:
        ConfigError: a bound out of range.
        UnsendableUpdateError: no arrays, or other things than floating-point numbers.
        NonFiniteUpdateError: NaN or infinity; the message names the array.
    """
    if not _LEAST_SENSITIVITY <= sensitivity <= _MOST_SENSITIVITY:
        raise ConfigError(
            f"sensitivity {sensitivity:g}, expected {_LEAST_SENSITIVITY:g} to {_MOST_SENSITIVITY:g}: it is the norm to"
            " which the gradients are clipped"
        )
    arrays = dict(_checked(gradients))
    norm = _norm(arrays, law)
    factor = 1.0 if norm <= sensitivity else sensitivity / norm * _WITHIN
    scale = sensitivity * multiplier
    sent: dict[str, Vector] = {}
    for name, array in arrays.items():
        noise = _drawn(law, array.size, rng).reshape(array.shape)
        sent[name] = np.asarray(array * factor + noise * scale, np.float32)  # also of one number without extents
    return sent, norm


def digest_of_arrays(arrays: Mapping[str, NDArray[Any]]) -> Digest:
    """SHA-256 of names, shapes, types and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(repr((name, array.dtype.str, array.shape)).encode())
        sha.update(array.tobytes())
    return Digest(sha.hexdigest())


def _checked(gradients: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    if not isinstance(gradients, Mapping) or not gradients:
        raise UnsendableUpdateError("gradients are arrays by name, as `train_local` gives them; nothing came")
    for name, array in gradients.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            came = f"{array.dtype} numbers" if isinstance(array, np.ndarray) else type(array).__name__
            raise UnsendableUpdateError(f"{name}: {came}, expected an array of floating-point numbers")
        if not np.isfinite(array).all():
            raise NonFiniteUpdateError(f"{name} holds NaN or infinity: no noise hides that")
        yield str(name), array.astype(np.float64)


def _norm(arrays: Mapping[str, NDArray[np.float64]], law: Law) -> float:
    if law is Law.LAPLACE:
        return float(math.fsum(float(np.abs(array).sum()) for array in arrays.values()))
    return math.sqrt(math.fsum(float(np.square(array).sum()) for array in arrays.values()))


def _drawn(law: Law, size: int, rng: NoiseSource) -> NDArray[np.float64]:
    if law is Law.GAUSSIAN:
        return rng.standard_normal(size)
    drawn = rng.random(4 * size).reshape(4, size)
    with np.errstate(divide="ignore"):  # 1 - u is in (0, 1]
        first, second = np.log(1 - drawn[0]) * np.cos(np.pi * drawn[1]), np.log(1 - drawn[2]) * np.cos(np.pi * drawn[3])
    summed: NDArray[np.float64] = first + second
    return summed
