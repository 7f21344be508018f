"""The lines on which work goes down: one an envoy, a stream or a long poll.

A new line of an envoy ends its older one: that is a stream that broke unnoticed, or one too many.
What is pushed while no line is open is not kept: a new line starts with all that is open for the envoy.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

from ..utils.messages import EnvoyName, WorkItem


class Line:
    """One open line to one envoy."""

    def __init__(self, envoy: EnvoyName, items: Iterable[WorkItem]) -> None:
        self.envoy = envoy
        self._items: queue.SimpleQueue[WorkItem | None] = queue.SimpleQueue()
        self.is_closed = False
        for item in items:
            self.push(item)

    def push(self, item: WorkItem) -> None:
        """Send one item down."""
        self._items.put(item)

    def close(self) -> None:
        """End the line; whoever waits on it is told. May be called from any thread, and twice."""
        self.is_closed = True
        self._items.put(None)

    def next(self, timeout_seconds: float | None = None) -> WorkItem | None:
        """The next item; None when the line ended, or nothing came in time."""
        try:
            return self._items.get(timeout=timeout_seconds)
        except queue.Empty:
            return None


class Lines:
    """All open lines: the newest of each envoy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[EnvoyName, Line] = {}

    def open(self, envoy: EnvoyName, items: Iterable[WorkItem]) -> Line:
        """A new line to an envoy, beginning with some items; its older one ends."""
        line = Line(envoy, items)
        with self._lock:
            older = self._lines.pop(envoy, None)
            self._lines[envoy] = line
        if older is not None:
            older.close()
        return line

    def drop(self, line: Line) -> None:
        """The line is no more."""
        line.close()
        with self._lock:
            if self._lines.get(line.envoy) is line:
                del self._lines[line.envoy]

    def push(self, envoys: Iterable[EnvoyName], item: WorkItem) -> None:
        """Send one item down the lines of these envoys."""
        with self._lock:
            lines = [self._lines[envoy] for envoy in envoys if envoy in self._lines]
        for line in lines:
            line.push(item)

    def close(self) -> None:
        """End all lines."""
        with self._lock:
            lines = list(self._lines.values())
        for line in lines:
            line.close()
