"""A codec of a small model, tensor by tensor: which code each gets, and how long, is what held-out updates say.

One principal component analysis of the whole update follows the tensors with the most energy, which after Adam are
simply the largest; the few numbers of a head, a bias or a norm then get almost nothing, although the model lives by
them. Here every tensor counts the same, whatever its size, and so does every update, whatever its length. On the
pneumonia network this is what brings a hundredfold compression close to the uncompressed run; the figures are in
``workspace/benchmarks/README.md``. It is a heuristic: no bound of the evidence is maximised over the whole.

A tensor is coded densely (principal components: few, but those of the first rounds almost exactly) or on both sides
(``TwoSided``: fewer parameters, so they hold better for updates that were not seen).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import ConfigError
from ...utils.tensors import Entry, Layout, Role
from .blocks import Matrix
from .codec import Basis, Codec, codec_of

_SMALL = 1024  # numbers: smaller tensors are one block together
_STEPS = 128  # into which the code is divided when it is shared out
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Plan:
    """One way to code one group of tensors, and what it keeps of held-out updates."""

    size: int  # numbers of the code
    kept: float  # share of the energy
    sides: tuple[int, int] | None  # p and q of a two-sided code; None: dense


def fit_layered(layout: Layout, updates: Matrix, ratio: float, *, basis: Basis = Basis.LEARNED) -> Codec:
    """The codec of a wanted compression whose blocks keep most of the later half of the updates, tensor for tensor.

    Args:
        layout: of the updates, without control variates and buffers.
        updates: (count, layout.size), at least four; rehearsals in turn, so that both halves hold whole ones.
        ratio: layout.size / size of the payload, at least.
        basis: what the updates are.

    Raises:
        ConfigError: too few updates, one of zeros, other tensors than parameters, or a ratio that leaves less than one
            number a group of tensors.
    """
    if any(entry.role is not Role.PARAMETER for entry in layout.entries):
        raise ConfigError("only parameters can be coded tensor by tensor; fit a plain codec for a model with buffers")
    if len(updates) < 4 or updates.shape[1:] != (layout.size,):
        raise ConfigError(f"updates of shape {updates.shape}, expected (at least 4, {layout.size})")
    groups, budget = _groups(layout), int(layout.size / ratio)
    if budget < len(groups):
        raise ConfigError(
            f"ratio {ratio:g} leaves {budget} numbers for {len(groups)} groups of tensors; at most "
            f"{layout.size / len(groups):.4g} can be reached"
        )
    rows = [_unit_rows(updates, group) for group in groups]
    half = len(updates) // 2
    plans = [_plans(group, part[:half], part[half:], budget) for group, part in zip(groups, rows, strict=True)]
    chosen = _share_out(plans, budget)
    blocks = [_block(group, part, updates, plan) for group, part, plan in zip(groups, rows, chosen, strict=True)]
    return codec_of(layout, basis, tuple(blocks))


def _groups(layout: Layout) -> list[list[Entry]]:
    """All small tensors, then each large one by itself."""
    entries = [entry for entry in layout.entries if entry.size]
    small = [entry for entry in entries if entry.size < _SMALL]
    return [group for group in (small, *([entry] for entry in entries if entry.size >= _SMALL)) if group]


def _columns(updates: Matrix, group: list[Entry]) -> Matrix:
    return np.concatenate([updates[:, entry.offset : entry.offset + entry.size] for entry in group], axis=1)


def _unit_rows(updates: Matrix, group: list[Entry]) -> Matrix:
    """The group's part of each update, of length 1; (count, numbers)."""
    part = _columns(updates, group)
    norms = np.linalg.norm(part, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise ConfigError("a proxy update holds NaN or infinity; leave it out, or train with a smaller learning rate")
    return part / np.maximum(norms, np.finfo(np.float32).tiny)


def _plans(group: list[Entry], seen: Matrix, held: Matrix, budget: int) -> list[_Plan]:
    """What each length could keep, by either code; fitted on ``seen``, measured on ``held``."""
    directions = _principal(seen, budget)
    kept = np.square(held @ directions.T).sum(axis=0, dtype=np.float64).cumsum() / len(held)
    plans = [_Plan(size, float(share), None) for size, share in enumerate(kept, start=1)]
    if len(group) == 1 and len(group[0].shape) > 1:
        plans += _two_sided_plans(_matrices(seen, group[0]), _matrices(held, group[0]), budget)
    return plans


def _two_sided_plans(seen: Matrix, held: Matrix, budget: int) -> list[_Plan]:
    """Codes of p times q numbers; p and q grow one at a time, by what the next row or column of the core keeps."""
    left, right = _sides(seen)
    core = np.square(left.T @ held @ right).sum(axis=0, dtype=np.float64) / len(held)
    p, q, plans = 1, 1, []
    while p * q <= budget:
        plans.append(_Plan(p * q, float(core[:p, :q].sum()), (p, q)))
        taller = core[p, :q].mean() if p < core.shape[0] else -math.inf
        wider = core[:p, q].mean() if q < core.shape[1] else -math.inf
        if max(taller, wider) < 0:
            break
        p, q = (p + 1, q) if taller >= wider else (p, q + 1)
    return plans


def _share_out(plans: list[list[_Plan]], budget: int) -> list[_Plan]:
    """One plan a group, together within the budget, that keep the most: shares of all groups count the same.

    A knapsack solved exactly, up to steps of ``budget / 128`` numbers.
    """
    step = max(1, budget // _STEPS)
    slots = budget // step
    best, ways = np.zeros(slots + 1), [[[] for _ in range(slots + 1)]]  # type: tuple[_Floats, list[list[list[_Plan]]]]
    for options in plans:
        by_slot = _best_by_slot(options, step, slots)
        fresh, way = np.full(slots + 1, -math.inf), [[] for _ in range(slots + 1)]  # type: tuple[_Floats, list[list[_Plan]]]
        for used in range(slots + 1):
            for plan, taken in by_slot:
                if taken <= used and best[used - taken] + plan.kept > fresh[used]:
                    fresh[used], way[used] = best[used - taken] + plan.kept, [*ways[-1][used - taken], plan]
        best = fresh
        ways.append(way)
    return ways[-1][slots]
