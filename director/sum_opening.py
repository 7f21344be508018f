"""From the masked vectors on disk to their mean: one pass over the spools, unmasked block by block.

The sum stands in the memory that the mean will stand in, so opening a sum takes no vector of its own, whatever the
number of sites. The tallies behind the body come first: the mean is by the weight that they tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..utils.messages import TaskKind
from ..utils.secure_sum import summation
from ..utils.secure_sum.tallies import Tallies
from ..utils.tensors import Vector
from .spool import SpooledUpdate
from .uploads import Uploads

BLOCK = 1 << 16
"""Words at work at once: 256 KiB of the sum and of one update, which stay in the cache with the keystream's piece."""


@dataclass(frozen=True, slots=True)
class OpenedSum:
    """What all sites together say."""

    tallies: Tallies
    peaks: tuple[float, ...]  # the largest magnitude of the mean in each tensor, as a share of its bound


def open_into(opened: summation.Opened, uploads: Uploads, out: Vector) -> OpenedSum:
    """Write the weighted mean of the sum into ``out``; after an evaluation there is none, and ``out`` is left alone.

    The same masked vectors give the same mean bit for bit, in whatever order they are read.

    Args:
        opened: what the survivors revealed.
        uploads: holds the masked vector of each survivor.
        out: float32, as long as the body of the sum; what it held is lost.

    Raises:
        UnsendableUpdateError: a masked vector is no longer on disk.
        EmptyRoundError: the sites have no examples together.
        MalformedMessageError: the tallies cannot be those of such a sum; some site spoiled it.
    """
    with ExitStack() as stack:
        updates: list[SpooledUpdate] = []
        for envoy in opened.survivors:
            updates.append(uploads.stored(envoy, 0))
            stack.callback(updates[-1].close)
        tallies = _tallies(opened, updates)
        if opened.cohort.spec.kind is TaskKind.EVALUATE:
            return OpenedSum(tallies, ())
        total = out.view(np.uint32)
        _sum_body(opened, updates, total)
    numbers = summation.fixed_point(opened.cohort.spec)
    peaks = numbers.peaks(total, tallies.num_examples)
    numbers.decode(total, tallies.num_examples, out)  # in place: each word becomes the number that stands there
    return OpenedSum(tallies, peaks)


def read_total(opened: summation.Opened, total: NDArray[np.uint32], out: Vector) -> OpenedSum:
    """As ``open_into``, of a sum whose masks an aggregator elsewhere took away: the same integers, the same mean.

    Args:
        opened: of whom the sum is.
        total: uint32, the unmasked sum, tallies and all.
        out: as there.

    Raises:
        EmptyRoundError, MalformedMessageError: as there.
    """
    tallies = summation.tallies(opened, total)
    if opened.spec.kind is TaskKind.EVALUATE:
        return OpenedSum(tallies, ())
    numbers, body = summation.fixed_point(opened.spec), total[: opened.body_words]
    peaks = numbers.peaks(body, tallies.num_examples)
    numbers.decode(body, tallies.num_examples, out)
    return OpenedSum(tallies, peaks)


def _tallies(opened: summation.Opened, updates: Sequence[SpooledUpdate]) -> Tallies:
    start = opened.cohort.tally_start
    tail, term = np.zeros(opened.words - start, np.uint32), np.empty(opened.words - start, np.uint32)
    for update in updates:
        update.read(start, term)
        np.add(tail.view(np.uint64), term.view(np.uint64), out=tail.view(np.uint64))
    summation.masker(opened, start).apply(tail.view(np.uint64))
    return summation.tallies(opened, tail)


def _sum_body(opened: summation.Opened, updates: Sequence[SpooledUpdate], total: NDArray[np.uint32]) -> None:
    body = sum(opened.cohort.spec.sizes)
    if total.size != body:
        raise ValueError(f"{total.size} words of memory for a body of {body}")
    masker, term = summation.masker(opened), np.empty(min(BLOCK, total.size), np.uint32)
    for start in range(0, total.size, BLOCK):
        piece = total[start : start + BLOCK]
        updates[0].read(start, piece)
        for update in updates[1:]:
            update.read(start, term[: piece.size])
            np.add(piece, term[: piece.size], out=piece)
        masker.apply(piece)
