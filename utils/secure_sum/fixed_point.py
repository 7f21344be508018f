"""Real numbers as elements of Z_2^32, such that the sum over all sites never overflows, whatever their number.

A site's number x in a tensor of bound c, with weight w of at most W = ``max_total`` over all sites, becomes

    y = x * (w * 2^30) / (W * c)        float64; x is cut to [-c, c] before
    q = rint(y + r / 2^32)              r: a signed word of 32 bits of the rounding key's keystream, ties to even

which is stochastic rounding (Gupta et al. 2015, arXiv:1502.02551): the mean of q is y, to 2^-22 of a step. Since all w
together are at most W, the sum of all y stays within 2^30, and no bit is kept free for the number of sites. The sum
over n sites is off by less than n steps of c / 2^30.

The rounding key is public, and the same for all sites of a round: what is summed is then one function of each site's
number, so that no draw singles a site out (``spec.rounding_key``). It is what makes a resumed or simulated round give
the same integers.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import EmptyRoundError, MalformedMessageError, NonFiniteUpdateError
from ..tensors import Vector
from .masks import Keystream

RING_BITS = 32
LEVELS = 1 << 30
"""What a number at its bound becomes if the site has all the weight."""
_BLOCK = 1 << 15
"""Numbers at work at once: 256 KiB of float64, which stay in the second-level cache."""
_DOT = 1 << 13  # no BLAS splits a dot product of so few numbers over threads
_TINY = 1e-30
_TO_INTEGER = 1.5 * 2.0**84
"""Added to a number below 2^83 in float64, it leaves rint(number / 2^32) in the low bits of the mantissa."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How the numbers of some tensors become ring elements and their sum becomes a mean.

    Guarantees (each has a property test):
        - any cut of a vector gives the integers of the whole;
        - the sum over n sites is off by less than n steps, a step being ``bound / LEVELS`` (in units of
          ``weight / max_total`` times the number);
        - what is beyond the bound is cut and counted; NaN and infinity are refused.

    Raises:
        ValueError: no tensor, a size below 0, other than one bound for each tensor or one for all, a bound that is not
            finite and above 0, ``max_total`` below 1.
    """

    sizes: tuple[int, ...]  # numbers in each tensor
    bounds: tuple[float, ...]  # largest magnitude kept, of each tensor, or one for all; read as float32
    max_total: int  # what the weights of all sites together are at most: contributors * max_weight
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # where each tensor ends
    _runs: tuple[tuple[int, float], ...] = field(init=False, repr=False, compare=False)  # where a bound ends; the bound

    def __post_init__(self) -> None:
        if min(self.sizes, default=0) < 0 or len(self.bounds) not in {1, len(self.sizes)}:
            raise ValueError(f"{len(self.sizes)} tensors and {len(self.bounds)} bounds: one for each, or one for all")
        if self.max_total < 1:
            raise ValueError(f"max_total is {self.max_total}, expected 1 or more")
        ends: list[int] = []
        for size in self.sizes:
            ends.append(size + (ends[-1] if ends else 0))
        bounds = [float(np.float32(bound)) for bound in self.bounds]
        if not all(0 < bound < np.inf for bound in bounds):
            raise ValueError("a bound is a finite number above 0, in float32 too")
        runs: list[tuple[int, float]] = []
        for end, bound in zip(ends, bounds if len(bounds) > 1 else bounds * len(ends), strict=True):
            if runs and runs[-1][1] == bound:
                runs.pop()
            runs.append((end, bound))
        object.__setattr__(self, "_ends", tuple(ends))
        object.__setattr__(self, "_runs", tuple(runs))

    @property
    def size(self) -> int:
        """Numbers in all tensors together."""
        return self._ends[-1] if self._ends else 0

    def encode(
        self,
        vector: Vector,
        start: int,
        weight: int,
        rounding_key: bytes | None,
        out: NDArray[np.uint32],
        clipped: NDArray[np.int64],
    ) -> None:
        """One site's numbers ``[start, start + vector.size)`` as ring elements.

        Args:
            vector: float32, that stretch alone.
            start: where it lies in the whole.
            weight: of the site, 0 to ``max_total``.
            rounding_key: 32 bytes, the same for all stretches of a vector. None: to the nearest, so that a vector's
                norm grows by at most half a step a number, as noise that is added to it needs it.
            out: uint32, as long as ``vector``; what it held is lost.
            clipped: int64, one for each tensor; the numbers cut in it are added.

        Raises:
            NonFiniteUpdateError: NaN or infinity; ``out`` and ``clipped`` are then of no use.
            ValueError: arrays or a weight that do not fit.
        """
        if vector.dtype != np.float32 or out.dtype != np.uint32 or vector.shape != out.shape or vector.ndim != 1:
            raise ValueError(f"{vector.dtype} {vector.shape} into {out.dtype} {out.shape}: expected rows of one length")
        if clipped.shape != (len(self.sizes),) or clipped.dtype != np.int64:
            raise ValueError(f"clipped counts of {len(self.sizes)} tensors are int64 of that length")
        if not 0 <= start <= start + vector.size <= self.size or not 0 <= weight <= self.max_total:
            raise ValueError(f"[{start}, {start + vector.size}) of {self.size}, weight {weight} of {self.max_total}")
        keystream = None if rounding_key is None else Keystream(rounding_key, 4 * start)
        stream = bytearray(4 * _BLOCK + 16)
        noise, scaled = np.frombuffer(stream, "<i4", _BLOCK), np.empty(_BLOCK)
        integers = scaled.view(np.uint32)[0 if np.little_endian else 1 :: 2]
        for begin, end, bound in self._blocks(start, start + vector.size):
            length, piece = end - begin, vector[begin - start : end - start]
            if not _is_within(piece, bound):
                self._count(piece, begin, bound, clipped)
                piece = np.clip(piece, -bound, bound)
            values = scaled[:length]
            scale = weight * LEVELS / (self.max_total * bound) * 2.0**32
            np.multiply(piece, scale, out=values, dtype=np.float64)
            if keystream is not None:
                keystream.into(stream, 4 * length)
                np.add(values, noise[:length], out=values)
            np.add(values, _TO_INTEGER, out=values)
            out[begin - start : end - start] = integers[:length]

    def decode(self, total: NDArray[np.uint32], total_weight: int, out: Vector) -> None:
        """The weighted mean, from the sum of all sites' ring elements.

        Args:
            total: uint32, shape (size,).
            total_weight: of the sites whose elements are in ``total``.
            out: float32, shape (size,); what it held is lost.

        Raises:
            EmptyRoundError: the weights are 0 together.
            MalformedMessageError: a weight that sites which keep to the terms cannot have together.
            ValueError: arrays that do not fit.
        """
        if total.shape != (self.size,):
            raise ValueError(f"a sum of shape {total.shape}, expected ({self.size},)")
        self.decode_part(total, 0, total_weight, out)

    def decode_part(self, total: NDArray[np.uint32], start: int, total_weight: int, out: Vector) -> None:
        """``decode`` for the numbers ``[start, start + total.size)`` alone; raises the same.

        ``out`` may be the memory of ``total``: each word becomes the number that stands there.
        """
        if total.shape != out.shape or total.ndim != 1 or total.dtype != np.uint32 or out.dtype != np.float32:
            raise ValueError(f"{total.dtype} {total.shape} into {out.dtype} {out.shape}: expected rows of one length")
        if not 0 <= start <= start + total.size <= self.size:
            raise ValueError(f"[{start}, {start + total.size}) of {self.size}")
        self._require_weight(total_weight)
        signed = total.view(np.int32)
        for begin, end, bound in self._blocks(start, start + total.size):
            factor = bound / LEVELS * (self.max_total / total_weight)
            here = slice(begin - start, end - start)
            np.multiply(signed[here], factor, out=out[here], dtype=np.float64, casting="same_kind")

    def peaks(self, total: NDArray[np.uint32], total_weight: int) -> tuple[float, ...]:
        """The largest magnitude of the weighted mean in each tensor, as a share of its bound; 0 for an empty tensor.

        Raises:
            EmptyRoundError, MalformedMessageError, ValueError: as ``decode``.
        """
        if total.shape != (self.size,) or total.dtype != np.uint32:
            raise ValueError(f"{total.dtype} {total.shape}, expected uint32 ({self.size},)")
        self._require_weight(total_weight)
        signed, begin, shares = total.view(np.int32), 0, []
        for end in self._ends:
            low, high = (int(signed[begin:end].min()), int(signed[begin:end].max())) if end > begin else (0, 0)
            shares.append(max(-low, high) / LEVELS * (self.max_total / total_weight))
            begin = end
        return tuple(shares)

    def _require_weight(self, total_weight: int) -> None:
        if not total_weight:
            raise EmptyRoundError("nothing to average: the sites of the sum have no examples together")
        if not 0 < total_weight <= self.max_total:
            raise MalformedMessageError(
                f"the sum says {total_weight} examples, expected at most {self.max_total}: a site sent what is no part "
                "of it"
            )

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, float]]:
        """Stretches of at most a block in which one bound holds: begin, end, bound."""
        run = bisect.bisect_right(self._runs, start, key=lambda pair: pair[0])
        while start < stop:
            run_end, bound = self._runs[run]
            end = min(start + _BLOCK, run_end, stop)
            yield start, end, bound
            start = end
            run += start == run_end

    def _count(self, piece: Vector, begin: int, bound: float, clipped: NDArray[np.int64]) -> None:
        if not np.isfinite(piece).all():
            raise NonFiniteUpdateError("the update holds NaN or infinity; nothing of it is summed")
        beyond = np.flatnonzero(np.abs(piece) > bound) + begin
        tensors = np.searchsorted(self._ends, beyond, side="right")
        clipped += np.bincount(tensors, minlength=clipped.size)


def _is_within(piece: Vector, bound: float) -> bool:
    """Whether no number can be beyond the bound; says False for some pieces that are within, never the other way.

    A piece whose squares together are less than the bound's has no such number; that pass is the cheapest. float32
    dot products of so few numbers are off by less than a thousandth, but for bounds whose square is near nothing.
    """
    squared = 0.998 * bound * bound
    with np.errstate(over="ignore", invalid="ignore"):
        if squared > _TINY and all(np.dot(part, part) < squared for part in _parts(piece)):
            return True
    return bool(piece.max(initial=0) <= bound and piece.min(initial=0) >= -bound)


def _parts(piece: Vector) -> Iterator[Vector]:
    for start in range(0, piece.size, _DOT):
        yield piece[start : start + _DOT]
