"""Our round beside the floor, case by case, in turn: the ratio holds although the machine's speed drifts."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ... import __path__ as _package_path
from .round import RoundCost, measure_round

FLOOR = Path(next(iter(_package_path))).resolve().parent / "shared" / "tools" / "floor_round.py"
"""The floor's script, where there is one: not part of this project."""


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    mb: float
    envoys: int
    rounds: int
    repeats: int


CASES = (
    Case(0.4, 8, 20, 3),
    Case(40, 2, 12, 3),
    Case(40, 4, 12, 3),
    Case(40, 8, 12, 3),
    Case(40, 32, 5, 1),
    Case(400, 2, 12, 2),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """Medians over the repeats of one case; the floor's are None where its script is not there."""

    case: Case
    ours: dict[str, float]
    floor: dict[str, float] | None


def compare(case: Case, floor: Path | None) -> Compared:
    """Measure one case, the floor and ours in turn."""
    ours, floors = [], []
    for _ in range(case.repeats):
        if floor is not None:
            floors.append(_floor(floor, case))
        ours.append(measure_round(case.mb, case.envoys, case.rounds))
    return Compared(case, _median_of([_figures(one) for one in ours]), _median_of(floors) if floors else None)


def as_markdown(rows: list[Compared]) -> Iterator[str]:
    """The table, with what it was measured on."""
    yield f"Python {platform.python_version()}, grpcio {version('grpcio')}, {platform.machine()}"
    yield ""
    yield (
        "| model, envoys | round s | floor | ratio | director CPU-s | floor | ratio"
        " | envoys CPU-s | floor (with start-up) | director MB | floor |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        ours, floor = row.ours, row.floor or {}
        cells = [f"{row.case.mb:g} MB, {row.case.envoys}"]
        for key in ("round_s_median", "server_cpu_s_per_round"):
            cells.append(f"{ours[key]:.3f}")
            cells += [f"{floor[key]:.3f}", f"{ours[key] / floor[key]:.2f}"] if floor else ["-", "-"]
        cells.append(f"{ours['envoy_cpu_s_per_round']:.3f}")
        cells.append(f"{floor['client_cpu_s_per_round_all']:.3f}" if floor else "-")
        cells += [f"{ours['server_peak_mb']:.0f}", f"{floor['server_peak_mb']:.0f}" if floor else "-"]
        yield f"| {' | '.join(cells)} |"


def _figures(cost: RoundCost) -> dict[str, float]:
    return {
        "round_s_median": cost.round_s_median,
        "server_cpu_s_per_round": cost.server_cpu_s_per_round,
        "envoy_cpu_s_per_round": cost.envoy_cpu_s_per_round,
        "server_peak_mb": cost.server_peak_mb,
        "envoy_peak_mb": cost.envoy_peak_mb,
    }


def _floor(script: Path, case: Case) -> dict[str, float]:
    command = [sys.executable, str(script), "--mb", str(case.mb), "--envoys", str(case.envoys)]
    done = subprocess.run([*command, "--rounds", str(case.rounds)], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _median_of(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}
