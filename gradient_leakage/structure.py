"""A first look at a model before it is trained: is a layer built to keep single images? A heuristic, labelled so.

It reads numbers alone, a vector and its layout, and compares simple statistics of each weight with what fresh and
trained weights show. It finds the known constructions as their papers build them. It does **not** find those that are
built to evade it: rows under strong noise pass, and so can models that were trained for the purpose (SEER). How many
is in this room's README, and a test computes it. A site that needs more has clip and noise, or secure aggregation.

| what | shown by | source |
|---|---|---|
| an imprint: rows that measure the same | parallel rows, biases that only rise | Fowl et al. 2022, arXiv:2110.13057 |
| trap weights | rows whose sums are all alike | Boenisch et al. 2023, arXiv:2112.02918 |
| neurons that nearly always sleep | negative biases beside the rows' lengths | Nowak et al. 2024, arXiv:2406.18745 |
| identity kernels | one number holds nearly all of a row | Zhao et al. 2024, arXiv:2303.12233 |
| fishing | a last layer with one row, or with enormous numbers | Wen et al. 2022, arXiv:2202.00580 |
| a first linear layer with room for every image | as many rows as inputs | Fowl et al. 2022 |
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import LayoutMismatchError
from ..utils.tensors import Layout, Role, Vector, bytes_of, named_views

Rows: TypeAlias = NDArray[np.float32]
"""(rows, inputs): a convolution as (out, in * height * width)."""

_MIN_ROWS = 16  # fewer rows cannot keep a batch apart, and say little of a distribution
_MIN_KERNEL = 9  # numbers of a row in which one alone means something
_MIN_INPUTS = 64  # numbers of a row that can measure an image; small kernels that were trained come to be parallel
_MIN_SHARING = 64  # rows; a few that were trained do share directions
_MAX_ROWS = 2048  # compared with each other; of more, as many are drawn
_PARALLEL = 0.98  # absolute cosine of two rows; about 11 degrees
_LARGE_INPUT = 256  # pixels
_TINY = 1e-12
_CONCENTRATED = 0.99  # share of a row's squared length in one number
_LARGEST_BIAS = 20.0  # of a last layer: a logit beside which others vanish


class Reason(Enum):
    """What a layer looks like; the values are words for people."""

    PARALLEL = "rows that measure the same, as an imprint's do: share of rows with a near-parallel other"
    COMMON = "rows that share one direction, as an imprint's do under noise: its share of their squared length"
    RAMP = "biases that only rise or fall from row to row, as an imprint's thresholds do: rank correlation with the row"
    ALIKE = "rows whose sums are all alike, as trap weights have them: mean over standard deviation"
    ASLEEP = "biases that keep nearly every row silent, so that few images wake one: median beside the row's length"
    IDENTITY = "rows that pass one number on, as LOKI's kernels do: their share"
    LONE_ROW = "a last layer in which some classes' rows are nothing beside another, as in fishing: ratio of lengths"
    LARGE_BIAS = "a last layer whose bias drowns every logit, as in fishing: largest bias"
    LARGE_FIRST = "a first linear layer with a row for each number of the image or more: rows for each input"


@dataclass(frozen=True, slots=True)
class Flag:
    """One layer that looks built for an attack."""

    layer: str  # the tensor's name
    reason: Reason
    figure: float
    limit: float  # from which on it is flagged

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason.value} {self.figure:.3g}, expected less than {self.limit:g}"


_LIMITS = {
    Reason.PARALLEL: 0.5,
    Reason.COMMON: 0.4,
    Reason.RAMP: 0.95,
    Reason.ALIKE: 5.0,
    Reason.ASLEEP: 0.5,
    Reason.IDENTITY: 0.25,
    Reason.LONE_ROW: 100.0,
    Reason.LARGE_BIAS: _LARGEST_BIAS,
    Reason.LARGE_FIRST: 1.0,
}


def check_structure(layout: Layout, vector: Vector) -> tuple[Flag, ...]:
    """What looks built for an attack, layer by layer; nothing where nothing does.

    Args:
        layout: of the model.
        vector: its numbers, as the director sent them.

    Guarantees: deterministic, and blind to the order in which a layer's rows stand, but for the ramp.

    Raises:
        LayoutMismatchError: the vector is not of the layout.
    """
    if vector.shape != (layout.size,):
        raise LayoutMismatchError(f"a model of {vector.size} numbers, its layout has {layout.size}")
    weights = list(_weights(layout, vector))
    flags: list[Flag] = []
    for place, (name, shape, rows, bias) in enumerate(weights):
        figures = _of_rows(rows, vector)
        if bias is not None:
            figures |= _of_bias(rows, bias, is_first=not place)
        if not place and len(shape) == 2 and rows.shape[1] >= _LARGE_INPUT:
            figures[Reason.LARGE_FIRST] = rows.shape[0] / rows.shape[1]
        if place == len(weights) - 1 and place and len(shape) == 2:
            figures |= _of_last(rows, bias)
        flags += (Flag(name, why, value, _LIMITS[why]) for why, value in figures.items() if value >= _LIMITS[why])
    return tuple(flags)


def _weights(layout: Layout, vector: Vector) -> Iterator[tuple[str, tuple[int, ...], Rows, Rows | None]]:
    """Each matrix or kernel: name, shape, rows, and the bias beside it where there is one."""
    views = {entry.name: view for entry, view in named_views(layout, vector) if entry.role is Role.PARAMETER}
    for name, view in views.items():
        if view.ndim >= 2 and view.size:
            beside = views.get(name.removesuffix("weight") + "bias") if name.endswith("weight") else None
            fits = beside is not None and beside.shape == (len(view),)
            yield name, view.shape, view.reshape(len(view), -1), beside if fits else None


def _of_rows(rows: Rows, vector: Vector) -> dict[Reason, float]:
    units = _units(rows)
    if not len(units) or rows.shape[1] < _MIN_KERNEL:
        return {}
    figures = {Reason.IDENTITY: float((np.square(units).max(1) >= _CONCENTRATED).mean())}
    if len(units) < _MIN_ROWS or rows.shape[1] < _MIN_INPUTS:
        return figures
    drawn = _drawn(units, vector)
    figures[Reason.PARALLEL] = _parallel_share(drawn)
    if len(drawn) >= _MIN_SHARING:
        figures[Reason.COMMON] = _common_share(drawn)
    sums = np.abs(drawn.sum(1, dtype=np.float64))
    figures[Reason.ALIKE] = float(sums.mean() / max(sums.std(), _TINY))
    return figures


def _units(rows: Rows) -> Rows:
    """Each row over its length, whatever its scale; rows of zeros, NaN or infinity are left out."""
    largest = np.abs(rows).max(1, initial=0)
    there = rows[np.isfinite(largest) & (largest > 0)].astype(np.float64)
    scaled = there / np.abs(there).max(1, keepdims=True, initial=0)
    units: Rows = (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).astype(np.float32)
    return units


def _lengths(rows: Rows) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.square(rows, dtype=np.float64).sum(1))
    return lengths


def _of_bias(rows: Rows, bias: Rows, *, is_first: bool) -> dict[Reason, float]:
    lengths = _lengths(rows)
    if len(bias) < _MIN_ROWS or len(np.unique(bias)) <= len(bias) // 2 or not (lengths > 0).all():
        return {}
    ranks = np.argsort(np.argsort(bias, kind="stable"), kind="stable")
    figures = {Reason.RAMP: float(abs(np.corrcoef(ranks, np.arange(len(bias)))[0, 1]))}
    if is_first and (bias < 0).mean() >= 0.95:
        figures[Reason.ASLEEP] = float(np.median(-bias / lengths))
    return figures


def _of_last(rows: Rows, bias: Rows | None) -> dict[Reason, float]:
    lengths = _lengths(rows)
    figures = {} if bias is None else {Reason.LARGE_BIAS: float(np.abs(bias).max())}
    if lengths.max() > 0:
        figures[Reason.LONE_ROW] = float(lengths.max() / lengths.min()) if lengths.min() else math.inf
    return figures


def _drawn(units: Rows, vector: Vector) -> Rows:
    """All rows, or as many as can be compared; which is known to whoever made the vector, but not free to choose."""
    if len(units) <= _MAX_ROWS:
        return units
    seed = hashlib.sha256(bytes_of(np.ascontiguousarray(vector))).digest()
    chosen = np.random.default_rng(int.from_bytes(seed)).choice(len(units), _MAX_ROWS, replace=False)
    return units[np.sort(chosen)]


def _parallel_share(units: Rows) -> float:
    likeness = np.abs(units @ units.T)
    np.fill_diagonal(likeness, 0)
    return float((likeness.max(1) >= _PARALLEL).mean())


def _common_share(units: Rows) -> float:
    """Of the direction that most of the rows' squared length lies in, by power iteration from their strongest row."""
    direction = units[int(np.abs(units @ units.sum(0)).argmax())]
    for _ in range(10):
        direction = units.T @ (units @ direction)
        direction /= np.linalg.norm(direction)
    return float(np.square(units @ direction).mean())
