"""The table of a codec's utility from its rows: means over seeds, and what each arm lost to the uncompressed run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...gradient_leakage.confidence import Interval
from .auc_intervals import auc_difference
from .codec_utility import BASELINE, UtilityRow


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm after some rounds, beside the uncompressed runs of the same seeds."""

    arm: str
    rounds: int
    bytes_up: int
    compression: float
    seeds: tuple[int, ...]
    auc_validation: float
    auc: float
    lost: Interval  # AUC of the uncompressed run minus the arm's, paired by seed and image
    lost_by_seed: tuple[float, ...]


def compare(rows: Sequence[UtilityRow], labels: NDArray[np.int64]) -> list[Comparison]:
    """Every arm and number of rounds, as they come first in the rows; an arm without an uncompressed run is left out.

    Args:
        rows: of one setup.
        labels: of the test images.
    """
    found = {(row.arm, row.rounds, row.seed): row for row in rows}
    comparisons = []
    for arm, rounds in dict.fromkeys((row.arm, row.rounds) for row in rows):
        seeds = tuple(s for a, r, s in found if (a, r) == (arm, rounds) and (BASELINE, rounds, s) in found)
        if not seeds:
            continue
        own, base = ([found[name, rounds, seed] for seed in seeds] for name in (arm, BASELINE))
        comparisons.append(
            Comparison(
                arm,
                rounds,
                own[0].bytes_up,
                own[0].compression,
                seeds,
                float(np.mean([row.auc_validation for row in own])),
                float(np.mean([row.auc for row in own])),
                auc_difference(labels, [row.scores for row in own], [row.scores for row in base]),
                tuple(other.auc - one.auc for one, other in zip(own, base, strict=True)),
            )
        )
    return comparisons


def as_markdown(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """The table; what was lost in points, which are hundredths of AUC."""
    yield "| upload | rounds | bytes a round | smaller | AUC | points lost [95 %] | each seed | AUC, validation |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in comparisons:
        lost = seeds = ""
        if one.arm != BASELINE:
            lost = f"{100 * one.lost.value:.2f} [{100 * one.lost.low:.2f}, {100 * one.lost.high:.2f}]"
            seeds = ", ".join(f"{100 * value:.1f}" for value in one.lost_by_seed)
        sent = f"{one.bytes_up:,} | {one.compression:.1f}"
        yield f"| {one.arm} | {one.rounds} | {sent} | {one.auc:.4f} | {lost} | {seeds} | {one.auc_validation:.4f} |"
