"""``fedveil bench secagg``: our secure sum, and Flower's own functions in the same run.

Each is measured in a process of its own with one thread (``secagg_own``, ``secagg_flower``); the two take turns, and a
figure is the median over the turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.backends.openssl import backend

from ...utils.errors import ConfigError
from ...utils.secure_sum.terms import Suite

FLOWER_SCRIPT = Path(__file__).with_name("secagg_flower.py")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
LEAST_ENVOYS = 3
ROWS = {  # key: what the table calls it, decimal places
    "client_cpu_s": ("client: quantise, mask, hash; CPU-s", 3),
    "client_mask_cpu_s": ("client: without the hash; CPU-s", 3),
    "client_control_cpu_s": ("client: all else; CPU-s", 4),
    "extra_memory_mb": ("client: memory above the input; MB", 1),
    "wire_bytes_per_parameter": ("upload; bytes a parameter", 2),
    "control_bytes": ("control up; bytes a site", 0),
    "control_bytes_down": ("control down; bytes a site", 0),
    "director_cpu_s": ("director: sum, unmask, decode; CPU-s", 3),
    "director_control_cpu_s": ("director: all else; CPU-s", 4),
    "director_cpu_s_per_dropout": ("director: each drop-out; CPU-s", 3),
}
COMPARED = ("client_cpu_s", "client_mask_cpu_s", "extra_memory_mb", "director_cpu_s", "director_cpu_s_per_dropout")
"""Of which the ratio is told; Flower hashes nothing, so that both our client figures stand against its one."""

PRIMITIVES = {
    "key_pair": "a key pair",
    "seal": "sealing one box",
    "open_box": "opening it",
    "split": "splitting a secret",
    "combine": "combining it",
}
Figures = Mapping[str, Any]
"""As a process printed them: numbers and text, ``primitives_us`` by name."""


@dataclass(frozen=True, slots=True)
class SecaggCost:
    """One case."""

    params: int
    envoys: int
    suite: Suite
    repeats: int
    turns: int
    own: Figures
    flower: Figures | None
    machine: Mapping[str, str]


def measure_secagg(
    params: int, envoys: int, *, suite: Suite, flower: Path | None = None, repeats: int = 5, turns: int = 1
) -> SecaggCost:
    """Measure ours and, where the Python of an environment with flwr is given, theirs.

    Args:
        params: numbers in the vector.
        envoys: in the sum.
        suite: of ours.
        flower: that Python.
        repeats: of each timed part, in each turn.
        turns: ours, theirs, ours, theirs, ...

    Raises:
        ConfigError: too few envoys, or a process failed; says what it said last.
    """
    if params < 1 or envoys < LEAST_ENVOYS or repeats < 1 or turns < 1:
        raise ConfigError(f"{params} parameters, {envoys} envoys: a sum needs {LEAST_ENVOYS} envoys and a parameter")
    machine = {
        "processor": platform.machine(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cryptography": version("cryptography"),
        "openssl": backend.openssl_version_text(),
    }
    own, theirs = [], []
    for _ in range(turns):
        words = ["-m", f"{__package__}.secagg_own", str(params), str(envoys), str(repeats), suite.value]
        own.append(_run([sys.executable, *words]))
        if flower:
            words = ["-I", str(FLOWER_SCRIPT), str(params), str(envoys), str(repeats)]
            theirs.append(_run([str(flower), *words]))
    return SecaggCost(params, envoys, suite, repeats, turns, _median(own), _median(theirs) if theirs else None, machine)


def as_json(cost: SecaggCost) -> dict[str, object]:
    """Our figures at the top, Flower's and the ratios below."""
    shown: dict[str, object] = {
        "params": cost.params,
        "envoys": cost.envoys,
        "suite": cost.suite.value,
        "repeats": cost.repeats,
        "turns": cost.turns,
        **cost.own,
    }
    shown["flower"] = dict(cost.flower) if cost.flower else None
    shown["times_flower"] = {key: ratio for key in COMPARED if (ratio := _ratio(cost, key)) is not None}
    shown["machine"] = dict(cost.machine)
    return shown


def as_markdown(cost: SecaggCost) -> Iterator[str]:
    """The table: ours, Flower's, and how many times ours Flower's is."""
    version_of = f"Flower {cost.flower['version']}" if cost.flower else "Flower"
    yield f"| {cost.params:,} parameters, {cost.envoys} envoys, {cost.suite.value} | ours | {version_of} | times ours |"
    yield "|---|---|---|---|"
    for key, (name, places) in ROWS.items():
        theirs, ratio = _theirs(cost, key), _ratio(cost, key)
        times = "" if ratio is None else f"{ratio:.1f}"
        yield f"| {name} | {_shown(cost.own.get(key), places)} | {_shown(theirs, places)} | {times} |"
    for key, name in PRIMITIVES.items():
        yield f"| {name}; CPU-us | {_shown(cost.own['primitives_us'][key], 0)} | | |"


def _theirs(cost: SecaggCost, key: str) -> Any:
    if cost.flower is None:
        return None
    return cost.flower.get("client_cpu_s" if key == "client_mask_cpu_s" else key)


def _ratio(cost: SecaggCost, key: str) -> float | None:
    ours, theirs = cost.own.get(key), _theirs(cost, key)
    return theirs / ours if key in COMPARED and theirs and ours and ours > 0 else None


def _shown(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:,.{places}f}"


def _median(turns: list[Any]) -> Any:
    """Of numbers; of tables entry by entry; of text the first."""
    first = turns[0]
    if isinstance(first, dict):
        return {key: _median([turn[key] for turn in turns]) for key in first}
    return statistics.median(turns) if isinstance(first, float | int) else first


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ConfigError(f"{command[0]} ended with {done.returncode}; it said: {last}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures
