"""``fedveil bench private-patients``: rows, the table made of them, and where the table goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...gradient_leakage.confidence import Interval
from ...utils.errors import DatasetError
from ...utils.privacy.accounting import reported
from ...utils.privacy.events import SampledGaussian
from ...utils.privacy.values import Epsilon, Unit
from ..chest_xrays import Part, data_folders
from .auc_intervals import auc_difference, auc_interval
from .marked_text import put_between_markers
from .private_accounting import Steps
from .private_patients import PatientComparison, PatientRow

TABLE = "private-patients"
"""The name of the table's place in a page."""
_ZIP = Path("chest-xray-pneumonia") / "chest_xray_224_jpeg.zip"


def bench_private_patients(
    out: Path, data: Path | None, json_file: Path | None, page: Path | None, seeds: Sequence[int]
) -> Iterator[str]:
    """Measure what is missing; a line for each row as it comes, then the table.

    Args:
        out: keeps the rows.
        data: the X-rays as a zip or folder whose file names tell the patients; by default those beside the checkout.
        json_file: takes the rows.
        page: takes the table.
        seeds: of the runs.

    Raises:
        ConfigError: the extra ``dp`` is not installed.
        DatasetError: no images.
        StorageError: the page has no place for the table.
    """
    import torch

    torch.set_num_threads(1)
    comparison, rows = PatientComparison(out, data or _xrays()), []
    for row in comparison.rows(seeds):
        rows.append(row)
        yield f"{row.model}, epsilon {row.epsilon}, seed {row.seed}: AUC {row.auc:.4f}, {row.cpu_seconds} CPU-s"
    lines = list(as_markdown(rows, comparison.images.test, comparison.steps))
    yield from lines
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    if page is not None:
        put_between_markers(page, TABLE, lines)


def as_markdown(rows: Sequence[PatientRow], test: Part, steps: Callable[[str], Steps]) -> Iterator[str]:
    """The table; differences in points, which are hundredths of AUC; intervals by patient.

    Args:
        rows: each arm's with the same seeds in the same order, that without privacy among each model's.
        test: whose scores the rows have.
        steps: of each hospital, by the model.
    """
    by_arm: dict[tuple[str, float | None], list[PatientRow]] = {}
    for row in rows:
        by_arm.setdefault((row.model, row.epsilon), []).append(row)
    head = "model | privacy | noise | clip | rate | validation AUC | AUC [95 %] | points lost [95 %]"
    yield f"| {head} |"
    yield "|" + "---|" * (head.count("|") + 1)
    for (model, epsilon), own in by_arm.items():
        one, scores, base = own[0], _scores(own), _scores(by_arm[model, None])
        auc = auc_interval(test.labels, scores, patients=test.groups)
        lost = auc_difference(test.labels, scores, base, patients=test.groups)
        cells = [
            model,
            "none" if epsilon is None else str(epsilon_of(one, steps(model))),
            "" if epsilon is None else f"{one.noise_multiplier:.3f}",
            "" if one.max_norm is None else f"{one.max_norm:g}",
            f"{one.learning_rate:g}",
            f"{np.mean([row.auc_validation for row in own]):.3f}",
            _interval(auc, 1, 3),
            "" if epsilon is None else _interval(lost, 100, 2),
        ]
        yield f"| {' | '.join(cells)} |"


def epsilon_of(row: PatientRow, steps: Steps) -> Epsilon:
    """What the row's run spends of each patient of one hospital, by the ledger's own accountant."""
    mechanism = SampledGaussian(steps.sampling_rate, row.noise_multiplier, steps.count)
    return reported([mechanism], row.delta, Unit(row.unit))


def _scores(rows: Sequence[PatientRow]) -> list[tuple[float, ...]]:
    return [row.scores for row in rows]


def _interval(found: Interval, times: float, digits: int) -> str:
    value, low, high = (f"{times * one:.{digits}f}" for one in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _xrays() -> Path:
    for folder in data_folders():
        if (folder / _ZIP).exists():
            return folder / _ZIP
    raise DatasetError(f"no {_ZIP.name} beside the checkout: name the X-rays with --data")
