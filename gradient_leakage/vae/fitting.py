"""From proxy updates to a codec of a wanted compression. Proxy updates are those of public data, never of patients.

Updates of at most 65,536 numbers get one dense block. In larger ones each matrix or convolution is coded on both sides,
which needs few parameters, and small tensors pass as they are, or are coded densely where they would outweigh the code.
"""

from __future__ import annotations

import numpy as np

from ...utils.errors import ConfigError
from ...utils.tensors import Entry, Layout, Role, Vector
from . import linear_gaussian
from .blocks import Block, Dense, Matrix
from .codec import Basis, Codec, codec_of
from .two_sided import Candidate, allot, bases

DENSE = 1 << 16
"""Numbers of an update up to which one dense block codes all of its parameters."""
_MATRIX = 512
"""Numbers from which on a tensor of two axes or more is worth a block of its own."""


def fit(
    layout: Layout,
    updates: Matrix,
    ratio: float,
    *,
    basis: Basis = Basis.LEARNED,
    noise_variance: float | None = None,
    seeded_share: float = 0.0,
) -> Codec:
    """The codec with the highest evidence lower bound, or close to it, whose payload is ``ratio`` times smaller.

    A payload is smaller still where the updates do not span so many directions, since nothing is filled up, and where
    two-sided bases would take more parameters than the model has (below 10x or so).

    Args:
        layout: of the updates.
        updates: (count, layout.size), of public or proxy data, or aggregates that were released.
        ratio: layout.size / size of the payload, at least.
        basis: what the updates are: ``LEARNED`` or ``HISTORY``.
        noise_variance: the decoder's sigma squared; None: of maximum likelihood where the code is dense, else 0.
        seeded_share: of the dense code, given to random directions that each round draws anew, orthogonal to the
            learned ones, so that error feedback has something to work on. Small updates alone have it.

    Raises:
        ConfigError: a ratio that cannot be reached, no updates, or a setting that does not fit; says what does.
    """
    _check(layout, ratio)
    if basis is Basis.SEEDED:
        raise ConfigError("a seeded codec learns from no updates; use `seeded`")
    if updates.ndim != 2 or updates.shape[1] != layout.size or not len(updates):
        raise ConfigError(f"updates of shape {updates.shape}, expected (at least 1, {layout.size})")
    if not np.isfinite(updates).all():
        raise ConfigError("a proxy update holds NaN or infinity; leave it out, or train with a smaller learning rate")
    if not 0 <= seeded_share < 1:
        raise ConfigError(f"seeded_share is {seeded_share}, expected 0 to 1; for 1 use a seeded codec")
    budget = _budget(layout, ratio)
    if layout.size <= DENSE:
        dense, sigma = _dense(_parameters(layout), updates, budget, noise_variance, seeded_share)
        return codec_of(layout, basis, (dense,), sigma)
    if seeded_share:
        raise ConfigError(
            f"seeded_share is for updates of at most {DENSE} numbers, these have {layout.size}; leave it out"
        )
    return codec_of(layout, basis, _large(layout, updates, budget), noise_variance or 0.0)


def seeded(layout: Layout, ratio: float) -> Codec:
    """A codec that draws all of its directions anew each round: a random projection, and no VAE.

    Raises:
        ConfigError: a ratio that cannot be reached.
    """
    _check(layout, ratio)
    entries = _parameters(layout)
    length = sum(entry.size for entry in entries)
    nothing = np.empty((0, length), np.float32)
    block = Dense.of(entries, nothing, np.empty(0, np.float32), min(_budget(layout, ratio), length))
    return codec_of(layout, Basis.SEEDED, (block,))


def _check(layout: Layout, ratio: float) -> None:
    control = layout.slice_of(Role.CONTROL)
    if control.stop > control.start:
        raise ConfigError("SCAFFOLD's control variates cannot be coded; use another method, or no codec")
    if not 1 <= ratio < float("inf"):
        raise ConfigError(f"ratio is {ratio}, expected at least 1")
    if not _parameters(layout):
        raise ConfigError("the model has no parameters to code")


def _parameters(layout: Layout) -> list[Entry]:
    return [entry for entry in layout.entries if entry.role is Role.PARAMETER and entry.size]


def _budget(layout: Layout, ratio: float) -> int:
    """Numbers that are left for parameters once the buffers have passed."""
    buffers = layout.size - sum(entry.size for entry in _parameters(layout))
    budget = int(layout.size / ratio) - buffers
    if budget < 1:
        reachable = layout.size / (buffers + 1)
        raise ConfigError(
            f"ratio {ratio:g} leaves {int(layout.size / ratio)} numbers, and {buffers} of them are buffers, which are "
            f"sent as they are; at most {reachable:.4g} can be reached"
        )
    return budget


def _dense(
    entries: list[Entry], updates: Matrix, budget: int, noise_variance: float | None, seeded_share: float
) -> tuple[Dense, float]:
    """A dense block, and its sigma squared."""
    rows = updates[:, entries[0].offset : entries[-1].offset + entries[-1].size]
    if rows.shape[1] != sum(entry.size for entry in entries):
        rows = np.concatenate([updates[:, entry.offset : entry.offset + entry.size] for entry in entries], axis=1)
    fresh = min(round(budget * seeded_share), budget - 1)
    try:
        model = linear_gaussian.fit(rows, budget - fresh, noise_variance)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not len(model.variances):
        raise ConfigError(
            f"no direction of the updates stands out from noise of variance {model.noise_variance:.3g}: all collapse; "
            "set a smaller noise_variance, or use a seeded codec"
        )
    fresh = min(fresh, rows.shape[1] - len(model.variances))
    return Dense.of(entries, model.directions, model.variances, fresh), model.noise_variance


def _large(layout: Layout, updates: Matrix, budget: int) -> tuple[Block, ...]:
    """A block for each matrix, and a dense one for small tensors that would outweigh the code."""
    matrices = [e for e in _parameters(layout) if len(e.shape) > 1 and e.size >= _MATRIX]
    small = [e for e in _parameters(layout) if e not in matrices]
    weight = sum(entry.size for entry in small)
    joined = small if weight > budget // 2 else []
    budget -= 0 if joined else weight
    total, rng = sum(entry.size for entry in matrices), np.random.default_rng(0)
    found = [bases(entry, updates, max(1, budget * entry.size // total), rng) for entry in matrices]
    candidates = [each.candidate() for each in found]
    directions, variances = _principal(joined, updates, budget)
    if len(variances):
        candidates.append(Candidate(variances.astype(np.float64)[:, None], weight + 1, 0))
    try:
        kept = allot(candidates, budget, layout.size)
    except ValueError as error:
        raise ConfigError(f"{error} besides what passes as it is; choose a smaller ratio") from error
    blocks: list[Block] = [each.refined(updates, size) for each, size in zip(found, kept, strict=False)]
    if joined:
        rank = kept[-1][0] if len(variances) else 0
        blocks.append(Dense.of(joined, directions[:rank], variances[:rank]))
    return tuple(blocks)


def _principal(entries: list[Entry], updates: Matrix, most: int) -> tuple[Matrix, Vector]:
    """Directions and variances of some tensors together; none where no update changes them."""
    rows = np.concatenate([updates[:, :0], *(updates[:, e.offset : e.offset + e.size] for e in entries)], axis=1)
    if not rows.any():
        return np.empty((0, rows.shape[1]), np.float32), np.empty(0, np.float32)
    model = linear_gaussian.fit(rows, most, 0.0)
    return model.directions, model.variances
