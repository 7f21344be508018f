"""How many tests run side by side."""

from __future__ import annotations

import os


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for processes and sockets of their own."""
    return (os.cpu_count() or 1) + 1
