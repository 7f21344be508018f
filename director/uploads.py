"""Turns to upload, and the streams that follow them.

Without turns every envoy's stream is open at once and gRPC buffers a few megabytes for each. A few streams saturate
the machine; the others wait. One who waited ``patience_seconds`` gets a turn all the same, so that a slow hospital
line, which fills no buffers, never holds up the rest.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import MalformedMessageError, ProtocolError, UnsendableUpdateError, WrongRoundError
from ..utils.messages import (
    PART_BYTES,
    Closing,
    Data,
    EnvoyName,
    Opening,
    Part,
    PayloadKind,
    TaskRef,
    Turn,
    UpdateHeader,
    Wait,
)
from ..utils.tensors import Digest
from .records import SubmissionRecord
from .spool import Spool, SpooledUpdate

_UNCLAIMED_SECONDS = 10.0


@dataclass(slots=True)
class _Upload:
    """A turn that was given: from the grant to the end of its stream."""

    header: UpdateHeader
    envoy: EnvoyName
    granted_at: float
    claimed: bool = False
    ended: ProtocolError | None = None  # why its stream may go no further


@dataclass(frozen=True, slots=True)
class Received:
    """A whole update, checked and on disk."""

    header: UpdateHeader
    digest: Digest


class Uploads:
    """Gives turns and takes the streams.

    Args:
        folder: where the spools lie.
        slots: streams open at once while nobody waits too long.
        durable: fsync before an update counts as received.
        patience_seconds: how long anybody waits for a turn at most.
    """

    def __init__(self, folder: Path, slots: int, *, durable: bool, patience_seconds: float = 5.0) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._slots, self._durable, self._patience = folder, slots, durable, patience_seconds
        self._changed = threading.Condition()
        self._uploads: dict[str, _Upload] = {}
        self._queue: list[object] = []

    def path(self, envoy: EnvoyName) -> Path:
        """The envoy's spool."""
        return self._folder / f"{envoy}.spool"

    def stored(self, envoy: EnvoyName, num_examples: int) -> SpooledUpdate:
        """An update that was received, opened for reading."""
        return SpooledUpdate(self.path(envoy), envoy, num_examples)

    def is_intact(self, submission: SubmissionRecord) -> bool:
        """Is what was received before this process began still on disk, every byte of it?"""
        try:
            update = self.stored(submission.envoy, submission.num_examples)
        except UnsendableUpdateError:
            return False
        try:
            return update.digest(submission.length) == submission.digest
        except UnsendableUpdateError:
            return False
        finally:
            update.close()

    def withdraw(self, ref: TaskRef) -> None:
        """The round is over: streams that still bring something for it end, and their turns are free."""
        with self._changed:
            for upload in self._uploads.values():
                if upload.header.ref == ref:
                    upload.ended = WrongRoundError(f"{ref} is over and takes no more updates")
            self._changed.notify_all()

    def turn(self, envoy: EnvoyName, header: UpdateHeader, timeout_seconds: float) -> Turn | Wait:
        """Wait for a turn, first come first served.

        An envoy that already has one (its line broke) gets a new one at once; the old stream ends.
        """
        ticket = object()
        started = time.monotonic()
        with self._changed:
            self._queue.append(ticket)
            try:
                while not self._may_enter(ticket, envoy, time.monotonic() - started):
                    left = timeout_seconds - (time.monotonic() - started)
                    if left <= 0:
                        return Wait(header.ref)
                    self._changed.wait(min(left, 0.5))
                grant = secrets.token_hex(16)
                self._uploads = {name: one for name, one in self._uploads.items() if not self._supersede(one, envoy)}
                self._uploads[grant] = _Upload(header, envoy, time.monotonic())
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        spool = self._open(envoy, header)
        try:
            return Turn(header.ref, grant, spool.offset, PART_BYTES)
        finally:
            spool.close()

    def receive(self, envoy: EnvoyName, parts: Iterator[Part], heard: Callable[[], None]) -> Received:
        """Take one stream to its end: an opening, data, a closing.

        What came before an error stays on disk, and the next turn starts behind it.

        Raises:
            ProtocolError: no turn was given to this envoy, or a newer one was.
            MalformedMessageError: parts in another order.
            UnsendableUpdateError: length, digest or numbers are not those of the update that was announced.
            StorageError: the disk is full.
        """
        opening = next(parts, None)
        if not isinstance(opening, Opening):
            raise MalformedMessageError("an upload starts with an opening")
        upload = self._claim(envoy, opening.grant)
        try:
            return self._take(envoy, upload, opening, parts, heard)
        finally:
            with self._changed:
                self._uploads.pop(opening.grant, None)
                self._changed.notify_all()

    def _take(
        self, envoy: EnvoyName, upload: _Upload, opening: Opening, parts: Iterator[Part], heard: Callable[[], None]
    ) -> Received:
        spool = self._open(envoy, upload.header)
        try:
            if (opening.offset, opening.length) != (spool.offset, upload.header.length):
                raise ProtocolError(
                    f"the upload opens at {opening.offset} of {opening.length} bytes,"
                    f" expected {spool.offset} of {upload.header.length}"
                )
            for part in parts:
                if upload.ended is not None:
                    raise upload.ended
                heard()
                match part:
                    case Data(content):
                        spool.write(content)
                    case Closing(digest):
                        spool.finish(digest)
                        return Received(upload.header, digest)
                    case Opening():
                        raise MalformedMessageError("an upload opens twice")
            raise MalformedMessageError(f"the upload ended at {spool.offset} bytes without a closing")
        finally:
            spool.close()

    def _open(self, envoy: EnvoyName, header: UpdateHeader) -> Spool:
        is_masked = header.payload is PayloadKind.MASKED
        return Spool(self.path(envoy), header.ref, header.length, durable=self._durable, is_masked=is_masked)

    def _claim(self, envoy: EnvoyName, grant: str) -> _Upload:
        with self._changed:
            upload = self._uploads.get(grant)
            if upload is None or upload.envoy != envoy or upload.claimed:
                raise ProtocolError(f"{envoy} has no turn to upload; ask for one first")
            upload.claimed = True
            return upload

    def _may_enter(self, ticket: object, envoy: EnvoyName, waited: float) -> bool:
        now = time.monotonic()
        for name, upload in list(self._uploads.items()):
            if not upload.claimed and now - upload.granted_at > _UNCLAIMED_SECONDS:
                del self._uploads[name]
        if waited >= self._patience or any(upload.envoy == envoy for upload in self._uploads.values()):
            return True
        return sum(upload.ended is None for upload in self._uploads.values()) < self._slots and self._queue[0] is ticket

    @staticmethod
    def _supersede(upload: _Upload, envoy: EnvoyName) -> bool:
        if upload.envoy == envoy:
            upload.ended = ProtocolError(f"{envoy} asked for another turn; this stream is over")
        return upload.envoy == envoy
