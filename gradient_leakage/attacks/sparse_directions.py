"""Which combinations of a matrix's columns are sparse: the search at the heart of SPEAR.

``rows = sparse @ mixing`` hides a sparse matrix. Each column of the inverse of ``mixing`` is a direction ``q`` such
that ``rows @ q`` is zero wherever that column of ``sparse`` is. Sampled rows that all happen to be zero in one column
give away that column's direction: it is what is orthogonal to them (Dimitrov et al. 2024, arXiv:2403.03945, section 4).

Two things are added here. Rows are sampled in an order that puts the sparse ones first. And where the sampled rows are
zero in several columns at once, which is common among images that resemble each other, the search goes on in the small
space that those columns span instead of starting over.

All rows are in units of their own noise: a number of the size of 1 says nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE = 10.0  # up to here a number counts as zero
LOOSE = 300.0  # the same for a direction that few rows fixed, which is wrong by much more than the noise
BATCH = 2048
SMALL = 4  # dimensions of a space in which it is worth to go on
LOOKED_AT = 32  # promising samples of a batch; the others mostly say the same


def sparse_directions(rows: Tensor, samples: int, rng: torch.Generator) -> Tensor:
    """Directions of length 1 at which more rows are zero than must be.

    A direction counts only where every row at which it is zero follows from the others, so that none of them was forced
    to be zero by having been sampled.

    Args:
        rows: (neurons, width) in units of the noise, of rank ``width``; those that are probably zero in most columns
            first.
        samples: sets of ``width - 1`` rows to draw at most.
        rng: draws them.

    Returns:
        (found, width), at most a few more than ``width``; the sparsest first.
    """
    width = rows.shape[1]
    rows = rows[rows.norm(dim=1) > NOISE * math.sqrt(width)]
    if width == 1:
        return torch.ones(1, 1, dtype=rows.dtype)
    found: dict[bytes, Tensor] = {}  # by the rows that are zero
    known: set[bytes] = set()  # those and the larger spaces that were searched
    drawn = 0
    while drawn < samples and len(rows) >= width and _rank(found) < width:
        batch = min(BATCH, samples)
        for zero in _promising(rows, batch, rng):
            _follow(rows, zero, found, known, rng)
        drawn += batch
    if not found:
        return rows.new_zeros(0, width)
    return torch.stack(sorted(found.values(), key=lambda q: -int(((rows @ q).abs() <= NOISE).sum())))


def null_space(rows: Tensor) -> Tensor:
    """Orthonormal directions, (width, nullity), at which all rows, in units of the noise, are zero."""
    if not len(rows):
        return torch.eye(rows.shape[1], dtype=rows.dtype)
    _, lengths, directions = torch.linalg.svd(rows)
    rank = int((lengths > NOISE * math.sqrt(len(rows))).sum())
    empty: Tensor = directions[rank:].T
    return empty


def _promising(rows: Tensor, batch: int, rng: torch.Generator) -> Tensor:
    """Sample once; which rows, (few, neurons), are zero at the directions that zero most rows."""
    count, width = rows.shape
    reach = count * 0.5 ** float(torch.randint(5, (), generator=rng))  # how far the sparse rows go is not known
    weight = torch.exp(-torch.arange(count) / reach).expand(batch, -1)
    sampled = rows[torch.multinomial(weight, width - 1, generator=rng)]
    # solving for one pinned number costs far less than a null space
    pinned = torch.randn(batch, 1, width, generator=rng, dtype=rows.dtype)
    right = torch.zeros(width, 1, dtype=rows.dtype)
    right[-1] = 1
    scaled = sampled / sampled.norm(dim=2, keepdim=True)
    directions = torch.linalg.solve_ex(torch.cat([scaled, pinned], 1), right)[0][..., 0]
    directions = directions / directions.norm(dim=1, keepdim=True)
    zero = (directions @ rows.T).abs() <= LOOSE  # NaN is not zero
    different: Tensor = torch.unique(zero[zero.sum(1) > width], dim=0)
    return different[different.sum(1).argsort(descending=True)[:LOOKED_AT]]


def _follow(rows: Tensor, zero: Tensor, found: dict[bytes, Tensor], known: set[bytes], rng: torch.Generator) -> None:
    """Sharpen a sample, and search the space that it leaves where that is more than one direction."""
    zero = _implied(rows, zero)
    directions = null_space(rows[zero])
    nullity = directions.shape[1]
    if not 0 < nullity <= min(SMALL, rows.shape[1] - 1):
        return
    zero = (rows @ directions).norm(dim=1) <= NOISE * math.sqrt(nullity)
    key = zero.numpy().tobytes()
    if key in known:
        return
    known.add(key)
    if nullity == 1:
        found[key] = directions[:, 0]
        return
    for direction in sparse_directions(rows @ directions, 64 << nullity, rng):
        lifted = directions @ direction
        found[((rows @ lifted).abs() <= NOISE).numpy().tobytes()] = lifted


def _implied(rows: Tensor, zero: Tensor) -> Tensor:
    """Without the rows that no others imply: those were zero because they were sampled."""
    zero = zero.clone()
    while zero.any():
        chosen = rows[zero] / rows[zero].norm(dim=1, keepdim=True)
        left, lengths, _ = torch.linalg.svd(chosen, full_matrices=False)
        rank = int((lengths > 1e-7 * lengths[0]).sum())
        lonely = left[:, :rank].square().sum(1) > 1 - 1e-6
        if not lonely.any():
            break
        zero[zero.nonzero()[lonely, 0]] = False
    return zero


def _rank(found: dict[bytes, Tensor]) -> int:
    return int(torch.linalg.matrix_rank(torch.stack(list(found.values())), rtol=1e-6)) if found else 0
