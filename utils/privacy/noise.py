"""Where noise comes from: numpy's generators in experiments, ``SystemNoise`` in production.

Neither torch's generator (its seed has 32 bits that count, and a plan may set it) nor numpy's (its state follows from
what it gave) may make noise that is to protect anybody.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

_DRAWS = 4
"""Gaussians that make one. One Gaussian in floating point has holes, by which a release can be told from another that
differs in the data (Mironov 2012); the sum of four over two has the same law and no holes that can be computed (Holohan
and Braghin 2021, arXiv:2107.10138, section 4)."""
_AT_ONCE = 1 << 13  # numbers that are made in one go: 256 KiB of keystream


class NoiseSource(Protocol):
    """Independent draws; ``numpy.random.Generator`` is one."""

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """(size,): Gaussian, mean 0, variance 1."""
        ...

    def random(self, size: int) -> NDArray[np.float64]:
        """(size,): uniform in [0, 1), multiples of 2^-53."""
        ...


class SystemNoise:
    """Draws that nobody can predict or repeat: AES-256-CTR keyed by the operating system, Box-Muller in float64.

    A process that forks gets a key of its own in the child. Not for several threads at once. Measured on one thread
    of the project's machine: 11 million Gaussians a second, 118 million uniforms (of CPU time).

    What is left of floating point: a release is rounded to float32 after the noise was added in float64, and a
    Gaussian ends at 8.6 standard deviations a draw.
    """

    def __init__(self) -> None:
        self._nothing = bytes(8 * _DRAWS * _AT_ONCE)
        self._stream = bytearray(len(self._nothing) + 15)
        self._rekey()

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """(size,): the sum of four Gaussians over two."""
        drawn = np.empty(size)
        for start in range(0, size, _AT_ONCE):
            out = drawn[start : start + _AT_ONCE]
            half = self._uniform(_DRAWS * out.size).reshape(_DRAWS, -1)
            radius, angle = half[:2], half[2:]
            np.subtract(1.0, radius, out=radius)  # in (0, 1], so that the logarithm is finite
            np.sqrt(np.multiply(np.log(radius, out=radius), -2.0, out=radius), out=radius)
            np.multiply(angle, 2 * np.pi, out=angle)
            wave = np.cos(angle)
            wave += np.sin(angle, out=angle)  # the two Gaussians of one pair are independent
            wave *= radius
            np.multiply(np.add(wave[0], wave[1], out=out), 0.5, out=out)
        return drawn

    def random(self, size: int) -> NDArray[np.float64]:
        """(size,): 53 bits of keystream each."""
        drawn = np.empty(size)
        for start in range(0, size, _DRAWS * _AT_ONCE):
            out = drawn[start : start + _DRAWS * _AT_ONCE]
            out[:] = self._uniform(out.size)
        return drawn

    def _uniform(self, size: int) -> NDArray[np.float64]:
        if self._owner != os.getpid():
            self._rekey()
        view = memoryview(self._stream)
        self._cipher.update_into(memoryview(self._nothing)[: 8 * size], view)
        integers = np.frombuffer(view, "<u8", size)
        return (integers >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _rekey(self) -> None:
        self._owner = os.getpid()
        self._cipher: CipherContext = Cipher(AES256(os.urandom(32)), CTR(bytes(16))).encryptor()
