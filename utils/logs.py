"""Log lines on standard error: time, level, event and its fields. Never tensors, pixels, labels or per-site values."""

from __future__ import annotations

import logging
from enum import Enum


class LogLevel(Enum):
    """How much the log says; the setting ``log_level`` of director and envoy."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def log_to_stderr(level: LogLevel) -> None:
    """Send this package's log to standard error, from ``level`` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    package = logging.getLogger(__name__.partition(".")[0])
    package.handlers[:] = [handler]
    package.setLevel(level.name)
