"""``[aggregation_config]`` of ``experiment.toml``: the four settings of a round in the words that other APIs use.

Each stands for a native one and says the same: whoever gives both must not contradict themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..utils.errors import ConfigError

_SECONDS = 60.0


class AggregationMethod(Enum):
    """How updates become one."""

    SECURE_SUM = "secure_sum"  # of all sites: nobody sees one site's update


@dataclass(frozen=True, slots=True)
class AggregationConfig:
    """The table ``[aggregation_config]``; its ranges are those of the settings that it stands for."""

    min_participants: int | None = None  # rounds.min_participants
    aggregation_method: AggregationMethod | None = None  # secure_aggregation = "required"
    timeout_minutes: float | None = None  # rounds.round_timeout_seconds, in minutes
    max_rounds: int | None = None  # rounds.max_rounds


def spelled_out(document: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's settings with what ``aggregation_config`` stands for in its native place.

    What is not of the right type is left for whoever reads the settings to refuse.

    Raises:
        ConfigError: the two contradict each other; both are named.
    """
    said = document.get("aggregation_config")
    rounds = document.get("rounds", {})
    if not isinstance(said, Mapping) or not isinstance(rounds, Mapping):
        return dict(document)
    whole, native = dict(document), dict(rounds)
    for key in ("min_participants", "max_rounds"):
        if _is_number(said.get(key)):
            _put(native, key, said[key], f"aggregation_config.{key}", f"rounds.{key}")
    if _is_number(said.get("timeout_minutes")):
        seconds = said["timeout_minutes"] * _SECONDS
        _put(
            native,
            "round_timeout_seconds",
            seconds,
            f"aggregation_config.timeout_minutes ({seconds:g} s)",
            "rounds.round_timeout_seconds",
        )
    if said.get("aggregation_method") == AggregationMethod.SECURE_SUM.value:
        _put(whole, "secure_aggregation", "required", "aggregation_config.aggregation_method", "secure_aggregation")
    if native or "rounds" in document:
        whole["rounds"] = native
    return {"aggregation_config": said} | whole


def _put(table: dict[str, Any], key: str, value: Any, mine: str, native: str) -> None:
    """Set a native key, or see that it says the same already."""
    if key in table and table[key] != value:
        raise ConfigError(f"{mine} and {native} contradict each other; give one of the two, or the same in both")
    table[key] = value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
