"""How sure an AUC is, and a difference of two on the same test images: bootstrap over images and over seeds.

Images stand for patients where a set names none (PneumoniaMNIST does not); each class is drawn again by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...gradient_leakage.confidence import LEVEL, Interval

_RESAMPLES = 1000

Scores = Sequence[ArrayLike]
"""(seeds, images): of each image, how likely it is ill; higher for ill."""


def auc_interval(labels: ArrayLike, scores: Scores, seed: int = 0) -> Interval:
    """Mean AUC over the seeds, with its 95 % interval.

    Args:
        labels: (images,), 1 for ill.
        scores: of the same images by each seed's model.
        seed: of the bootstrap.
    """
    return _interval(labels, scores, None, seed)


def auc_difference(labels: ArrayLike, scores: Scores, others: Scores, seed: int = 0) -> Interval:
    """Mean of ``others``' AUC minus ``scores``' AUC, paired by seed and image: what ``scores`` lost.

    Raises:
        ValueError: another number of seeds.
    """
    if len(scores) != len(others):
        raise ValueError(f"{len(scores)} and {len(others)} seeds: a paired difference needs the same")
    return _interval(labels, scores, others, seed)


def _interval(labels: ArrayLike, scores: Scores, others: Scores | None, seed: int) -> Interval:
    is_ill = np.asarray(labels).astype(bool)
    wins = np.stack([_wins(is_ill, np.asarray(one)) for one in scores])
    if others is not None:
        wins = np.stack([_wins(is_ill, np.asarray(one)) for one in others]) - wins
    rng, (seeds, ill, well) = np.random.default_rng(seed), wins.shape
    drawn = np.empty(_RESAMPLES)
    for place in range(_RESAMPLES):
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds)) / seeds
        of_ill = rng.multinomial(ill, np.full(ill, 1 / ill)) / ill
        of_well = rng.multinomial(well, np.full(well, 1 / well)) / well
        drawn[place] = of_seeds @ (of_ill @ wins @ of_well)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(wins.mean()), float(low), float(high))


def _wins(is_ill: NDArray[np.bool_], scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of every pair, whether the ill one scores higher, a half for a tie; its mean is the AUC. (ill, well)."""
    ill, well = scores[is_ill][:, None], scores[~is_ill][None]
    won: NDArray[np.float32] = (ill > well).astype(np.float32) + np.float32(0.5) * (ill == well)
    return won
