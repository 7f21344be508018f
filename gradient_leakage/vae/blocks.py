"""The pieces of a codec: which tensors are coded together, with what matrices. Linear algebra; no files.

``Dense``     some tensors as one vector: learned directions, then fresh random ones that are orthogonal to them.
``TwoSided``  one matrix or convolution G: the code is ``left.T @ G @ right``, which has few parameters.

All columns are orthonormal, so encoding never lengthens a vector and decoding keeps its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...utils.tensors import Entry, Vector
from .projection import Projection

Matrix: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Some tensors, laid out one after the other as one vector of ``length`` numbers."""

    names: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]  # where they lie in the update: start, stop; neighbours are one span
    directions: Matrix  # (learned, length), orthonormal rows
    variances: Vector  # (learned,): second moment along each direction, in squared units of the parameters
    fresh: int = 0  # directions that each round draws anew
    reflector: Matrix | None = None  # (learned, length); see `complement_reflector`. Only where there are both sorts
    projection: Projection | None = None  # of this round

    @classmethod
    def of(cls, entries: Sequence[Entry], directions: Matrix, variances: Vector, fresh: int = 0) -> Dense:
        """A block over these entries, which are in the order of the layout."""
        reflector = complement_reflector(directions) if fresh and len(directions) else None
        return cls(tuple(e.name for e in entries), _spans(entries), directions, variances, fresh, reflector)

    @property
    def length(self) -> int:
        """Numbers that are coded."""
        return sum(stop - start for start, stop in self.spans)

    @property
    def size(self) -> int:
        """Numbers of the code."""
        return len(self.directions) + self.fresh

    @property
    def num_parameters(self) -> int:
        """Numbers that the file of the codec holds for it."""
        return self.directions.size + self.variances.size

    def for_round(self, seed: bytes) -> Dense:
        """The block with this round's fresh directions; itself where it has none."""
        if not self.fresh:
            return self
        return replace(self, projection=Projection.drawn(seed, self.length - len(self.directions), self.fresh))

    def shrinkage(self, noise_variance: float) -> Vector:
        """(size,): what the posterior mean leaves of each number; nothing is known of fresh directions, so 1."""
        learned = np.maximum(0, 1 - noise_variance / np.maximum(self.variances, np.finfo(np.float32).tiny))
        return np.concatenate([learned, np.ones(self.fresh)]).astype(np.float32)

    def encode(self, vector: Vector, out: Vector) -> None:
        """Write the code of an update, (size,), into ``out``."""
        held, learned = self._gathered(vector), len(self.directions)
        np.matmul(self.directions, held, out=out[:learned])
        if self.fresh:
            out[learned:] = self._drawn().encode(self._reflected(held)[learned:])

    def encode_rows(self, rows: Matrix, out: Matrix) -> None:
        """Write the codes of many updates, a row each; learned directions are read once for all of them."""
        if self.fresh:
            for row, code in zip(rows, out, strict=True):
                self.encode(row, code)
        else:
            held = np.concatenate([rows[:, start:stop] for start, stop in self.spans], axis=1)
            np.matmul(held, self.directions.T, out=out)

    def decode(self, code: Vector, out: Vector) -> None:
        """Write what a code stands for to the block's places in ``out``, an update."""
        learned = len(self.directions)
        if self.fresh:
            held = np.zeros(self.length, np.float32)
            held[learned:] = self._drawn().decode(code[learned:])
            held = self._reflected(held)
            if learned:
                held += code[:learned] @ self.directions
        else:
            held = code @ self.directions
        at = 0
        for start, stop in self.spans:
            out[start:stop] = held[at : at + stop - start]
            at += stop - start

    def _gathered(self, vector: Vector) -> Vector:
        pieces = [vector[start:stop] for start, stop in self.spans]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _reflected(self, held: Vector) -> Vector:
        if self.reflector is None:
            return held
        mirrored: Vector = np.matmul(np.matmul(self.reflector, held), self.reflector)
        return held - mirrored

    def _drawn(self) -> Projection:
        if self.projection is None:
            raise ValueError("this codec draws directions for each round: ask `for_round` for the codec of the round")
        return self.projection


