"""From attacked batches to what is told of them: figures with their null and baseline, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor

from ..gradient_leakage.confidence import Floats, Interval, bootstrap_mean
from ..gradient_leakage.metrics import MIN_GALLERY, Scores, Truth, baseline, null_scores, re_identification
from ..gradient_leakage.threat_model import Reconstruction
from ..utils.errors import FederationError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_MEASURES = ("psnr", "ssim", "mse")
_WORDS = (
    "Read the excess over the null, not the figure itself: the null is what the same attack finds in the update of "
    "another patient of the same class, the baseline what a mean image scores without any attack."
)


@dataclass(frozen=True, slots=True, eq=False)
class Attacked:
    """One update that was attacked."""

    found: Reconstruction
    cpu_seconds: float
    truth: Truth | None  # unknown for a recorded update, unless its images are given
    scores: Scores | None
    error: FederationError | None = None  # why the attack cannot be run on this update


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """What was measured over all images; each array is in their order."""

    measured: dict[str, Floats]
    null: dict[str, Floats]
    baseline: dict[str, Floats]
    baseline_of: str
    patients: tuple[str, ...] | None  # None where nothing is known of them
    reid: dict[str, Json]


def figures_of(attacked: Sequence[Attacked], public: Truth | None, rng: np.random.Generator) -> Figures | None:
    """Scores of all images beside their null, baseline and re-identification; None where no picture was scored."""
    pairs = [(one.scores, one.truth) for one in attacked if one.scores is not None and one.truth is not None]
    if not pairs or all(scores.images is None for scores, _ in pairs):
        return None
    scored, truths = [scores for scores, _ in pairs], [truth for _, truth in pairs]
    base, base_of = _baselines(truths, public)
    return Figures(
        measured={name: _joined(scored, name) for name in _MEASURES},
        null={name: _joined(null_scores(scored, truths, rng), name) for name in _MEASURES},
        baseline={name: _joined(base, name) if base else np.full(_count(truths), math.nan) for name in _MEASURES},
        baseline_of=base_of,
        patients=_together(truths).patients or None,
        reid=_reid(scored, truths, public),
    )


def as_json(attacked: Sequence[Attacked], figures: Figures | None, seed: int) -> dict[str, Json]:
    """The measured part of the report; null where something could not be measured."""
    report: dict[str, Json] = {
        "label_recovery": _mean([one.scores.label_recovery for one in attacked if one.scores is not None]),
        "cpu_seconds": [one.cpu_seconds for one in attacked],
        "losses": [_finite(one.found.loss) for one in attacked],
        "errors": [None if one.error is None else str(one.error) for one in attacked],
    }
    if figures is None:
        return report
    rng = np.random.default_rng(seed)
    for name in _MEASURES:
        interval = bootstrap_mean(figures.measured[name], rng, figures.patients)
        report[name] = _finite(interval.value)
        report[f"{name}_interval"] = [_finite(interval.low), _finite(interval.high)]
        report[f"null_{name}"] = _mean(figures.null[name].tolist())
        report[f"baseline_{name}"] = _mean(figures.baseline[name].tolist())
    report |= {"baseline": figures.baseline_of, "re_identification": figures.reid}
    report["per_image"] = _per_image(attacked, figures)
    return report


def as_words(title: str, attacked: Sequence[Attacked], figures: Figures | None, seed: int) -> RenderableType:
    """The same for people."""
    seconds = sum(one.cpu_seconds for one in attacked)
    head = f"{title}: {len(attacked)} updates, {seconds:.2f} CPU seconds"
    labels = _mean([one.scores.label_recovery for one in attacked if one.scores is not None])
    lines = [head] if labels is None else [head, f"labels found: {labels:.0%}"]
    errors = [str(one.error) for one in attacked if one.error is not None]
    if errors:
        lines.append(f"{len(errors)} updates could not be attacked and are in no figure below: {errors[0]}")
    if figures is None:
        return Group(*lines)
    table = Table("", "attack", "null", "baseline", "excess over the null", caption="(95 % intervals)")
    interval_of = partial(bootstrap_mean, rng=np.random.default_rng(seed), patients=figures.patients)
    for name, heading, form in (("psnr", "PSNR, dB", ".1f"), ("ssim", "SSIM", ".3f"), ("mse", "MSE", ".1e")):
        values, null = figures.measured[name], figures.null[name]
        table.add_row(
            heading,
            _interval(interval_of(values), form),
            _interval(interval_of(null), form, alone=True),
            _interval(interval_of(figures.baseline[name]), form, alone=True),
            _interval(interval_of(values - null), form),
        )
    known = f"re-identification: {figures.reid['words']}"
    return Group(*lines, table, known, f"baseline: {figures.baseline_of}. {_WORDS}")


def _baselines(truths: Sequence[Truth], public: Truth | None) -> tuple[list[Scores], str]:
    """The public mean image; without public images, the mean of all images of patients outside the same batch."""
    if public is not None:
        return [baseline(public.images, truth) for truth in truths], "the mean of the public images"
    others = [_outside(truth, truths) for truth in truths]
    if not all(len(images) for images in others):
        return [], "none: no public images, and an update beside which there are no other images"
    found = [baseline(images, truth) for images, truth in zip(others, truths, strict=True)]
    return found, "the mean of the given images outside the update"


def _reid(scored: Sequence[Scores], truths: Sequence[Truth], public: Truth | None) -> dict[str, Json]:
    """By pixels, among the given images and then the public ones, by their patients."""
    gallery = [*truths, *([public] if public is not None else [])]
    targets, others = _together(truths), _together(gallery)
    pictures = [
        torch.full(truth.images.shape, 0.5, dtype=torch.float64) if scores.images is None else scores.images
        for scores, truth in zip(scored, truths, strict=True)
    ]
    ranks = re_identification(torch.cat(pictures), targets, others)
    if not ranks.is_measurable:
        held = max(int((others.labels == label).sum()) for label in targets.labels)
        words = f"not measurable (gallery of {held} images of a class, {MIN_GALLERY} are needed)"
        return {"rank1": None, "rank5": None, "gallery": held, "words": words}
    first, fifth = ranks.within(1), ranks.within(5)
    return {
        "rank1": first.value,
        "rank1_interval": [first.interval.low, first.interval.high],
        "rank5": fifth.value,
        "gallery": ranks.gallery,
        "words": ranks.words,
    }


def _outside(truth: Truth, truths: Sequence[Truth]) -> Tensor:
    """The images of patients that have none in this batch."""
    own = {truth.patient(place) for place in range(len(truth.images))}
    return torch.cat([one.images[[one.patient(p) not in own for p in range(len(one.images))]] for one in truths])


def _together(truths: Sequence[Truth]) -> Truth:
    known = all(one.patients for one in truths)
    return Truth(
        torch.cat([one.images.float() for one in truths]),
        torch.cat([one.labels for one in truths]),
        tuple(patient for one in truths for patient in one.patients) if known else (),
    )


def _per_image(attacked: Sequence[Attacked], figures: Figures) -> list[Json]:
    places: list[tuple[int, int]] = []
    for batch, one in enumerate(attacked):
        places += [(batch, label) for label in (one.truth.labels.tolist() if one.truth is not None else [])]
    rows: list[Json] = []
    for image, (batch, label) in enumerate(places):
        row: dict[str, Json] = {"image": image, "batch": batch, "label": label}
        for kind, values in (("", figures.measured), ("null_", figures.null), ("baseline_", figures.baseline)):
            row |= {f"{kind}{name}": _finite(float(values[name][image])) for name in _MEASURES}
        rows.append(row)
    return rows


def _joined(scored: Sequence[Scores], name: str) -> Floats:
    return np.concatenate([getattr(one, name) for one in scored])


def _count(truths: Sequence[Truth]) -> int:
    return sum(len(truth.images) for truth in truths)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of what was measured."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _interval(found: Interval, form: str, *, alone: bool = False) -> str:
    if math.isnan(found.value):
        return "not measurable"
    bounds = "" if alone or math.isnan(found.low) else f"\n({found.low:{form}} to {found.high:{form}})"
    return f"{found.value:{form}}{bounds}"
