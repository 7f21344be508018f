"""When a run ends, and the reason that is recorded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fedveil.director.stop_rule import Mode, StopRule, verdict
from fedveil.utils.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st


def history(*values: float, metric: str = "auc") -> list[dict[str, float]]:
    return [{metric: value} for value in values]


def first_stop(rule: StopRule, values: Sequence[float]) -> int | None:
    """The round after which the rule first ends the run."""
    return next((n for n in range(1, len(values) + 1) if verdict(rule, n, history(*values[:n]), 0.0) is not None), None)


def test_a_run_ends_after_its_rounds() -> None:
    rule = StopRule(max_rounds=10)
    assert verdict(rule, 9, [], 1e9) is None
    assert verdict(rule, 10, [], 0.0) == "max_rounds: 10 rounds are closed"
    assert verdict(StopRule(1), 1, [], 0.0) == "max_rounds: 1 round is closed"


def test_a_run_ends_when_a_metric_no_longer_improves() -> None:
    rule = StopRule(100, metric="auc", patience=3, min_delta=0.001)
    values = [0.8, 0.9, 0.95, 0.961, 0.9615, 0.9, 0.9611]
    assert first_stop(rule, values) == 7
    assert (
        verdict(rule, 7, history(*values), 0.0)
        == "patience: auc did not improve by more than 0.001 over 0.961 (round 4) for 3 rounds"
    )


def test_a_loss_improves_downwards() -> None:
    rule = StopRule(100, metric="loss", mode=Mode.MIN, patience=1)
    assert verdict(rule, 2, history(2.0, 1.0, metric="loss"), 0.0) is None
    assert (
        verdict(rule, 3, history(2.0, 1.0, 1.0, metric="loss"), 0.0)
        == "patience: loss did not improve over 1 (round 2) for 1 round"
    )


def test_an_improvement_of_exactly_min_delta_is_none() -> None:
    rule = StopRule(100, metric="auc", patience=1, min_delta=0.5)
    assert verdict(rule, 2, history(0.0, 0.5), 0.0) is not None
    assert verdict(rule, 2, history(0.0, 0.75), 0.0) is None


def test_small_improvements_add_up() -> None:
    rule = StopRule(100, metric="auc", patience=2, min_delta=0.1)
    assert first_stop(rule, [0.5, 0.56, 0.62, 0.68, 0.74]) is None


def test_rounds_without_the_metric_count_neither_way() -> None:
    rule = StopRule(100, metric="auc", patience=2)
    rounds = [{"auc": 0.9}, {}, {"loss": 1.0}, {"auc": float("nan")}, {"auc": 0.9}]
    assert verdict(rule, 5, rounds, 0.0) is None
    assert verdict(rule, 6, [*rounds, {"auc": 0.8}], 0.0) is not None


def test_a_run_ends_when_its_time_is_over() -> None:
    rule = StopRule(100, wall_clock_seconds=600)
    assert verdict(rule, 7, [], 599.9) is None
    assert verdict(rule, 7, [], 612.2) == "wall_clock: 612 s of 600 s are over, 7 rounds are closed"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 5), st.floats(0, 0.3))
def test_patience_ends_a_run_at_the_first_dry_spell(values: list[float], patience: int, min_delta: float) -> None:
    rule = StopRule(1000, metric="auc", patience=patience, min_delta=min_delta)
    best, since = values[0], 0
    expected = None
    for number, value in enumerate(values[1:], start=2):
        best, since = (value, 0) if value > best + min_delta else (best, since + 1)
        if since == patience:
            expected = number
            break
    assert first_stop(rule, values) == expected


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"max_rounds": 0}, "max_rounds is 0"),
        ({"max_rounds": 5, "patience": 2}, "patience is given without metric"),
        ({"max_rounds": 5, "metric": "auc"}, "metric is given without patience"),
        ({"max_rounds": 5, "metric": "auc", "patience": 0}, "patience is 0"),
        ({"max_rounds": 5, "min_delta": 0.1}, "min_delta and mode say nothing"),
        ({"max_rounds": 5, "mode": Mode.MIN}, "min_delta and mode say nothing"),
        ({"max_rounds": 5, "metric": "auc", "patience": 1, "min_delta": -0.1}, "min_delta is -0.1"),
        ({"max_rounds": 5, "wall_clock_seconds": 0.0}, "wall_clock_seconds is 0"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        StopRule(**keys)  # type: ignore[arg-type]
