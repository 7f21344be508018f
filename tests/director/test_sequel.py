from __future__ import annotations

from dataclasses import replace

from fedveil.director import rounds
from fedveil.director.experiments import ExperimentSettings, RoundSettings, StopSettings
from fedveil.director.records import Ending, RunState
from fedveil.director.rounds import Round, RoundState
from fedveil.director.sequel import after_close, after_failure, with_refusals
from fedveil.director.sum_settings import SecureAggregation
from fedveil.utils.messages import TaskKind, TaskRef

REF = TaskRef("toy-1", 2, 1, "0" * 64)
SETTINGS = ExperimentSettings(
    name="toy",
    plan="plan",
    rounds=RoundSettings(max_rounds=3, min_participants=1, max_attempts=2),
    secure_aggregation=SecureAggregation.OFF,
)


def over(state: RoundState, kind: TaskKind = TaskKind.TRAIN, **values: object) -> Round:
    return Round(REF, kind, 0.0, state=state, **values)


def test_another_round_follows_until_the_stop_rule_speaks():
    following, ending = after_close(SETTINGS, over(RoundState.CLOSED), [{}, {}], 0.0, 9.0)
    assert ending is None
    assert (following.ref.round, following.ref.attempt, following.kind, following.since) == (3, 1, TaskKind.TRAIN, 9.0)


def test_the_last_round_is_followed_by_an_evaluation_that_remembers_why_the_run_ends():
    last = replace(over(RoundState.CLOSED), ref=replace(REF, round=3))
    following, ending = after_close(SETTINGS, last, [{}, {}, {}], 0.0, 9.0)
    assert ending is None
    assert following.kind is TaskKind.EVALUATE
    assert following.reason.startswith("max_rounds")
    evaluated = replace(over(RoundState.CLOSED, TaskKind.EVALUATE), reason=following.reason)
    assert after_close(SETTINGS, evaluated, [], 0.0, 9.0) == (None, Ending(RunState.FINISHED, following.reason))


def test_without_a_final_evaluation_the_run_ends_at_once():
    settings = replace(SETTINGS, rounds=replace(SETTINGS.rounds, final_evaluation=False))
    last = replace(over(RoundState.CLOSED), ref=replace(REF, round=3))
    following, ending = after_close(settings, last, [{}, {}, {}], 0.0, 9.0)
    assert following is None
    assert ending.state is RunState.FINISHED


def test_patience_ends_a_run_before_its_last_round():
    settings = replace(
        SETTINGS, rounds=replace(SETTINGS.rounds, max_rounds=9), stop=StopSettings(metric="auc", patience=1)
    )
    following, _ = after_close(settings, over(RoundState.CLOSED), [{"auc": 0.9}, {"auc": 0.9}], 0.0, 9.0)
    assert following.kind is TaskKind.EVALUATE
    assert following.reason.startswith("patience")


def test_a_failed_round_is_tried_again_and_then_fails_the_run():
    before = over(RoundState.COLLECTING)
    failed = rounds.fail(before, "too few")
    following, ending = after_failure(SETTINGS, before, failed, 5.0)
    assert (following.ref.round, following.ref.attempt, ending) == (2, 2, None)
    second = replace(failed, ref=replace(REF, attempt=2))
    following, ending = after_failure(SETTINGS, before, second, 5.0)
    assert following is None
    assert ending == Ending(RunState.FAILED, "round 2 (attempt 2) of toy-1: too few")


def test_a_final_evaluation_that_fails_leaves_the_run_finished():
    before = over(RoundState.COLLECTING, TaskKind.EVALUATE, reason="max_rounds: 3")
    failed = replace(rounds.fail(before, "too few"), ref=replace(REF, attempt=2))
    _, ending = after_failure(SETTINGS, before, failed, 5.0)
    assert ending == Ending(RunState.FINISHED, "max_rounds: 3; without final evaluation: too few")


def test_only_what_declined_envoys_said_is_quoted():
    failed = rounds.fail(over(RoundState.OPEN, cohort=frozenset("ab"), declined=frozenset("a")), "too few")
    assert with_refusals(failed, {"a": "a: PlanError", "b": "b: late"}).reason == "too few (a: PlanError)"
    assert with_refusals(failed, {}) == failed
