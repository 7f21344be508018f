"""``fedveil bench private-codec``: rows, the table made of them, and where the table goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...gradient_leakage.confidence import Interval
from .auc_intervals import auc_difference
from .marked_text import put_between_markers
from .private_accounting import Steps
from .private_codec import NON_PRIVATE, PLAIN, Comparison, PrivateRow

TABLE = "private-codec"
"""The name of the table's place in a page."""
_GALLERY = 100  # equally likely images, of which a bound is told


def bench_private_codec(out: Path, data: Path | None, json_file: Path | None, page: Path | None) -> Iterator[str]:
    """Measure what is missing; a line for each row as it comes, then the table.

    Args:
        out: keeps plan, models, codecs and rows.
        data: the images; by default the demo's.
        json_file: takes the rows.
        page: takes the table.

    Raises:
        ConfigError: the extra ``dp`` is not installed.
        DatasetError: no images.
        StorageError: the page has no place for the table.
    """
    import torch

    torch.set_num_threads(1)
    comparison, rows = Comparison(out, data), []
    for row in comparison.rows():
        rows.append(row)
        yield f"{row.arm}, epsilon {row.epsilon}, seed {row.seed}: AUC {row.auc:.4f}, {row.cpu_seconds} CPU-s"
    lines = list(as_markdown(rows, comparison.test_labels, comparison.steps))
    yield from lines
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    if page is not None:
        put_between_markers(page, TABLE, lines)


def as_markdown(rows: Sequence[PrivateRow], labels: NDArray[np.int64], steps: Steps) -> Iterator[str]:
    """The table; differences in points, which are hundredths of AUC.

    Args:
        rows: each arm's with the same seeds in the same order, the non-private run's among them.
        labels: of the test images.
        steps: of each site, for the cross-check and the bound.
    """
    by_arm: dict[tuple[str, float | None], list[PrivateRow]] = {}
    for row in rows:
        by_arm.setdefault((row.arm, row.epsilon), []).append(row)
    head = ("arm", "epsilon", "by Renyi", "noise", "numbers", "clip", "AUC", "points lost [95 %]")
    yield f"| {' | '.join((*head, 'over DP-SGD [95 %]', '1 of 100'))} |"
    yield f"|{'---|' * (len(head) + 2)}"
    base = _scores(by_arm[NON_PRIVATE, None])
    for (arm, epsilon), own in by_arm.items():
        one, scores = own[0], _scores(own)
        lost = "" if arm == NON_PRIVATE else _points(auc_difference(labels, scores, base))
        private = "| | | |"
        gained = bound = ""
        if epsilon is not None:
            noise = one.noise_multiplier
            private = f"| {epsilon:g} | {steps.renyi_epsilon(noise):.2f} | {noise:.3f} |"
            bound = f"{100 * steps.reconstruction_bound(noise, 1 / _GALLERY):.0f} %"
            plain = by_arm.get((PLAIN, epsilon), own)
            gained = "" if plain is own else _points(auc_difference(labels, _scores(plain), scores))
        size = "all" if one.code_size is None else str(one.code_size)
        clip = "" if one.max_norm is None else f"{one.max_norm:g}"
        auc = np.mean([row.auc for row in own])
        yield f"| {arm} {private} {size} | {clip} | {auc:.4f} | {lost} | {gained} | {bound} |"


def _scores(rows: Sequence[PrivateRow]) -> list[tuple[float, ...]]:
    return [row.scores for row in rows]


def _points(found: Interval) -> str:
    return f"{100 * found.value:.2f} [{100 * found.low:.2f}, {100 * found.high:.2f}]"