@dataclass(frozen=True, slots=True, eq=False)
class TwoSided:
    """One tensor of shape (out, ...) as a matrix G of shape (out, rest), coded on both sides."""

    name: str
    start: int  # in the update
    left: Matrix  # (out, p), orthonormal columns
    right: Matrix  # (rest, q), orthonormal columns
    variances: Matrix  # (p, q): second moment of each number of the code

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor that it codes."""
        return (self.name,)

    @property
    def length(self) -> int:
        """Numbers that are coded."""
        return len(self.left) * len(self.right)

    @property
    def size(self) -> int:
        """Numbers of the code: p times q."""
        return self.variances.size

    @property
    def num_parameters(self) -> int:
        """Numbers that the file of the codec holds for it."""
        return self.left.size + self.right.size + self.variances.size

    def for_round(self, seed: bytes) -> TwoSided:  # noqa: ARG002 - the same for every block
        """Itself: nothing is drawn."""
        return self

    def shrinkage(self, noise_variance: float) -> Vector:
        """(size,): what the posterior mean leaves of each number; 0 for one that collapses."""
        return np.maximum(0, 1 - noise_variance / np.maximum(self.variances.ravel(), np.finfo(np.float32).tiny)).astype(
            np.float32
        )

    def encode(self, vector: Vector, out: Vector) -> None:
        """Write the code of an update, (size,), into ``out``."""
        matrix, core = self._matrix(vector), out.reshape(self.variances.shape)
        if self._left_is_shorter:
            np.matmul(self.left.T @ matrix, self.right, out=core)
        else:
            np.matmul(self.left.T, matrix @ self.right, out=core)

    def encode_rows(self, rows: Matrix, out: Matrix) -> None:
        """Write the codes of many updates, a row each."""
        for row, code in zip(rows, out, strict=True):
            self.encode(row, code)

    def decode(self, code: Vector, out: Vector) -> None:
        """Write what a code stands for to the tensor's place in ``out``, an update."""
        core, matrix = code.reshape(self.variances.shape), self._matrix(out)
        if self._left_is_shorter:
            np.matmul(self.left, core @ self.right.T, out=matrix)
        else:
            np.matmul(self.left @ core, self.right.T, out=matrix)

    @property
    def _left_is_shorter(self) -> bool:
        p, q = self.variances.shape
        return bool(p <= q)

    def _matrix(self, vector: Vector) -> Matrix:
        return vector[self.start : self.start + self.length].reshape(len(self.left), len(self.right))


Block: TypeAlias = Dense | TwoSided


def complement_reflector(directions: Matrix) -> Matrix:
    """Rows Y, (r, length), such that ``H = I - Y.T @ Y`` is orthogonal and swaps the directions with the first r axes.

    H maps the other axes onto an orthonormal basis of the complement, so directions drawn there are orthogonal to the
    learned ones without a decomposition per round. Source: block reflectors, Schreiber & Parlett 1988. With minus the
    polar factor of the first r columns, I + (singular values) is all that is inverted, so it is well conditioned.
    """
    count = len(directions)
    wide = directions.astype(np.float64)
    left, values, right = np.linalg.svd(wide[:, :count])
    wide[:, :count] += left @ right
    reflector: NDArray[np.float64] = (left / np.sqrt(1 + values)).T @ wide
    return reflector.astype(np.float32)


def _spans(entries: Sequence[Entry]) -> tuple[tuple[int, int], ...]:
    spans: list[tuple[int, int]] = []
    for entry in entries:
        if spans and spans[-1][1] == entry.offset:
            spans[-1] = (spans[-1][0], entry.offset + entry.size)
        else:
            spans.append((entry.offset, entry.offset + entry.size))
    return tuple(spans)
