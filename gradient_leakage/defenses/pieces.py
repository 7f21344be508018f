"""Long vectors a piece at a time, so that a defense needs little memory beside what it gives back."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...utils.aggregation import is_finite
from ...utils.errors import LayoutMismatchError, NonFiniteUpdateError
from ...utils.tensors import Vector

PIECE = 1 << 16
"""Numbers at once: 512 KiB as float64, which stays in the cache."""


def pieces(size: int) -> Iterator[slice]:
    """Neighbouring slices that together cover ``size`` numbers."""
    for start in range(0, size, PIECE):
        yield slice(start, min(start + PIECE, size))


def require_sendable(vector: Vector) -> None:
    """Refuse what no defense may hand on.

    Raises:
        LayoutMismatchError: not one axis of float32.
        NonFiniteUpdateError: it holds NaN or infinity.
    """
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise LayoutMismatchError(f"an update of shape {vector.shape} {vector.dtype}, expected one axis of float32")
    if not is_finite(vector):
        raise NonFiniteUpdateError("the update holds NaN or infinity; refusing to send it")


def norm_of(vector: Vector) -> float:
    """The L2 norm, summed in float64, so that no float32 number overflows it.

    Without a dot product: on short pieces BLAS wakes its threads each time, which took fifty times as long where other
    processes wanted the cores.

    Raises:
        LayoutMismatchError, NonFiniteUpdateError: as ``require_sendable``.
    """
    if vector.ndim != 1 or vector.dtype != np.float32:
        require_sendable(vector)
    square, wide = 0.0, np.empty(min(PIECE, vector.size))
    for piece in pieces(vector.size):
        held = wide[: piece.stop - piece.start]
        held[:] = vector[piece]
        square += float(np.multiply(held, held, out=held).sum())
    if not math.isfinite(square):
        raise NonFiniteUpdateError("the update holds NaN or infinity; refusing to send it")
    return math.sqrt(square)
