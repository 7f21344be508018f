"""``director start`` that kills itself with SIGKILL: at a transition of its history, or at a byte of an upload.

    python crashing_director.py FOLDER --kill-at N --when before|after    the Nth transition since it started
    python crashing_director.py FOLDER --kill-at-byte N [--torn]          the Nth byte of updates since it started
    python crashing_director.py FOLDER --kill-at-event N --when ...       the Nth event of secure sums since it started

The director is the real one; only where it dies is decided here. ``before`` is after the statements and before their
commit. ``torn`` leaves bytes on disk that the spool's header does not know of.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fedveil.director import sums, uploads
from fedveil.director.config import load_config
from fedveil.director.history import History
from fedveil.director.server import Director
from fedveil.director.spool import Spool
from fedveil.director.sum_log import Event, SumLog
from fedveil.utils.logs import log_to_stderr
from sqlalchemy import Connection, Engine


def die(why: str) -> None:
    print(f"dies {why}", file=sys.stderr, flush=True)  # noqa: T201
    os.kill(os.getpid(), signal.SIGKILL)


class DoomedHistory(History):
    """Its Nth transition is its last."""

    def __init__(self, engine: Engine, kill_at: int | None, when: str) -> None:
        super().__init__(engine)
        self._left, self._when = kill_at, when

    @contextmanager
    def _transition(self, name: str) -> Iterator[Connection]:
        with super()._transition(name) as connection:
            yield connection
            if self._left is not None:
                self._left -= 1
            is_last = self._left == 0
            if is_last and self._when == "before":
                die(f"before {name}")
        if is_last:
            die(f"after {name}")


class DoomedSpool(Spool):
    """Takes so many bytes, over all updates together, and not one more."""

    left = 0
    is_torn = False

    def write(self, content: memoryview | bytes) -> None:
        if len(content) < DoomedSpool.left:
            DoomedSpool.left -= len(content)
            super().write(content)
            return
        if DoomedSpool.is_torn:
            os.pwrite(self._fd, content[: DoomedSpool.left], 64 + self.offset)
        else:
            super().write(content[: DoomedSpool.left // 4 * 4])
        die("in an upload")


class DoomedLog(SumLog):
    """Its Nth event is its last."""

    left = 0
    when = "after"

    def append(self, event: Event, now: float) -> None:
        DoomedLog.left -= 1
        if DoomedLog.left == 0 and DoomedLog.when == "before":
            die("before an event of a secure sum")
        super().append(event, now)
        if DoomedLog.left == 0:
            die(f"after an event of a secure sum: {event.way.value} {event.stage}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--when", choices=("before", "after"), default="after")
    parser.add_argument("--kill-at-byte", type=int)
    parser.add_argument("--torn", action="store_true")
    parser.add_argument("--kill-at-event", type=int)
    given = parser.parse_args()
    uploads.PART_BYTES = 4096  # so that a small model comes in several parts
    if given.kill_at_byte is not None:
        DoomedSpool.left, DoomedSpool.is_torn = given.kill_at_byte, given.torn
        uploads.Spool = DoomedSpool
    if given.kill_at_event is not None:
        DoomedLog.left, DoomedLog.when = given.kill_at_event, given.when
        sums.SumLog = DoomedLog
    config = load_config(given.folder)
    log_to_stderr(config.log_level)
    director = Director(given.folder, config, partial(DoomedHistory, kill_at=given.kill_at, when=given.when))
    signal.pause()
    director.close()


if __name__ == "__main__":
    main()
