"""Skellam noise: the difference of two Poisson variables, as integers of the ring, from a key that nobody else has.

Poisson variables are drawn by transformed rejection (Hörmann 1993, "The transformed rejection method for generating
Poisson random variables", algorithm PTRS) from the keystream of AES-256-CTR. The acceptance compares logarithms of
probabilities in Loader's saddle-point form (2000, "Fast and accurate computation of binomial probabilities"), which
keeps them right to about 1e-9 for the largest variance taken here; the usual form would lose them to cancellation.

This is floating point: not the exact law, but one whose probabilities differ from it by so little. Uniforms have 52
bits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .masks import KEY_BYTES, Keystream

LEAST_VARIANCE = 20.0
"""Below, the rejection is not proven; a step that fine noise hides is too coarse anyway."""
MOST_VARIANCE = 2.0**44
BLOCK = 1 << 13
"""Numbers that are drawn together, each block from a stretch of keystream of its own."""
_STRETCH = 1 << 40  # bytes of keystream that a block may use; it uses about 2^18
_SMALL = 16  # from here on Stirling's series is right to 1e-13

Floats = NDArray[np.float64]


class SkellamNoise:
    """Integer noise of mean 0 and a variance, the same for the same key whatever the cut.

    Guarantees (each has a test):
        - any stretch of the noise is the one that the whole has there, so that a vector that is sent twice is the same;
        - two keys give independent noise, to whoever does not know them.

    The key is a secret of its site: whoever knows it can take the noise away.
    """

    def __init__(self, variance: float, key: bytes) -> None:
        """Raises ValueError for a variance outside [20, 2^44], or a key that has not 32 bytes."""
        if not LEAST_VARIANCE <= variance <= MOST_VARIANCE:
            raise ValueError(
                f"variance {variance:g}, expected {LEAST_VARIANCE:g} to {MOST_VARIANCE:g}; choose other steps"
            )
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes, expected {KEY_BYTES}")
        self._poisson, self._key = _Poisson(variance / 2), key

    def add(self, out: NDArray[np.uint32], start: int) -> None:
        """Add the noise of the words ``[start, start + out.size)`` in place, modulo 2^32."""
        if out.dtype != np.uint32 or out.ndim != 1 or start < 0:
            raise ValueError(f"{out.dtype} {out.shape} from {start} on: expected a row of uint32")
        stop = start + out.size
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            first = block * BLOCK
            begin, end = max(start, first), min(stop, first + BLOCK)
            drawn = self.block(block)[begin - first : end - first]
            out[begin - start : end - start] += drawn.astype(np.uint32)

    def block(self, number: int) -> NDArray[np.int64]:
        """(BLOCK,): the integers of one block."""
        uniforms = _Uniforms(self._key, number * _STRETCH)
        drawn = self._poisson.draw(uniforms)
        drawn -= self._poisson.draw(uniforms)
        return drawn.astype(np.int64)


class _Uniforms:
    """Numbers in (0, 1), odd multiples of 2^-53, from one stretch of keystream."""

    def __init__(self, key: bytes, start_byte: int) -> None:
        self._keystream, self._bytes = Keystream(key, start_byte), bytearray(8 * BLOCK + 16)

    def draw(self, size: int) -> Floats:
        self._keystream.into(self._bytes, 8 * size)
        integers = np.frombuffer(self._bytes, "<u8", size) >> np.uint64(12)
        return (integers.astype(np.float64) + 0.5) * 2.0**-52


class _Poisson:
    """PTRS for one mean of at least 10."""

    def __init__(self, mean: float) -> None:
        self._mean = mean
        self._b = 0.931 + 2.53 * math.sqrt(mean)
        self._a = -0.059 + 0.02483 * self._b
        self._inverse_alpha = 1.1239 + 1.1328 / (self._b - 3.4)
        self._quick = 0.9277 - 3.6224 / (self._b - 2)

    def draw(self, uniforms: _Uniforms) -> Floats:
        """(BLOCK,): whole numbers."""
        drawn, missing = self._propose(uniforms, BLOCK)
        while missing.size:
            drawn[missing], still = self._propose(uniforms, missing.size)
            missing = missing[still]
        return drawn

    def _propose(self, uniforms: _Uniforms, size: int) -> tuple[Floats, NDArray[np.intp]]:
        """Candidates, and which of them are none."""
        u, v = uniforms.draw(size), uniforms.draw(size)
        u -= 0.5
        us = 0.5 - np.abs(u)
        k = np.floor((2 * self._a / us + self._b) * u + (self._mean + 0.43))
        doubtful = np.flatnonzero((us < 0.07) | (v > self._quick))
        u_far, v_far, k_far = us[doubtful], v[doubtful], k[doubtful]
        possible = (k_far >= 0) & ((u_far >= 0.013) | (v_far <= u_far))
        height = np.log(v_far * self._inverse_alpha / (self._a / (u_far * u_far) + self._b))
        accepted = possible & (height <= self._log_probability(np.maximum(k_far, 0)))
        return k, doubtful[~accepted]

    def _log_probability(self, k: Floats) -> Floats:
        """Of each whole number k >= 0, by Loader's form: -error(k) - deviance(k, mean) - log(2 pi k) / 2."""
        mean = self._mean
        off = (k - mean) / mean
        with np.errstate(divide="ignore", invalid="ignore"):
            deviance = mean * ((1 + off) * np.log1p(off) - off)
            value = -_stirling_error(k) - deviance - 0.5 * np.log(2 * np.pi * k)
        return np.where(k > 0, value, -mean)


def _stirling_error(k: Floats) -> Floats:
    """Logarithm of k! less Stirling's approximation of it."""
    small = np.minimum(k, _SMALL - 1).astype(np.intp)
    inverse = 1 / np.maximum(k, 1)
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    return np.where(k < _SMALL, _ERRORS[small], series)


_ERRORS = np.array(
    [0.0] + [math.lgamma(k + 1) - (k + 0.5) * math.log(k) + k - 0.5 * math.log(2 * math.pi) for k in range(1, _SMALL)]
)
