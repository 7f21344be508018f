"""A random projection with orthonormal rows, drawn from a seed: what a ``seeded`` codec codes with. It learns nothing.

``S H D``: random signs D, a Hadamard transform H within blocks of at most 1,024 coordinates, and a random subset S of
the results, one out of each stratum. Rows are orthonormal exactly, without a QR decomposition, so the matrix is the
same on every machine: its signs and its subset are taken from the raw stream of Philox (Salmon et al. 2011), which
numpy keeps stable, and only the rounding of products may differ. It costs O(size),
and nothing is stored or sent but the seed.
Source: subsampled randomised Hadamard transform, Ailon & Chazelle 2009; strata instead of a uniform subset are ours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...utils.tensors import Vector

_WIDEST = 1024
"""Coordinates that one transform mixes; two matrix products with 32x32 Hadamard matrices."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A matrix of shape (count, size) with orthonormal rows.

    Guarantees (each has a property test):
        - ``encode(decode(code)) == code`` and ``|encode(x)| <= |x|``, up to float32 rounding;
        - the same seed, size and count give the same matrix; over seeds, the mean of ``decode(encode(x))`` is
          ``count / size * x``, up to one stratum more or less.
    """

    signs: Vector  # (size,), each -1 or 1
    chosen: NDArray[np.int64]  # (count,), ascending: which of the transformed coordinates are kept

    @classmethod
    def drawn(cls, seed: bytes, size: int, count: int) -> Projection:
        """The projection that a seed (of any length) gives.

        Raises:
            ValueError: more rows than coordinates.
        """
        if not 0 < count <= size:
            raise ValueError(f"{count} orthonormal rows of {size} coordinates")
        key = hashlib.sha256(b"fedveil/projection" + seed).digest()[:16]
        stream = np.random.Philox(key=int.from_bytes(key, "little"))
        bits = stream.random_raw(-(-size // 64)).astype("<u8", copy=False).view(np.uint8)
        signs = np.unpackbits(bits, count=size, bitorder="little").astype(np.float32)
        np.multiply(signs, -2, out=signs)
        np.add(signs, 1, out=signs)
        edges = np.arange(count + 1, dtype=np.int64) * size // count
        within = (stream.random_raw(count) >> np.uint64(32)) * np.diff(edges).astype(np.uint64) >> np.uint64(32)
        return cls(signs, edges[:-1] + within.astype(np.int64))

    @property
    def size(self) -> int:
        """Coordinates of what is projected."""
        return len(self.signs)

    @property
    def count(self) -> int:
        """Numbers that it is projected to."""
        return len(self.chosen)

    def encode(self, vector: Vector) -> Vector:
        """From (size,) to (count,)."""
        mixed = vector * self.signs
        for piece, width in _pieces(mixed):
            _transform(piece, width)
        return mixed[self.chosen]

    def decode(self, code: Vector) -> Vector:
        """From (count,) to (size,): the transposed matrix."""
        vector = np.zeros(self.size, np.float32)
        vector[self.chosen] = code
        for piece, width in _pieces(vector):
            _transform(piece, width)
        return np.multiply(vector, self.signs, out=vector)


def _pieces(vector: Vector) -> Iterator[tuple[Vector, int]]:
    """The vector cut into pieces of whole transforms, the widest first: the rest of a length is never padded."""
    start = 0
    while start < len(vector):
        left = len(vector) - start
        width = min(_WIDEST, 1 << (left.bit_length() - 1))
        stop = start + left // width * width
        yield vector[start:stop], width
        start = stop


def _transform(piece: Vector, width: int) -> None:
    """Each ``width`` coordinates that lie ``len(piece) / width`` apart, times a Hadamard matrix, in place."""
    outer = 1 << (width.bit_length() - 1) // 2
    columns = len(piece) // width
    first = _hadamard(outer) @ piece.reshape(outer, -1)
    np.matmul(
        _hadamard(width // outer),
        first.reshape(outer, width // outer, columns),
        out=piece.reshape(outer, width // outer, columns),
    )


def _hadamard(order: int) -> NDArray[np.float32]:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(math.sqrt(order))
