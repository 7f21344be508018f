"""What a plan's process may see of a site's files: all plans before its own is known, then its own alone.

No dataset is among them: what a plan declares of one comes as an open file (``exposed_data``).
"""

from __future__ import annotations

from pathlib import Path

from .orders import WorkOrder
from .sandbox.view import View


def premises_of(folder: Path) -> View:
    """Every plan of an envoy's folder: what a process that waits for its order is started with."""
    plans = folder / "plans"
    plans.mkdir(parents=True, exist_ok=True)
    return View.of([plans])


def view_of(order: WorkOrder) -> View:
    """The plan's bundle."""
    return View.of([order.bundle])
