"""A long stream that one party alone can open, in parts that can be sealed, fetched and opened one by one.

For a sum whose aggregator is not the director: each site seals its masked vector to the aggregator's key, and the
director relays bytes of which it sees the length alone.

    header   an HPKE box (``sealing.seal``) with the stream's own key, 32 random bytes
    part i   AES-256-GCM of bytes [i * part_bytes, (i + 1) * part_bytes), nonce i, then its tag of 16 bytes

The binding (transcript, sender, recipient, lengths) is the ``info`` of the box and stands, with the part's number, in
what each tag covers. So a part opens at its own place in its own stream alone: none can be changed, moved, repeated,
left out, taken from another site, sum or attempt, and no stream can be longer or shorter than announced.

A stream has one key and each of its parts one nonce: sealing two plaintexts as one part would give both away.
``Sealer`` therefore keeps every tag and refuses to. What it cannot know is another ``Sealer`` with the same key, so
each draws its own. Does no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import MalformedMessageError
from ..messages import EnvoyName
from . import sealing
from .terms import Suite

DOMAIN = b"fedveil-sum/1 sealed stream\0"
TAG_BYTES = 16
KEY_BYTES = 32
NONCE_BYTES = 12
PART_BYTES = (1 << 20) - TAG_BYTES
"""Of the plaintext of one part, a multiple of 16: sealed, it is 1 MiB."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a stream belongs to; both ends know it, and nothing of it travels.

    Raises:
        ValueError: a transcript that has not 32 bytes, or lengths that cannot be.
    """

    transcript: bytes  # of the sum, 32 bytes
    sender: EnvoyName
    recipient: EnvoyName
    length: int  # bytes of the plaintext, at least 1
    suite: Suite = Suite.MLKEM768_X25519
    part_bytes: int = PART_BYTES

    def __post_init__(self) -> None:
        if len(self.transcript) != 32 or not 0 < self.length < 1 << 48 or not 0 < self.part_bytes <= 1 << 24:
            raise ValueError(f"no stream of {self.length} bytes in parts of {self.part_bytes} can be sealed")

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.length // self.part_bytes)

    @property
    def header_bytes(self) -> int:
        """Length of the header."""
        return sealing.BOX_OVERHEAD_BYTES[self.suite] + KEY_BYTES

    @property
    def sealed_length(self) -> int:
        """Bytes of the whole stream, sealed."""
        return self.header_bytes + self.length + self.parts * TAG_BYTES

    def plain_span(self, number: int) -> tuple[int, int]:
        """Where the plaintext of a part begins and ends.

        Raises:
            ValueError: there is no such part.
        """
        if not 0 <= number < self.parts:
            raise ValueError(f"part {number} of {self.parts}")
        start = number * self.part_bytes
        return start, min(start + self.part_bytes, self.length)

    def sealed_span(self, number: int) -> tuple[int, int]:
        """Where a part begins and ends in the sealed stream.

        Raises:
            ValueError: there is no such part.
        """
        start, end = self.plain_span(number)
        before = self.header_bytes + number * TAG_BYTES
        return before + start, before + end + TAG_BYTES

    def part_at(self, offset: int) -> int:
        """The part that a byte of the sealed stream behind its header belongs to."""
        return (offset - self.header_bytes) // (self.part_bytes + TAG_BYTES)

    def to_bytes(self) -> bytes:
        """What the box and each tag are bound to: every field, with its length."""
        fields = (self.transcript, self.sender.encode(), self.recipient.encode(), self.suite.value.encode())
        named = b"".join(struct.pack(">I", len(one)) + one for one in fields)
        return DOMAIN + named + struct.pack(">QI", self.length, self.part_bytes)


class Sealer:
    """Seals one stream, its parts in any order and as often as needed. Not for several threads at once."""

    __slots__ = ("_aead", "_bound", "_tags", "binding", "header")

    def __init__(self, binding: Binding, public_key: bytes, random: Callable[[int], bytes]) -> None:
        """Draws the stream's key.

        Raises:
            MalformedMessageError: nothing can be sealed to this key.
        """
        key = random(KEY_BYTES)
        self.binding, self._bound = binding, binding.to_bytes()
        self.header = sealing.seal(binding.suite, public_key, key, self._bound)
        self._aead = AESGCM(key)
        self._tags: dict[int, bytes] = {}

    def seal(self, number: int, plaintext: bytes | memoryview) -> bytes:
        """Part ``number``, sealed; the same bytes each time.

        Raises:
            ValueError: no such part, another length than it has, or another plaintext than this part had before.
        """
        start, end = self.binding.plain_span(number)
        if len(plaintext) != end - start:
            raise ValueError(f"part {number} has {len(plaintext)} bytes, expected {end - start}")
        sealed = self._aead.encrypt(_nonce(number), plaintext, self._bound + _nonce(number))
        if self._tags.setdefault(number, sealed[-TAG_BYTES:]) != sealed[-TAG_BYTES:]:
            raise ValueError(f"part {number} was sealed before, with other bytes in it")
        return sealed

    def stream(self, read: Callable[[int, int], bytes | memoryview], offset: int = 0) -> Iterator[bytes]:
        """The sealed stream from any byte on, part by part.

        Args:
            read: gives the plaintext from a byte to before another; the same bytes each time.
            offset: of the sealed stream, as far as it arrived before.

        Raises:
            ValueError: an offset behind its end.
        """
        binding = self.binding
        if not 0 <= offset <= binding.sealed_length:
            raise ValueError(f"byte {offset} of a sealed stream of {binding.sealed_length}")
        if offset < binding.header_bytes:
            yield self.header[offset:]
        for number in range(max(0, binding.part_at(max(offset, binding.header_bytes))), binding.parts):
            begin, _ = binding.sealed_span(number)
            yield self.seal(number, read(*binding.plain_span(number)))[max(0, offset - begin) :]

    def stream_of(self, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
        """The whole sealed stream of a plaintext that comes in pieces of any size; no more than a part is held.

        Raises:
            ValueError: the pieces are not as long together as the binding says.
        """
        yield self.header
        held, number = bytearray(), 0
        for piece in pieces:
            held += piece
            while number < self.binding.parts and len(held) >= (size := self._size(number)):
                yield self.seal(number, bytes(held[:size]))
                del held[:size]
                number += 1
        if number != self.binding.parts or held:
            raise ValueError(f"the plaintext has not the {self.binding.length} bytes that it is bound to")

    def _size(self, number: int) -> int:
        start, end = self.binding.plain_span(number)
        return end - start


class Opener:
    """Opens one stream, its parts in any order."""

    __slots__ = ("_aead", "_binding", "_bound")

    def __init__(self, binding: Binding, private_key: sealing.PrivateKey, header: bytes) -> None:
        """Opens the header.

        Raises:
            MalformedMessageError: it is not the header of this stream, or of another key's.
        """
        self._binding, self._bound = binding, binding.to_bytes()
        key = sealing.open_box(binding.suite, private_key, header, self._bound)
        if len(key) != KEY_BYTES:
            raise MalformedMessageError(f"{binding.sender}: a stream's key of {len(key)} bytes, expected {KEY_BYTES}")
        self._aead = AESGCM(key)

    def open(self, number: int, sealed: bytes | memoryview) -> bytes:
        """The plaintext of part ``number``.

        Raises:
            MalformedMessageError: it is not that part of this stream; says whose it was to be.
            ValueError: there is no such part.
        """
        begin, end = self._binding.sealed_span(number)
        if len(sealed) != end - begin:
            raise MalformedMessageError(
                f"{self._binding.sender}: part {number} has {len(sealed)} bytes, expected {end - begin}"
            )
        try:
            return self._aead.decrypt(_nonce(number), sealed, self._bound + _nonce(number))
        except InvalidTag:
            raise MalformedMessageError(
                f"{self._binding.sender}: part {number} of {self._binding.parts} does not open: damaged, or another's"
            ) from None


def open_stream(binding: Binding, private_key: sealing.PrivateKey, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The plaintext of a whole stream, part by part, from pieces of any size; no more than one part is held.

    Raises:
        MalformedMessageError: it is not this stream, or is longer or shorter. What came before the error is to be
            thrown away.
    """
    held = bytearray()
    opener: Opener | None = None
    number = 0
    for piece in pieces:
        held += piece
        if opener is None and len(held) >= binding.header_bytes:
            opener = Opener(binding, private_key, bytes(held[: binding.header_bytes]))
            del held[: binding.header_bytes]
        while opener is not None and number < binding.parts:
            begin, end = binding.sealed_span(number)
            if len(held) < end - begin:
                break
            yield opener.open(number, bytes(held[: end - begin]))
            del held[: end - begin]
            number += 1
        if number == binding.parts and held:
            break
    if number != binding.parts or held:
        raise MalformedMessageError(
            f"{binding.sender}: a sealed stream with {'more' if held and number == binding.parts else 'fewer'} bytes"
            f" than the {binding.sealed_length} that were announced"
        )


def _nonce(number: int) -> bytes:
    return number.to_bytes(NONCE_BYTES, "big")
