"""Messages one after the other in one stream of bytes: each with its length before it (4 bytes, big-endian).

As gRPC frames its own, for streams that it does not carry. Pure; ``Unframing`` holds at most one message.

>>> reader = Unframing(16)
>>> wire = framed(b"one") + framed(b"two")
>>> list(reader.feed(wire[:5])), list(reader.feed(wire[5:]))
([], [b'one', b'two'])
>>> reader.end()
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import MalformedMessageError

_LENGTH_BYTES = 4


def framed(message: bytes) -> bytes:
    """A message with its length before it."""
    return len(message).to_bytes(_LENGTH_BYTES, "big") + message


class Unframing:
    """Messages from pieces of a stream, wherever those are cut.

    Args:
        most: bytes of one message.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The messages that are whole with this piece.

        Raises:
            MalformedMessageError: one is announced that is empty or too long.
        """
        self._held += piece
        while len(self._held) >= _LENGTH_BYTES:
            length = int.from_bytes(self._held[:_LENGTH_BYTES], "big")
            if not 0 < length <= self._most:
                raise MalformedMessageError(f"a message of {length} bytes, expected 1 to {self._most}")
            end = _LENGTH_BYTES + length
            if len(self._held) < end:
                return
            message = bytes(memoryview(self._held)[_LENGTH_BYTES:end])
            del self._held[:end]
            yield message

    def end(self) -> None:
        """The stream is over.

        Raises:
            MalformedMessageError: amid a message.
        """
        if self._held:
            raise MalformedMessageError(f"the stream ended amid a message, after {len(self._held)} bytes of it")
