"""Two-sided codes of matrices: which left and right bases, and how many numbers each matrix gets.

``U.T @ G @ V`` with orthonormal U (m, p) and V (n, q) that keep the most energy of all proxy updates at once. HOSVD
starts (De Lathauwer et al. 2000), the alternation of GLRAM refines (Ye 2005, algorithm 1): given V, U holds the leading
eigenvectors of the sum of G V V^T G^T, and the other way round. Long sides take one warm step of subspace iteration
(Halko et al. 2011, arXiv:0909.4061, algorithm 4.4) in place of an eigendecomposition, so products are all that costs.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...utils.tensors import Entry
from .blocks import Matrix, TwoSided
from .codec_file import matrix_shape

_EXACT_SIDE = 768
"""Length of a side up to which its eigenvectors are computed exactly."""

_ENOUGH = 24
"""Updates that tell how the energy of a tensor is spread."""
_ROUNDING = 1e-10
"""Of the largest energy: squares of float32 rounding are 1e-14 of it, times the lengths of sums."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """What may be given numbers: of ``energy[i, j]``, the first p rows and q columns are kept."""

    energy: NDArray[np.float64]  # (most rows, most columns)
    row_cost: int  # numbers that one more row adds to the codec's file
    column_cost: int


def allot(candidates: Sequence[Candidate], budget: int, max_parameters: int) -> list[tuple[int, int]]:
    """How many rows and columns each candidate keeps, greedily by energy per number of the code.

    Each gets 1 x 1 before any gets more.

    Returns:
        (p, q) of each; the sum of p * q is at most the budget, and the file holds at most ``max_parameters``.

    Raises:
        ValueError: the budget is below one number each.
    """
    if budget < len(candidates):
        raise ValueError(f"{budget} numbers for {len(candidates)} tensors")
    kept = [(1, 1)] * len(candidates)
    left = budget - len(candidates)
    parameters = max_parameters - sum(c.row_cost + c.column_cost + 1 for c in candidates)
    moves = [move for nth, c in enumerate(candidates) for move in _moves(c, nth, (1, 1))]
    heapq.heapify(moves)
    while moves:
        _, nth, (p, q), (more_p, more_q) = heapq.heappop(moves)
        candidate, cost = candidates[nth], more_p * more_q - p * q
        stored = (more_p - p) * candidate.row_cost + (more_q - q) * candidate.column_cost + cost
        if kept[nth] != (p, q) or cost > left or stored > parameters:
            continue
        kept[nth] = (more_p, more_q)
        left, parameters = left - cost, parameters - stored
        for move in _moves(candidate, nth, kept[nth]):
            heapq.heappush(moves, move)
    return kept


def _moves(
    candidate: Candidate, nth: int, kept: tuple[int, int]
) -> Iterator[tuple[float, int, tuple[int, int], tuple[int, int]]]:
    """One more row, and one more column: the best energy per number first. Nothing is added that holds no energy."""
    (p, q), (rows, columns) = kept, candidate.energy.shape
    if p < rows and (gain := float(candidate.energy[p, :q].sum())) > 0:
        yield -gain / q, nth, kept, (p + 1, q)
    if q < columns and (gain := float(candidate.energy[:p, q].sum())) > 0:
        yield -gain / p, nth, kept, (p, q + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Bases:
    """Both bases of one tensor, by falling energy."""

    entry: Entry
    left: Matrix  # (m, p)
    right: Matrix  # (n, q)
    energy: NDArray[np.float64]  # (p, q): mean square of each number of the code

    def candidate(self) -> Candidate:
        """What ``allot`` chooses from; what float32 rounding alone could have left counts as no energy."""
        energy = np.where(self.energy > _ROUNDING * self.energy.max(), self.energy, 0)
        return Candidate(energy, len(self.left), len(self.right))

    def refined(self, updates: Matrix, kept: tuple[int, int]) -> TwoSided:
        """A block of that size, alternated once more, since the best bases of a size are no part of larger ones."""
        p, q = kept
        refined = _alternated(self.entry, _matrices(self.entry, updates), self.right[:, :q], p, q)
        energy = refined.energy.astype(np.float32)
        return TwoSided(self.entry.name, self.entry.offset, refined.left, refined.right, energy)


def bases(entry: Entry, updates: Matrix, most: int, rng: np.random.Generator) -> Bases:
    """Bases of one tensor, wide enough for a code of ``most`` numbers of whatever shape is best.

    They tell where the energy is, for which some of many updates are enough; ``refined`` then takes all.
    """
    m, n = matrix_shape(entry)
    updates = updates[:: -(-len(updates) // _ENOUGH)]
    count = len(updates)
    side = math.ceil(1.5 * math.sqrt(most)) + 2
    p, q = min(m, side, n * count), min(n, side, m * count)
    start = rng.standard_normal((n, min(n, q + 8)), np.float32)
    return _alternated(entry, _matrices(entry, updates), start, p, q)


def _matrices(entry: Entry, updates: Matrix) -> list[Matrix]:
    shape = matrix_shape(entry)
    return [update[entry.offset : entry.offset + entry.size].reshape(shape) for update in updates]


def _alternated(entry: Entry, matrices: list[Matrix], right: Matrix, p: int, q: int) -> Bases:
    """U given V, V given that U, and the energies in those coordinates."""
    left = _leading(np.concatenate([(matrix @ right).T for matrix in matrices]), p, None)
    narrowed = np.concatenate([left.T @ matrix for matrix in matrices])
    right = _leading(narrowed, q, right)
    cores = (narrowed @ right).reshape(len(matrices), left.shape[1], right.shape[1])
    return Bases(entry, left, right, np.square(cores, dtype=np.float64).mean(axis=0))


def _leading(rows: Matrix, count: int, start: Matrix | None) -> Matrix:
    """Leading right singular vectors of the rows, (length, count), orthonormal, by falling singular value."""
    length = rows.shape[1]
    if length <= _EXACT_SIDE or start is None:
        vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64))[1][:, ::-1]
        return np.ascontiguousarray(vectors[:, :count], np.float32)
    basis = np.linalg.qr(rows.T @ (rows @ start))[0]
    projected = rows @ basis
    vectors = np.linalg.eigh((projected.T @ projected).astype(np.float64))[1][:, ::-1]
    return np.linalg.qr(basis @ vectors[:, :count].astype(np.float32))[0]
