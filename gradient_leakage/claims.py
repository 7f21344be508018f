"""May it be said that nothing measurable leaks? Only of a chain, against the worst attack on it, on enough patients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from .confidence import Equivalence, equivalence
from .rows import Row


def equivalence_of(rows: Sequence[Row]) -> Equivalence:
    """The equivalence test on the rows of one cell, an update a target.

    A batch counts as recognised where any of its images is: the claim is the harder to make.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("a claim about no row")
    gains = [
        row.ssim - row.null_ssim if row.ssim is not None and row.null_ssim is not None else math.nan for row in rows
    ]
    hits = [(row.reid_rank1 or 0) > 0 or (row.network_rank1 or 0) > 0 for row in rows]
    patients = [row.patients or row.key for row in rows]
    return equivalence(gains, hits, rows[0].gallery, np.random.default_rng(0), patients)


def worst_of(cells: Iterable[Sequence[Row]]) -> Equivalence:
    """Of several attacks on one chain the one that leaves least room for the claim.

    Raises:
        ValueError: no cell.
    """
    tests = [equivalence_of(rows) for rows in cells]
    return max(tests, key=lambda test: (len(test.objections), test.rank1_upper, test.ssim_gain_upper))
