"""A whole update in one body that the director alone can open: for sites that post it, past whoever ends their TLS.

The form is that of ``secure_sum/sealed_stream``: an HPKE box (X25519) with the stream's own key, then parts of
AES-256-GCM. It is bound to where it goes: the run, round, attempt and plan, the model that the update is of, the
organization and its envoy. A body that was sealed for another of them does not open, so none can be sent elsewhere.

It hides an update from those on the way and not from the director, which opens it. Where the director may not see
single updates either, sums are taken (``secure_sum``), and no single body can be one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .errors import MalformedMessageError
from .messages import EnvoyName, TaskRef
from .secure_sum import sealing
from .secure_sum.sealed_stream import KEY_BYTES, PART_BYTES, TAG_BYTES, Binding, Sealer, open_stream
from .secure_sum.terms import Suite
from .tensors import Digest, canonical_json

SCHEMA = "fedveil.sealed-update/1"
SUITE = Suite.X25519
RECIPIENT = EnvoyName("director")
_HEADER_BYTES = sealing.BOX_OVERHEAD_BYTES[SUITE] + KEY_BYTES


@dataclass(frozen=True, slots=True)
class Destination:
    """Where one update goes; both ends know it."""

    federation: str
    ref: TaskRef
    model: Digest  # that the update is of
    organization: str  # its id
    envoy: EnvoyName

    def binding(self, length: int) -> Binding:
        """Of an update of so many bytes.

        Raises:
            ValueError: none.
        """
        ref = self.ref
        place = [ref.run, ref.round, ref.attempt, ref.plan, self.model]
        said = canonical_json([SCHEMA, self.federation, *place, self.organization, self.envoy])
        return Binding(hashlib.sha256(said).digest(), self.envoy, RECIPIENT, length, SUITE)


def sealed(to: Destination, update: bytes, key: bytes, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """An update, sealed to the director.

    >>> from fedveil.utils.messages import RunId
    >>> ref = TaskRef(RunId("study-1"), 1, 1, Digest("0" * 64))
    >>> to = Destination("lungs", ref, Digest("1" * 64), "north", EnvoyName("north-1"))
    >>> private, public = sealing.key_pair(SUITE, bytes(32))
    >>> body = sealed(to, b"an update", public)
    >>> b"".join(opened(to, [body], len(body), private))
    b'an update'

    Args:
        to: where it goes.
        update: its bytes.
        key: the director's, 32 bytes.
        random: as ``os.urandom``.

    Raises:
        MalformedMessageError: nothing can be sealed to this key.
    """
    return b"".join(Sealer(to.binding(len(update)), key, random).stream_of([update]))


def opened(to: Destination, pieces: Iterable[bytes], length: int, key: sealing.PrivateKey) -> Iterator[bytes]:
    """An update that was sealed, part by part; no more than one part is held.

    Args:
        to: where it was to go.
        pieces: the sealed body, in pieces of any size.
        length: bytes of the sealed body.
        key: the director's private one.

    Raises:
        MalformedMessageError: it was sealed to another key, for another destination, or is damaged. What came before
            the error is to be thrown away.
    """
    return open_stream(to.binding(plain_length(length)), key, pieces)


def sealed_length(length: int) -> int:
    """Bytes that an update of ``length`` bytes has once it is sealed."""
    return _HEADER_BYTES + length + -(-length // PART_BYTES) * TAG_BYTES


def plain_length(length: int) -> int:
    """Bytes of the update in a sealed body of ``length`` bytes.

    Raises:
        MalformedMessageError: no update has such a body.
    """
    body = length - _HEADER_BYTES
    found = body - -(-body // (PART_BYTES + TAG_BYTES)) * TAG_BYTES
    if found < 1 or sealed_length(found) != length:
        raise MalformedMessageError(f"a body of {length} bytes is no sealed update")
    return found
