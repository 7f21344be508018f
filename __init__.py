"""fedveil: hospitals train a model together without their images leaving them."""

from __future__ import annotations

__version__ = "0.1.0"
