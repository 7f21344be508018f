"""Log lines on standard error: time, level, event and its fields. Never tensors, pixels, labels or per-site values."""

from __future__ import annotations

import logging


def log_to_stderr(level: str) -> None:
    """Send this package's log to standard error, from ``level`` (debug, info, warning, error) on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    package = logging.getLogger(__name__.partition(".")[0])
    package.handlers[:] = [handler]
    package.setLevel(level.upper())
