"""The lines on which work goes down: one for each stream or long poll that an envoy holds open.

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
    """All open lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[EnvoyName, list[Line]] = {}

    def open(self, envoy: EnvoyName, items: Iterable[WorkItem]) -> Line:
        """A new line to an envoy, beginning with some items."""
        line = Line(envoy, items)
        with self._lock:
            self._lines.setdefault(envoy, []).append(line)
        return line

    def drop(self, line: Line) -> None:
        """The line is no more."""
        line.close()
        with self._lock:
            if line in self._lines.get(line.envoy, []):
                self._lines[line.envoy].remove(line)

    def push(self, envoys: Iterable[EnvoyName], item: WorkItem) -> None:
        """Send one item down every line of these envoys."""
        with self._lock:
            lines = [line for envoy in envoys for line in self._lines.get(envoy, [])]
        for line in lines:
            line.push(item)

    def close(self) -> None:
        """End all lines."""
        with self._lock:
            lines = [line for held in self._lines.values() for line in held]
        for line in lines:
            line.close()
