"""One privacy report of a federation: from its sites' (``envoy privacy report --json``), or as the director knows it.

A site's epsilon is that of its own patients, so a federation's is the worst of them and never their sum, as long as
nobody is a patient of two sites: such a patient's epsilons add up, and no site can know it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..director.privacy_report import of_run
from ..envoy.privacy_report import SCHEMA, as_lines
from ..utils.errors import ConfigError

__all__ = ["as_lines", "combined", "of_run", "read_report"]

_MAX_BYTES = 16 << 20
_NEEDED = ("total_epsilon", "delta", "unit", "participants", "secure_aggregation", "leakage_score", "datasets")


def read_report(path: Path) -> dict[str, Any]:
    """A site's report.

    Raises:
        ConfigError: it is none.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than any privacy report")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or any(key not in found for key in _NEEDED):
        raise ConfigError(f"{path} is no privacy report; a site writes one with: envoy privacy report --json")
    return found


def combined(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The report of all sites, by a name for each.

    Raises:
        ConfigError: no report, or they count different units or deltas, whose epsilons cannot be compared.
    """
    if not reports:
        raise ConfigError("give at least one site's report")
    for key in ("unit", "delta"):
        said = {str(one[key]) for one in reports.values() if one[key] is not None}
        if len(said) > 1:
            raise ConfigError(
                f"the sites' reports are of different {key}s, {', '.join(sorted(said))}: show each by itself"
            )
    worst = max(reports.values(), key=_severity)
    sums = [one["secure_aggregation"] for one in reports.values()]
    scores = [one["leakage_score"] for one in reports.values() if one["leakage_score"] is not None]
    return {
        **{key: worst.get(key) for key in ("total_epsilon", "delta", "unit", "adjacency", "mechanism", "accountant")},
        "participants": max(len(reports), *(int(one["participants"]) for one in reports.values())),
        "sites": {
            name: {"total_epsilon": one["total_epsilon"], "delta": one["delta"], "unit": one["unit"]}
            for name, one in reports.items()
        },
        "secure_aggregation": {
            "state": _state([one["state"] for one in sums]),
            **{key: sum(int(one[key]) for one in sums) for key in ("masked", "in_clear", "metrics_in_clear")},
        },
        "leakage_score": max(scores, default=None),
        "attack_used": next((one["attack_used"] for one in reports.values() if one.get("attack_used")), None),
        "suppressed_cells": None,
    }


def _severity(one: Mapping[str, Any]) -> float:
    return float("inf") if one["total_epsilon"] is None else float(one["total_epsilon"])


def _state(states: Sequence[str]) -> str:
    """Of all sites: "all" where every answer of every site was masked."""
    said = [state for state in states if state != "none left"]
    return "none left" if not said else said[0] if len(set(said)) == 1 else "some"
