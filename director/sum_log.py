"""What was said in one attempt's secure sum, in order, on disk: a killed director goes on from it.

One folder an attempt: ``events.jsonl``, a line an event, written before the event has any effect. What envoys said
(``up``) and what the director decided (``here``) is all that there is to replay, since the sum itself is a pure
function of it. Where sums are kept (``keep_sums``), what went down stands there too, and beside it ``sum.json`` and the
masked vectors, for auditors; else the folder goes with its attempt. It holds nothing that envoys did not sign or that
the director did not send them.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..utils.errors import StorageError
from ..utils.messages import EnvoyName, TaskRef
from ..utils.tensors import canonical_json

EVENTS_FILE = "events.jsonl"
SUMMARY_FILE = "sum.json"
VECTOR_SUFFIX = ".masked"
_PIECE = 1 << 20


class Way(Enum):
    """Whose word an event is."""

    UP = "up"  # an envoy's
    DOWN = "down"  # the director's, to an envoy
    HERE = "here"  # the director's own decision


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that was said or decided."""

    way: Way
    stage: str
    envoy: str = ""  # of what went up or down
    content: bytes = b""
    envoys: tuple[EnvoyName, ...] = ()  # of a decision


def log_folder(folder: Path, ref: TaskRef, group: int = 0) -> Path:
    """Where one attempt's sum, or that of one group in it, is kept."""
    return folder / ref.run / (f"{ref.round}-{ref.attempt}" + (f"-{group}" if group else ""))


class SumLog:
    """The events of one attempt.

    Args:
        folder: of all sums.
        ref: the attempt.
        group: of the run, where groups are summed apart; 0 else.
        durable: each event survives a power cut, not only a kill -9.
        keep: everything stays on disk after the attempt.

    Raises:
        StorageError: it cannot be written; and from each method.
    """

    def __init__(self, folder: Path, ref: TaskRef, group: int = 0, *, durable: bool, keep: bool) -> None:
        self.folder = log_folder(folder, ref, group)
        self.keeps, self._durable = keep, durable
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self.folder / EVENTS_FILE, flags, 0o600)
        except OSError as error:
            raise _refusal(error, self.folder) from error
        self._number = 0

    def replay(self) -> list[Event]:
        """Everything so far. A last line that a kill -9 cut in two did not happen, and is cut off.

        Raises:
            StorageError: a line is damaged.
        """
        path = self.folder / EVENTS_FILE
        try:
            raw = path.read_bytes()
            whole = raw.rfind(b"\n") + 1
            if whole != len(raw):
                os.ftruncate(self._fd, whole)
        except OSError as error:
            raise _refusal(error, self.folder) from error
        events = [_event(line, path) for line in raw[:whole].splitlines()]
        self._number = len(events)
        return events

    def append(self, event: Event, now: float) -> None:
        """Keep one event; what went down only where all is kept."""
        if event.way is Way.DOWN and not self.keeps:
            return
        line = canonical_json(
            {
                "n": self._number,
                "time": now,
                "way": event.way.value,
                "envoy": event.envoy,
                "stage": event.stage,
                "bytes": len(event.content),
                "content": base64.b64encode(event.content).decode(),
                "envoys": list(event.envoys),
            }
        )
        try:
            held = os.fstat(self._fd).st_size
            line += b"\n"
            if os.write(self._fd, line) != len(line):
                os.ftruncate(self._fd, held)
                raise StorageError(f"the director's disk is full ({self.folder}); make room, and it is tried again")
            if self._durable:
                os.fsync(self._fd)
        except OSError as error:
            raise _refusal(error, self.folder) from error
        self._number += 1

    def keep_vectors(self, vectors: Iterable[tuple[EnvoyName, Path, int, int]]) -> None:
        """Where sums are kept, copy the masked vectors: of whom, from which file, from which byte on, how many."""
        if not self.keeps:
            return
        try:
            for envoy, path, start, length in vectors:
                with path.open("rb") as source, (self.folder / f"{envoy}{VECTOR_SUFFIX}").open("wb") as target:
                    source.seek(start)
                    left = length
                    while left and (piece := source.read(min(left, _PIECE))):
                        left -= target.write(piece)
        except OSError as error:
            raise _refusal(error, self.folder) from error

    def end(self, summary: dict[str, object]) -> None:
        """The attempt is over: its summary stays where sums are kept; else nothing does."""
        os.close(self._fd)
        try:
            if self.keeps:
                (self.folder / SUMMARY_FILE).write_bytes(canonical_json(summary))
                return
            shutil.rmtree(self.folder)
            if not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()
        except OSError as error:
            raise _refusal(error, self.folder) from error

    def close(self) -> None:
        """Leave the attempt to the next start."""
        os.close(self._fd)


def _event(line: bytes, path: Path) -> Event:
    try:
        said = json.loads(line)
        return Event(
            Way(said["way"]),
            str(said["stage"]),
            str(said["envoy"]),
            base64.b64decode(said["content"], validate=True),
            tuple(EnvoyName(str(name)) for name in said["envoys"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: line {line[:40]!r} is no event of a secure sum: {error}") from error


def _refusal(error: OSError, folder: Path) -> StorageError:
    return StorageError(f"the director cannot keep what is said in a secure sum ({folder}): {error.strerror}")
