"""Masks that cancel: keystreams of AES-256 in counter mode, added to a vector of integers as they are made.

The keystream of a key is AES-256-CTR over zeros, from the counter block 2; as a mask, its bytes are read like those of
the vector, little endian. Words of 32 bits are added modulo 2^32, words of 64 bits modulo 2^64; which of them a stretch
of the vector holds is told by the type of the array that is given. So any cut of the vector gives the same bytes, as
long as no word is cut.

A key must be used for one vector only: two vectors under one mask differ by their difference. The protocol derives
each key from its transcript.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from numpy.typing import NDArray

KEY_BYTES = 32
WORD_BYTES = 4
_BLOCK_BYTES = 16
_FIRST_COUNTER = 2
PIECE_BYTES = 1 << 17
"""Keystream made at once: with its piece of the vector it stays in the second-level cache."""
_ZEROS = bytes(PIECE_BYTES)


class Keystream:
    """The keystream of one key, from any byte on, in pieces of at most ``PIECE_BYTES``.

    Counter block 2 is where AES-256-GCM with a nonce of zeros begins (NIST SP 800-38D, 7.1), so that from the first
    byte on GCM makes the very bytes, for 64 GiB: OpenSSL has vector instructions for GCM alone, and on processors that
    have them it is a quarter faster. Its tag is never made. From any other byte on it is plain CTR.
    """

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes, start_byte: int = 0) -> None:
        """Raises ValueError for a key that has not 32 bytes, or a start before 0."""
        if len(key) != KEY_BYTES or start_byte < 0:
            raise ValueError(f"a key of {len(key)} bytes from byte {start_byte}, expected {KEY_BYTES} bytes from 0 on")
        block, within = divmod(start_byte, _BLOCK_BYTES)
        counter = (block + _FIRST_COUNTER).to_bytes(_BLOCK_BYTES, "big")
        mode = CTR(counter) if start_byte else GCM(bytes(12))
        self._cipher: CipherContext = Cipher(AES256(key), mode).encryptor()
        if within:
            self._cipher.update(_ZEROS[:within])

    def into(self, out: bytearray | memoryview, length: int) -> None:
        """Write the next ``length`` bytes, at most ``PIECE_BYTES``; ``out`` has 15 more, which OpenSSL leaves alone."""
        if length > PIECE_BYTES:
            raise ValueError(f"{length} bytes of keystream at once, expected {PIECE_BYTES} at most")
        self._cipher.update_into(_ZEROS if length == PIECE_BYTES else _ZEROS[:length], out)


class Masker:
    """Adds the keystreams of some keys to a vector and takes those of others away, piece after piece.

    Guarantees (each has a property test):
        - a masker with ``plus`` and ``minus`` exchanged gives back what was there;
        - pieces of any length give the same integers as the whole vector at once;
        - a masker that starts at a word goes on as one that came from the beginning.

    Memory: 128 KiB, whatever the vector's length. Not for several threads at once.
    """

    def __init__(self, plus: Sequence[bytes], minus: Sequence[bytes] = (), start_word: int = 0) -> None:
        """Keys of 32 bytes each, all different.

        Raises:
            ValueError: another length, one key twice (its masks would cancel, or double), or a start before 0.
        """
        if len({*plus, *minus}) != len(plus) + len(minus):
            raise ValueError("one key twice: each mask has a key of its own")
        start = start_word * WORD_BYTES
        self._plus = [Keystream(key, start) for key in plus]
        self._minus = [Keystream(key, start) for key in minus]
        self._at = start
        self._stream = bytearray(PIECE_BYTES + _BLOCK_BYTES)

    def apply(self, out: NDArray[np.uint32] | NDArray[np.uint64]) -> None:
        """Mask the next ``out.size`` words in place.

        Args:
            out: uint32 or uint64 in one piece of memory; words of 64 bits begin at a multiple of 8 bytes.

        Raises:
            ValueError: another type, or a word of 64 bits that would begin in the middle of one.
        """
        if out.dtype not in (np.uint32, np.uint64) or out.ndim != 1 or not out.flags.c_contiguous:
            raise ValueError(f"cannot mask {out.dtype} of shape {out.shape}: one row of uint32 or uint64 is expected")
        width = out.itemsize
        if self._at % width:
            raise ValueError(f"words of {width} bytes cannot begin at byte {self._at}")
        words, stream = np.frombuffer(self._stream, out.dtype, PIECE_BYTES // width), self._stream
        for start in range(0, out.size, words.size):
            piece = out[start : start + words.size]
            mask = words[: piece.size]
            for keystream in self._plus:
                keystream.into(stream, piece.nbytes)
                np.add(piece, mask, out=piece)
            for keystream in self._minus:
                keystream.into(stream, piece.nbytes)
                np.subtract(piece, mask, out=piece)
        self._at += out.nbytes
