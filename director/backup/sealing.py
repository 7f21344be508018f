"""The outermost layer of a backup: encrypted with a passphrase, or in the clear with a checksum. Knows no content.

Encrypted: one line (``fedveil-backup/1`` and the parameters of scrypt as JSON), then pieces of 1 MiB, each sealed by
ChaCha20-Poly1305 (RFC 8439). The key is scrypt's (RFC 7914) of the passphrase and a salt of this file alone, so a nonce
may simply count; its last byte marks the last piece, which makes a file that was cut a damaged one (the STREAM
construction, Hoang, Reyhanitabar, Rogaway and Vizar 2015). The line is authenticated with each piece.

In the clear: the content as it is, then one line with its SHA-256. It finds damage, and no forger.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ...utils.errors import PassphraseError, StorageError
from ...utils.tensors import canonical_json

COST = 17  # of scrypt, as a power of two: 128 MiB and some tenths of a second for each guess
_COSTS = range(10, 19)  # what is believed of a file: at most 256 MiB
_MAGIC = b"fedveil-backup/1 "
_TRAILER = b"fedveil-backup-in-the-clear/1 sha256 "
_TRAILER_BYTES = len(_TRAILER) + 64 + 1
_PIECE_BYTES, _TAG_BYTES = 1 << 20, 16
_MAX_LINE_BYTES = 512
_CUT = "the backup was cut off or damaged, or it is none; nothing was restored from it. Take another copy"


class Sink(Protocol):
    """Takes the content of a backup."""

    def write(self, content: bytes, /) -> int:
        """Take the next bytes, all of them."""
        ...

    def close(self) -> None:
        """No more follows; the file below stays open."""
        ...


class Source(Protocol):
    """Gives the content of a backup, and no byte that was not found right."""

    def read(self, length: int, /) -> bytes:
        """So many bytes; fewer at the end, and none behind it."""
        ...


@dataclass(frozen=True, slots=True)
class _Seal:
    """How the pieces of one file are sealed."""

    line: bytes
    cipher: ChaCha20Poly1305

    @staticmethod
    def nonce(number: int, is_last: bool) -> bytes:
        return number.to_bytes(11, "big") + bytes([is_last])

    @classmethod
    def made(cls, passphrase: bytes, salt: bytes, cost: int) -> _Seal:
        said = {"cipher": "chacha20-poly1305", "kdf": "scrypt", "cost": cost, "salt": salt.hex()}
        key = Scrypt(salt=salt, length=32, n=1 << cost, r=8, p=1).derive(passphrase)
        return cls(_MAGIC + canonical_json(said) + b"\n", ChaCha20Poly1305(key))


class _SealedSink:
    def __init__(self, file: BinaryIO, passphrase: bytes, cost: int) -> None:
        self._file, self._seal = file, _Seal.made(passphrase, os.urandom(32), cost)
        self._rest, self._number = bytearray(), 0
        file.write(self._seal.line)

    def write(self, content: bytes, /) -> int:
        self._rest += content
        while len(self._rest) > _PIECE_BYTES:  # one is held back: it may be the last
            self._put(bytes(self._rest[:_PIECE_BYTES]), is_last=False)
            del self._rest[:_PIECE_BYTES]
        return len(content)

    def close(self) -> None:
        self._put(bytes(self._rest), is_last=True)

    def _put(self, piece: bytes, *, is_last: bool) -> None:
        nonce = self._seal.nonce(self._number, is_last)
        self._file.write(self._seal.cipher.encrypt(nonce, piece, self._seal.line))
        self._number += 1


class _SealedSource:
    def __init__(self, file: BinaryIO, passphrase: bytes) -> None:
        self._file, self._number, self._piece = file, 0, memoryview(b"")
        self._seal = _read_seal(file.readline(_MAX_LINE_BYTES), passphrase)
        self._next = file.read(_PIECE_BYTES + _TAG_BYTES)
        if not self._next:  # even of nothing there is one piece
            raise StorageError(_CUT)

    def read(self, length: int, /) -> bytes:
        found = bytearray()
        while len(found) < length and (self._piece or self._next):
            if not self._piece:
                self._piece = memoryview(self._opened())
                continue
            taken = self._piece[: length - len(found)]
            found += taken
            self._piece = self._piece[len(taken) :]
        return bytes(found)

    def _opened(self) -> bytes:
        sealed, self._next = self._next, self._file.read(_PIECE_BYTES + _TAG_BYTES)
        try:
            nonce = self._seal.nonce(self._number, not self._next)
            piece = self._seal.cipher.decrypt(nonce, sealed, self._seal.line)
        except InvalidTag as error:
            if self._number == 0:
                raise PassphraseError(
                    "this passphrase does not open the backup, or its beginning is damaged"
                ) from error
            raise StorageError(_CUT) from error
        self._number += 1
        return piece


class _PlainSink:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha = file, hashlib.sha256()

    def write(self, content: bytes, /) -> int:
        self._sha.update(content)
        return self._file.write(content)

    def close(self) -> None:
        self._file.write(_TRAILER + self._sha.hexdigest().encode() + b"\n")


class _PlainSource:
    def __init__(self, file: BinaryIO) -> None:
        length, sha = file.seek(0, os.SEEK_END) - _TRAILER_BYTES, hashlib.sha256()
        if length < 0:
            raise StorageError(_CUT)
        self._file, self._left = file, length
        file.seek(0)
        while piece := self.read(_PIECE_BYTES):
            sha.update(piece)
        if file.read() != _TRAILER + sha.hexdigest().encode() + b"\n":
            raise StorageError(_CUT)
        file.seek(0)
        self._left = length

    def read(self, length: int, /) -> bytes:
        piece = self._file.read(min(length, self._left))
        self._left -= len(piece)
        return piece


def sink_to(file: BinaryIO, passphrase: bytes | None, cost: int = COST) -> Sink:
    """Write a backup's content to a file: sealed, or in the clear without a passphrase.

    Args:
        file: empty, and nothing else writes to it.
        passphrase: None asks for no encryption.
        cost: of one guess of the passphrase, as a power of two.
    """
    return _PlainSink(file) if passphrase is None else _SealedSink(file, passphrase, cost)


def is_sealed(file: BinaryIO) -> bool:
    """Is a passphrase needed to read this? Stands at its beginning afterwards."""
    file.seek(0)
    start = file.read(len(_MAGIC))
    file.seek(0)
    return start == _MAGIC


def source_of(file: BinaryIO, passphrase: bytes | None) -> Source:
    """Read a backup's content.

    Raises:
        PassphraseError: none was given and one is needed, or it is not the one.
        StorageError: damaged, cut, or no backup; ``read`` may find it later too.
    """
    if not is_sealed(file):
        return _PlainSource(file)
    if passphrase is None:
        raise PassphraseError("the backup is encrypted: its passphrase is needed")
    return _SealedSource(file, passphrase)


def _read_seal(line: bytes, passphrase: bytes) -> _Seal:
    try:
        said = json.loads(line.removeprefix(_MAGIC))
        cost, salt = said["cost"], bytes.fromhex(said["salt"])
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(_CUT) from error
    if not isinstance(cost, int) or cost not in _COSTS or len(salt) != 32:
        raise StorageError(_CUT)
    seal = _Seal.made(passphrase, salt, cost)
    if seal.line != line:
        raise StorageError(_CUT)
    return seal
