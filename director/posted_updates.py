"""An update that came in one body: opened, read, checked, and handed in as if its envoy had brought it.

The body is a file. It is the numbers themselves (float32, little-endian, in the order of the layout), or a safetensors
file with the layout's tensors by name; either may be sealed to the director (``utils/sealed_update``). It is read where
it lies, so memory does not grow with the model. From here on it goes the way of every update, through the coordinator's
turns and spools: the same rounds, receipts and crashes.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils import messages as m
from ..utils.aggregation import is_finite
from ..utils.errors import (
    DuplicateUpdateError,
    FailedChecksError,
    LayoutMismatchError,
    MalformedMessageError,
    StorageError,
    TooManyCallsError,
)
from ..utils.sealed_update import Destination, opened
from ..utils.secure_sum.sealing import PrivateKey
from ..utils.tensors import FLOAT_BYTES, Digest, Layout
from .coordinator import Coordinator
from .named_tensors import pieces_by_name

NAN, BOUNDS, PRIVACY = "nan_check", "bounds_check", "privacy_check"
_BLOCK = m.PART_BYTES
_ROUNDING = 1e-4  # of a norm, in float32


@dataclass(frozen=True, slots=True)
class PostedUpdate:
    """One update, read from its file and in the order of the layout; which is mapped and not held in memory."""

    layout: Layout  # of what leaves a site
    pieces: tuple[memoryview, ...]  # bytes of each of the layout's tensors, in its order

    def blocks(self, start: int = 0) -> Iterator[memoryview]:
        """Its bytes from ``start`` on, in parts as they travel."""
        at = 0
        for piece in self.pieces:
            for begin in range(max(0, start - at), len(piece), _BLOCK):
                yield piece[begin : begin + _BLOCK]
            at += len(piece)

    @property
    def digest(self) -> Digest:
        """SHA-256 of all of it."""
        sha = hashlib.sha256()
        for block in self.blocks():
            sha.update(block)
        return Digest(sha.hexdigest())


def unseal(to: Destination, body: Path, key: PrivateKey, out: Path) -> None:
    """Open a sealed body into another file, which holds a part of it where this fails.

    Raises:
        MalformedMessageError: it does not open: sealed to another key or for another round, or damaged.
        StorageError: the disk is full.
    """
    try:
        with body.open("rb") as file, out.open("wb") as opening:
            pieces = iter(lambda: file.read(_BLOCK), b"")
            for part in opened(to, pieces, body.stat().st_size, key):
                opening.write(part)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror}") from error


def read_update(body: Path, layout: Layout) -> PostedUpdate:
    """The update in a file, which may be unlinked meanwhile.

    Raises:
        LayoutMismatchError: it has other tensors, shapes or numbers than the layout.
        MalformedMessageError: neither the numbers nor a safetensors file.
        StorageError: it cannot be read.
    """
    try:
        with body.open("rb") as file:
            if not body.stat().st_size:
                raise LayoutMismatchError(f"a body of 0 bytes, expected {layout.num_bytes} of numbers")
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # closed with its last view
    except OSError as error:
        raise StorageError(f"{body}: cannot be read: {error.strerror}") from error
    return PostedUpdate(layout, _pieces(view, layout))


def check_update(update: PostedUpdate, max_norm: float | None, more: Sequence[tuple[str, str]] = ()) -> None:
    """Is it finite, and within the norm that the experiment asks for?

    Args:
        update: as it came.
        max_norm: L2, where it is asked for and no noise is added after it.
        more: checks that failed already.

    Raises:
        FailedChecksError: names every check that it fails, and each tensor that does.
    """
    failed, total = list(more), 0.0
    for entry, piece in zip(update.layout.entries, update.pieces, strict=True):
        bad = False
        for start in range(0, len(piece), _BLOCK):
            block = np.frombuffer(piece[start : start + _BLOCK], "<f4")
            if not is_finite(block):
                bad = True
                break
            total += float(np.square(block, dtype=np.float64).sum())
        if bad:
            failed.append((NAN, f"{entry.name} holds NaN or infinity"))
    norm = math.sqrt(total)
    if max_norm is not None and norm > max_norm * (1 + _ROUNDING):
        failed.append((BOUNDS, f"its L2 norm is above {max_norm:g}, the experiment's protection.max_norm: clip it"))
    if failed:
        names = ", ".join(dict.fromkeys(check for check, _ in failed))
        raise FailedChecksError(f"the update failed {names}; it was not taken", tuple(failed))


def hand_in(coordinator: Coordinator, envoy: m.EnvoyName, header: m.UpdateHeader, update: PostedUpdate) -> m.Receipt:
    """Give an update to the round that takes it; the very same one may come again.

    Raises:
        DuplicateUpdateError: another update of this envoy has a receipt already.
        TooManyCallsError: others upload just now; try again.
        FederationError: as ``Coordinator.request_upload`` and ``upload``.
    """
    digest = update.digest
    grant = coordinator.request_upload(envoy, header)
    if isinstance(grant, m.Wait):
        raise TooManyCallsError("other sites upload just now: send it again in a moment")
    if isinstance(grant, m.Turn):
        grant = coordinator.upload(envoy, _parts(grant, header.length, update, digest))
    if grant.digest != digest:
        raise DuplicateUpdateError(f"{envoy} already answered {header.ref} with another update; one answer counts")
    return grant


def _parts(turn: m.Turn, length: int, update: PostedUpdate, digest: Digest) -> Iterator[m.Part]:
    yield m.Opening(length, turn.offset, turn.grant)
    for block in update.blocks(turn.offset):
        yield m.Data(block)
    yield m.Closing(digest)


def _pieces(view: memoryview, layout: Layout) -> tuple[memoryview, ...]:
    if len(view) == layout.num_bytes:
        ends = [(entry.offset * FLOAT_BYTES, entry.size * FLOAT_BYTES) for entry in layout.entries]
        return tuple(view[start : start + length] for start, length in ends)
    try:
        return pieces_by_name(view, layout)
    except MalformedMessageError as error:
        raise MalformedMessageError(
            f"a body of {len(view)} bytes is neither {layout.num_bytes} bytes of float32 numbers nor a safetensors"
            f" file: {error}"
        ) from error
