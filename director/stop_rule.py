"""When a run has had enough rounds, and why: the reason is recorded with the run.

Pure: seconds are an argument. The metrics of round r come from the model that *entered* round r (each site
evaluates it before it trains), so "no better for three rounds" is known one round after it became true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ..utils.errors import ConfigError


class Mode(Enum):
    """Which way a metric is better."""

    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class StopRule:
    """Ends a run at the first of: rounds, patience with a federated metric, time.

    Raises:
        ConfigError: out of range, or a key of patience without the others.
    """

    max_rounds: int
    metric: str | None = None  # federated, by the name that the plan gives it
    mode: Mode = Mode.MAX
    patience: int | None = None  # rounds without improvement
    min_delta: float = 0.0  # an improvement is more than this, in the metric's units
    wall_clock_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ConfigError(f"max_rounds is {self.max_rounds}, expected at least 1")
        if (self.metric is None) != (self.patience is None):
            given, absent = ("patience", "metric") if self.metric is None else ("metric", "patience")
            raise ConfigError(f"{given} is given without {absent}; give both or neither")
        if self.patience is None and (self.min_delta or self.mode is not Mode.MAX):
            raise ConfigError("min_delta and mode say nothing without metric and patience; give these too")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience is {self.patience}, expected at least 1")
        if not 0 <= self.min_delta < math.inf:
            raise ConfigError(f"min_delta is {self.min_delta:g}, expected at least 0")
        if self.wall_clock_seconds is not None and not self.wall_clock_seconds > 0:
            raise ConfigError(f"wall_clock_seconds is {self.wall_clock_seconds:g}, expected more than 0")


def verdict(rule: StopRule, closed_rounds: int, history: Sequence[Mapping[str, float]], seconds: float) -> str | None:
    """Why the run ends now, or None if it goes on.

    Args:
        rule: the run's.
        closed_rounds: training rounds that are closed.
        history: the federated metrics of each of them, from round 1 on. A round in which the metric could not be
            computed counts neither for nor against patience.
        seconds: since the run's first round was planned.
    """
    if closed_rounds >= rule.max_rounds:
        return f"max_rounds: {_count(closed_rounds)} closed"
    if rule.metric is not None and rule.patience is not None:
        reason = _out_of_patience(rule, rule.metric, rule.patience, history)
        if reason is not None:
            return reason
    if rule.wall_clock_seconds is not None and seconds >= rule.wall_clock_seconds:
        return f"wall_clock: {seconds:.0f} s of {rule.wall_clock_seconds:g} s are over, {_count(closed_rounds)} closed"
    return None


def _out_of_patience(rule: StopRule, metric: str, patience: int, history: Sequence[Mapping[str, float]]) -> str | None:
    sign = 1.0 if rule.mode is Mode.MAX else -1.0
    best, best_round, waited = -math.inf, 0, 0
    for number, metrics in enumerate(history, start=1):
        value = sign * metrics.get(metric, math.nan)
        if not math.isfinite(value):
            continue
        if value > best + rule.min_delta:
            best, best_round, waited = value, number, 0
        else:
            waited += 1
    if waited < patience:
        return None
    by = f" by more than {rule.min_delta:g}" if rule.min_delta else ""
    rounds = "round" if waited == 1 else "rounds"
    return f"patience: {metric} did not improve{by} over {sign * best:.4g} (round {best_round}) for {waited} {rounds}"


def _count(rounds: int) -> str:
    return "1 round is" if rounds == 1 else f"{rounds} rounds are"
