"""From the runs of a cell to its rows: figures, null, baseline, re-identification.

Deterministic: the same runs give the same rows, so rows can be thrown away and computed again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cells import Cell
from .metrics import (
    Embedding,
    Ranks,
    Scores,
    Truth,
    baseline,
    label_recovery,
    mse,
    null_scores,
    psnr,
    re_identification,
    ssim,
)
from .rows import Arrays, Outcome, Row
from .threat_model import PublicImages

_SPARE = 20  # images of a gallery that may be passed over: the target's own patient's, copies of it


class Reference(Protocol):
    """What a reconstruction is compared with beside its truth."""

    def public(self, case: str) -> PublicImages:
        """The attacker's own images; their mean is the baseline."""
        ...

    def gallery(self, case: str) -> Truth:
        """Images of other patients, one of each."""
        ...

    def embedding(self, case: str) -> Embedding | None:
        """The verification network of a case; None where it has none."""
        ...


def rows_of(cell: Cell, outcomes: Sequence[Outcome], reference: Reference) -> list[Row]:
    """The rows of one cell.

    Args:
        cell: complete.
        outcomes: of its runs, in their order.
        reference: what the figures stand beside.
    """
    truths = [truth_of(outcome.arrays) for outcome in outcomes]
    scored = [scores_of(outcome.arrays) for outcome in outcomes]
    nulls = null_scores(scored, truths, np.random.default_rng(cell.seed))
    public = reference.public(cell.case)
    ranks = _ranks(cell, scored, truths, reference, None)
    embedding = reference.embedding(cell.case)
    network = None if embedding is None else _ranks(cell, scored, truths, reference, embedding)
    rows = []
    for run, outcome, truth, found, null in zip(cell.runs(), outcomes, truths, scored, nulls, strict=True):
        place = run.index - cell.skip
        mean_image = baseline(public.images, truth)
        images = slice(place * cell.batch, (place + 1) * cell.batch)
        rows.append(
            Row(
                key=run.row_key,
                run=run.key,
                case=cell.case,
                model=cell.model,
                state=cell.state,
                batch=cell.batch,
                local_steps=cell.local_steps,
                defense=cell.defense,
                attack=cell.attack,
                adaptive=cell.adaptive,
                psnr=_mean(found.psnr),
                ssim=_mean(found.ssim),
                null_ssim=_mean(null.ssim),
                reid_rank1=_share(ranks, images, 1),
                cpu_seconds=outcome.cpu_seconds,
                mse=_mean(found.mse),
                psnr_best=None if found.images is None else float(found.psnr.max()),
                pictured=None if found.images is None else float(found.found.mean()),
                null_psnr=_mean(null.psnr),
                baseline_psnr=_mean(mean_image.psnr),
                baseline_ssim=_mean(mean_image.ssim),
                reid_rank5=_share(ranks, images, 5),
                network_rank1=_share(network, images, 1),
                network_rank5=_share(network, images, 5),
                gallery=cell.gallery,
                label_recovery=None if cell.granted().labels else found.label_recovery,
                knowledge=",".join(cell.knowledge),
                options=json.dumps(dict(cell.options)),
                learning_rate=cell.learning_rate,
                dtype=cell.dtype,
                targets=cell.targets,
                skip=cell.skip,
                target=run.index,
                seed=cell.seed,
                patients=",".join(truth.patients),
                loss=outcome.loss,
                wall_seconds=outcome.wall_seconds,
                peak_mb=outcome.peak_mb,
                error=outcome.error,
            )
        )
    return rows


def truth_of(arrays: Arrays) -> Truth:
    """The attacked batch of a run."""
    return Truth(_tensor(arrays["truth"]), _tensor(arrays["labels"]), tuple(arrays["patients"].tolist()))


def scores_of(arrays: Arrays) -> Scores:
    """What ``score`` gave when the run was made, up to the rounding of its dtype."""
    truth = truth_of(arrays)
    labels = label_recovery(_tensor(arrays["found_labels"]), truth.labels) if "found_labels" in arrays else None
    if "found" not in arrays:
        none = np.full(len(truth.images), math.nan)
        return Scores(None, none, none, none, np.zeros(len(none), bool), labels, None)
    found = _tensor(arrays["found"]).double()
    measured = (mse(found, truth.images), psnr(found, truth.images), ssim(found, truth.images))
    return Scores(found, *measured, arrays["is_found"].astype(bool), labels, None)


def _ranks(
    cell: Cell, scored: Sequence[Scores], truths: Sequence[Truth], reference: Reference, embed: Embedding | None
) -> Ranks | None:
    """Of every image of the cell, batch after batch; None where no run has images."""
    if all(found.images is None for found in scored):
        return None
    sought = Truth(
        torch.cat([truth.images for truth in truths]),
        torch.cat([truth.labels for truth in truths]),
        tuple(patient for truth in truths for patient in truth.patients),
    )
    pictures = [
        torch.full_like(truth.images, 0.5) if found.images is None else found.images.float()
        for found, truth in zip(scored, truths, strict=True)
    ]
    gallery = _first_of_each_class(reference.gallery(cell.case), cell.gallery + _SPARE)
    ranks = re_identification(torch.cat(pictures), sought, gallery, embed, cell.gallery)
    absent = np.repeat([found.images is None for found in scored], cell.batch)
    return Ranks(np.where(absent, math.nan, ranks.ranks), ranks.gallery)


def _first_of_each_class(gallery: Truth, most: int) -> Truth:
    """Enough to pick from; features of thousands more would be calculated for every cell, and left."""
    kept = torch.cat(
        [torch.nonzero(gallery.labels == label)[:most, 0] for label in sorted(set(gallery.labels.tolist()))]
    )
    names = tuple(gallery.patients[place] for place in kept.tolist()) if gallery.patients else ()
    return Truth(gallery.images[kept], gallery.labels[kept], names)


def _share(ranks: Ranks | None, images: slice, best: int) -> float | None:
    """Of the images of one batch, those among the first ``best``."""
    if ranks is None:
        return None
    measured = ranks.ranks[images][~np.isnan(ranks.ranks[images])]
    return float((measured <= best).mean()) if len(measured) else None


def _mean(values: NDArray[np.float64]) -> float | None:
    """Of those that could be measured."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else None


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
