"""A codec of a small model, tensor by tensor: a linear-Gaussian VAE for each, and a fair share of the code.

One principal component analysis of the whole update follows the tensors with the most energy, which after Adam are
simply the largest; the few numbers of a head, a bias or a norm then get almost nothing, although the model lives by
them. Here the updates of each group of tensors count the same, whatever its size, and numbers of the code go where the
next one keeps the largest share of its group's energy. What that gains is in ``workspace/benchmarks/README.md``.

A large tensor is coded densely (principal components: those of the first rounds almost exactly) or on both sides
(``TwoSided``: fewer parameters, which hold better for updates that were not seen, and a slower start).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import ConfigError
from ...utils.tensors import Entry, Layout, Role
from . import linear_gaussian
from .blocks import Block, Dense, Matrix, TwoSided
from .codec import Basis, Codec, codec_of
from .fitting import DENSE
from .two_sided import bases

_SMALL = 1024  # numbers: smaller tensors are one group together
_STEPS = 256  # into which the code is divided when it is shared out


@dataclass(frozen=True, slots=True)
class Option:
    """One code for one group of tensors, and the share of the group's energy that it keeps."""

    size: int  # numbers of the code
    kept: float
    sides: tuple[int, int] | None = None  # p and q of a two-sided code; None: dense


def is_for_layers(layout: Layout) -> bool:
    """Whether ``fit_layered`` is for such models: at most 65,536 numbers, parameters alone."""
    return layout.size <= DENSE and all(entry.role is Role.PARAMETER for entry in layout.entries)


