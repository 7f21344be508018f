"""How sure an AUC is, and a difference of two on the same test images: bootstrap over patients and over seeds.

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


def auc_interval(labels: ArrayLike, scores: Scores, seed: int = 0, patients: Sequence[str] | None = None) -> Interval:
    """Mean AUC over the seeds, with its 95 % interval.

    Args:
        labels: (images,), 1 for ill.
        scores: of the same images by each seed's model.
        seed: of the bootstrap.
        patients: whose each image is; all images of a patient are drawn together. None: each image by itself.
    """
    return _interval(labels, scores, None, seed, patients)


def auc_difference(
    labels: ArrayLike, scores: Scores, others: Scores, seed: int = 0, patients: Sequence[str] | None = None
) -> Interval:
    """Mean of ``others``' AUC minus ``scores``' AUC, paired by seed and image: what ``scores`` lost.

    Raises:
        ValueError: another number of seeds.
    """
    if len(scores) != len(others):
        raise ValueError(f"{len(scores)} and {len(others)} seeds: a paired difference needs the same")
    return _interval(labels, scores, others, seed, patients)


def _interval(
    labels: ArrayLike, scores: Scores, others: Scores | None, seed: int, patients: Sequence[str] | None
) -> Interval:
    is_ill = np.asarray(labels).astype(bool)
    wins = np.stack([_wins(is_ill, np.asarray(one)) for one in scores])
    if others is not None:
        wins = np.stack([_wins(is_ill, np.asarray(one)) for one in others]) - wins
    rng, seeds = np.random.default_rng(seed), len(wins)
    names = np.arange(len(is_ill)).astype(str) if patients is None else np.asarray(patients)
    ill, well = (np.unique(names[chosen], return_inverse=True)[1] for chosen in (is_ill, ~is_ill))
    drawn = np.empty(_RESAMPLES)
    for place in range(_RESAMPLES):
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds)) / seeds
        drawn[place] = of_seeds @ (_weights(ill, rng) @ wins @ _weights(well, rng))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(wins.mean()), float(low), float(high))


def _weights(patient_of: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """What each image weighs where as many patients are drawn as there are; (images,), in all 1."""
    count = int(patient_of.max()) + 1
    weights: NDArray[np.float64] = rng.multinomial(count, np.full(count, 1 / count))[patient_of].astype(np.float64)
    weights /= weights.sum()
    return weights


def _wins(is_ill: NDArray[np.bool_], scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of every pair, whether the ill one scores higher, a half for a tie; its mean is the AUC. (ill, well)."""
    ill, well = scores[is_ill][:, None], scores[~is_ill][None]
    won: NDArray[np.float32] = (ill > well).astype(np.float32) + np.float32(0.5) * (ill == well)
    return won
