"""An update as arrays by name, and as the one vector that it travels in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...utils.errors import LayoutMismatchError
from ...utils.tensors import Entry, Layout, Vector, named_views

_NAMED_AT_MOST = 5


def by_name(layout: Layout, vector: Vector) -> dict[str, Vector]:
    """Arrays of their own for each tensor of a layout."""
    return {entry.name: view.copy() for entry, view in named_views(layout, vector)}


def as_vector(layout: Layout, gradients: Mapping[str, Any]) -> Vector:
    """The one vector of arrays by name.

    Raises:
        LayoutMismatchError: an array is missing, too much, or of another shape or type; the message names it.
    """
    faults = misfits(layout, gradients)
    if faults:
        raise LayoutMismatchError("; ".join(faults[:_NAMED_AT_MOST]))
    vector = np.empty(layout.size, np.float32)
    for entry, view in named_views(layout, vector):
        view[...] = gradients[entry.name]
    return vector


def misfits(layout: Layout, gradients: object) -> list[str]:
    """What of these is not as the plan's layout says, in words; empty where all is."""
    if not isinstance(gradients, Mapping):
        return [f"gradients are {type(gradients).__name__}, expected arrays by name, as `train_local` gives them"]
    names = {entry.name for entry in layout.entries}
    faults = [f"{str(name)[:80]} is no tensor of this plan" for name in gradients if name not in names]
    for entry in layout.entries:
        fault = _misfit(entry, gradients.get(entry.name))
        faults += [fault] if fault else []
    return faults


def _misfit(entry: Entry, array: object) -> str:
    if array is None:
        return f"{entry.name} is missing"
    if not isinstance(array, np.ndarray):
        return f"{entry.name} is {type(array).__name__}, expected a numpy array"
    if array.dtype != np.float32 or array.shape != entry.shape:
        return f"{entry.name} is {array.dtype} {array.shape}, expected float32 {entry.shape}"
    return ""
