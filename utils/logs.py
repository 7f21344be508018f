"""Log lines on standard error: time, level, event and its fields. Never tensors, pixels, labels or per-site values.

An event may quote what a plan or the other side wrote: it stays within its own line, and moves no cursor. What follows
of an exception is indented, so that whatever begins with a time was said here.
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import Any

from .visible import visible


class LogLevel(Enum):
    """How much the log says; the setting ``log_level`` of director and envoy."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LineFormatter(logging.Formatter):
    """One line for each event."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The event's own line."""
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The lines that follow it."""
        return "\n".join(f"  {visible(line)}" for line in super().formatException(ei).split("\n"))


def log_to_stderr(level: LogLevel) -> None:
    """Send this package's log to standard error, from ``level`` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    package = logging.getLogger(__name__.partition(".")[0])
    package.handlers[:] = [handler]
    package.setLevel(level.name)