def fit_layered(
    layout: Layout,
    updates: Matrix,
    ratio: float,
    *,
    basis: Basis = Basis.LEARNED,
    seeded_share: float = 0.0,
    two_sided: bool = False,
) -> Codec:
    """The codec of a wanted compression that keeps the most of each group's updates, all groups counting the same.

    A payload is smaller still where the updates do not span so many directions.

    Args:
        layout: of the updates; parameters alone.
        updates: (count, layout.size), of public or proxy data, or aggregates that were released.
        ratio: layout.size / size of the payload, at least.
        basis: what the updates are: ``LEARNED`` or ``HISTORY``.
        seeded_share: of the code, given to random directions that each round draws anew, orthogonal to the learned
            ones, so that error feedback has something to work on; densely coded groups alone have them.
        two_sided: code tensors of 1,024 numbers and more on both sides.

    Raises:
        ConfigError: no updates, NaN, a group whose updates are all 0, tensors other than parameters, a setting that
            does not fit, or a ratio that cannot be reached.
    """
    groups, budget = list(_groups(layout)), int(layout.size / ratio)
    _check(layout, updates, basis, len(groups), budget)
    if not 0 <= seeded_share < 1 or (seeded_share and two_sided):
        raise ConfigError(f"seeded_share is {seeded_share}, expected 0 to 1, and 0 with two-sided codes")
    learned = max(len(groups), round(budget * (1 - seeded_share)))
    options = [list(_options(group, updates, learned, two_sided=two_sided)) for group in groups]
    chosen = share_out(options, learned)
    fresh = [(budget - learned) // len(groups)] * len(groups)
    parts = zip(groups, chosen, fresh, strict=True)
    return codec_of(layout, basis, tuple(_block(group, updates, option, more) for group, option, more in parts))


def share_out(groups: Sequence[Sequence[Option]], budget: int) -> list[Option]:
    """One option a group, together within the budget, with the highest sum of what they keep.

    Exact, but for sizes being rounded up to steps of ``budget / 256``.

    >>> short, long = Option(1, 0.5), Option(3, 0.6)
    >>> [option.size for option in share_out([[short, long], [Option(1, 0.1), Option(2, 0.9)]], 4)]
    [1, 2]
    """
    step = -(-budget // _STEPS)
    best: list[tuple[float, list[Option]]] = [(0.0, [])] * (budget // step + 1)
    for options in groups:
        steps = _best_by_steps(options, step)
        best = [_best_within(best, steps, used) for used in range(len(best))]
    return best[-1][1]


def _best_within(
    before: Sequence[tuple[float, list[Option]]], steps: dict[int, Option], used: int
) -> tuple[float, list[Option]]:
    """The best of one more group in ``used`` steps together; minus infinity where it does not fit."""
    kept, taken = max(
        ((before[used - taken][0] + option.kept, taken) for taken, option in steps.items() if taken <= used),
        default=(-math.inf, 0),
    )
    return (kept, [*before[used - taken][1], steps[taken]]) if math.isfinite(kept) else (kept, [])


def _best_by_steps(options: Sequence[Option], step: int) -> dict[int, Option]:
    """For each number of steps the option that keeps the most."""
    found: dict[int, Option] = {}
    for option in options:
        steps = -(-option.size // step)
        if steps not in found or option.kept > found[steps].kept:
            found[steps] = option
    return found


def _groups(layout: Layout) -> Iterator[list[Entry]]:
    """All small tensors, then each large one by itself."""
    entries = [entry for entry in layout.entries if entry.size]
    small = [entry for entry in entries if entry.size < _SMALL]
    if small:
        yield small
    yield from ([entry] for entry in entries if entry.size >= _SMALL)


def _check(layout: Layout, updates: Matrix, basis: Basis, num_groups: int, budget: int) -> None:
    if basis is Basis.SEEDED:
        raise ConfigError("a seeded codec learns from no updates; use `seeded`")
    if any(entry.role is not Role.PARAMETER for entry in layout.entries):
        raise ConfigError("only parameters can be coded tensor by tensor; fit a model with buffers as one block")
    if updates.ndim != 2 or not len(updates) or updates.shape[1] != layout.size:
        raise ConfigError(f"updates of shape {updates.shape}, expected (at least 1, {layout.size})")
    if not np.isfinite(updates).all():
        raise ConfigError("a proxy update holds NaN or infinity; leave it out, or train with a smaller learning rate")
    if not 2 * num_groups <= budget <= layout.size:
        raise ConfigError(
            f"a payload of {budget} numbers for {num_groups} groups of tensors, at least two each; ask for a ratio of 1"
            f" to {layout.size / (2 * num_groups):.4g}"
        )


def _gathered(updates: Matrix, group: list[Entry]) -> Matrix:
    """A group's part of each update, (count, numbers of the group)."""
    part = np.concatenate([updates[:, entry.offset : entry.offset + entry.size] for entry in group], axis=1)
    if not part.any():
        raise ConfigError(f"every update leaves {group[0].name} as it is: nothing can be learned about it")
    return part


def _options(group: list[Entry], updates: Matrix, most: int, *, two_sided: bool) -> Iterator[Option]:
    """Every code that one group could get."""
    rows = _gathered(updates, group)
    energy = float(np.square(rows, dtype=np.float64).sum(axis=1).mean())
    if not two_sided or len(group) > 1 or len(group[0].shape) < 2:
        variances = linear_gaussian.fit(rows, min(most, rows.shape[1]), 0.0).variances
        for size, kept in enumerate(variances.astype(np.float64).cumsum() / energy, start=1):
            yield Option(size, float(kept))
        return
    core = bases(group[0], updates, most, np.random.default_rng(0)).energy / energy
    yield from _two_sided_options(core, most)


def _two_sided_options(core: NDArray[np.float64], most: int) -> Iterator[Option]:
    """Codes of p times q numbers; p and q grow one at a time, by what the next row or column of the core keeps."""
    (rows, columns), p, q = core.shape, 1, 1
    while p * q <= most:
        yield Option(p * q, float(core[:p, :q].sum()), (p, q))
        taller = core[p, :q].mean() if p < rows else -1.0
        wider = core[:p, q].mean() if q < columns else -1.0
        if max(taller, wider) < 0:
            return
        p, q = (p + 1, q) if taller >= wider else (p, q + 1)


def _block(group: list[Entry], updates: Matrix, option: Option, fresh: int) -> Block:
    if option.sides is not None:
        refined: TwoSided = bases(group[0], updates, option.size, np.random.default_rng(0)).refined(
            updates, option.sides
        )
        return refined
    model = linear_gaussian.fit(_gathered(updates, group), option.size, 0.0)
    room = model.directions.shape[1] - len(model.directions)
    return Dense.of(group, model.directions, model.variances, min(fresh, room))
