"""What happened to runs and rounds: exact, atomic, and free of single sites' values once a round is over."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fedveil.director import rounds
from fedveil.director.database import open_database, reading, transaction
from fedveil.director.history import Ending, History, RoundRecord, RunRecord, RunState, SubmissionRecord
from fedveil.director.records import GroupRecord, Published, SumRecord
from fedveil.director.rounds import Round, RoundPolicy, RoundState
from fedveil.utils.errors import DuplicateUpdateError, MalformedMessageError, ProtocolError
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.metrics import MetricSum, auc_of, mean_of
from fedveil.utils.privacy.values import PublishedEpsilon, Unit
from fedveil.utils.tensors import Digest, digest_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

PLAN, LAYOUT, MODEL, NEXT_MODEL, ADAM = (digest_of(name) for name in (b"plan", b"layout", b"m0", b"m1", b"adam"))
REF = TaskRef(RunId("run-1"), 1, 1, PLAN)
FIRST = Round(REF, TaskKind.TRAIN, since=10.0)
RUN = RunRecord(
    run=REF.run,
    name="Pneumonia, ünïcode",
    state=RunState.QUEUED,
    settings="[stop]\nmax_rounds = 2\n",
    plan=PLAN,
    layout=LAYOUT,
    seed=bytes(range(224, 256)),
    submitted_at=1.25,
    started_at=None,
    ended_at=None,
    reason="",
    model=MODEL,
)
A, B, C = EnvoyName("site-a"), EnvoyName("site-b"), EnvoyName("site-c")
POLICY = RoundPolicy(min_participants=2, timeout_seconds=60)
LOSS = (mean_of("loss", 0.1 + 0.2, 3), auc_of("auc", [0.1, 0.9], [0, 1]))


@pytest.fixture
def history(engine: Engine) -> History:
    return History(engine)


def answer(envoy: EnvoyName, ref: TaskRef = REF, metrics: tuple[MetricSum, ...] = LOSS) -> SubmissionRecord:
    return SubmissionRecord(ref, envoy, digest_of(envoy.encode()), 1 << 40, 77, metrics, spool=f"{envoy}.f32")


def begin(history: History) -> Round:
    """A run whose first round is open for two sites."""
    history.enqueue(RUN)
    history.start_run(RUN.run, 10.0, FIRST)
    opened = rounds.open_round(FIRST, frozenset([A, B]), POLICY, now=11.0)
    history.save_round(opened, 11.0)
    return opened


def collect(history: History) -> Round:
    """Both sites answered, and the set of answers is fixed."""
    this = begin(history)
    for envoy in (B, A):
        this = rounds.receive(this, REF, envoy)
        history.add_submission(answer(envoy), this)
    this = rounds.due(this, POLICY, 12.0)
    history.save_round(this, 12.0)
    return this


def close(history: History, this: Round, next_round: Round | None, ending: Ending | None = None) -> None:
    history.close_round(
        this,
        model_out=NEXT_MODEL,
        metrics=LOSS,
        optimizer_state=ADAM,
        num_examples=154,
        now=13.5,
        next_round=next_round,
        ending=ending,
    )


def test_a_run_comes_back_as_it_was_submitted_and_in_that_order(history: History) -> None:
    later = replace(RUN, run=RunId("a-run"), submitted_at=0.5)
    history.enqueue(RUN)
    history.enqueue(later)
    assert history.runs() == (RUN, later)
    assert history.run(RUN.run) == RUN


def test_what_a_site_publishes_of_its_ledger_and_leak_test_stays_when_its_other_values_go(history: History) -> None:
    this, told = begin(history), Published(PublishedEpsilon(1.5, 1e-5, Unit.PATIENT), 0.125)
    for envoy in (A, B):
        this = rounds.receive(this, REF, envoy)
        history.add_submission(replace(answer(envoy), published=told if envoy == A else Published()), this)
    assert [one.published for one in history.submissions(REF)] == [told, Published()]
    close(history, rounds.close(rounds.due(this, POLICY, 12.0)), None, Ending(RunState.FINISHED, "done"))
    assert [one.num_examples for one in history.submissions(REF)] == [0, 0]
    assert history.published(RUN.run) == {(1, 1): {A: told}}


def test_a_secure_sum_leaves_its_record_and_a_run_remembers_whom_it_expelled(history: History) -> None:
    groups = (GroupRecord(2, (A, B), 3, 2, 154, "cd" * 32),)
    record = SumRecord((A, B), 3, 2, 154, "ab" * 32, (0, 7), (8.0, 4.0), (0, 20), groups)
    history.close_round(
        rounds.close(collect(history)),
        model_out=NEXT_MODEL,
        metrics=LOSS,
        optimizer_state=None,
        num_examples=154,
        now=13.5,
        next_round=replace(FIRST, ref=replace(REF, round=2)),
        secure_sum=record,
    )
    history.expel(RUN.run, {B: "B dealt A other shares than it committed to"})
    assert [one.sum for one in history.rounds(RUN.run)] == [record, None]
    assert dict(history.run(RUN.run).expelled) == {B: "B dealt A other shares than it committed to"}


def test_a_run_is_submitted_once_and_an_unknown_one_is_named(history: History) -> None:
    history.enqueue(RUN)
    with pytest.raises(ProtocolError, match="run-1 was submitted before"):
        history.enqueue(RUN)
    with pytest.raises(ProtocolError, match="there is no run nonsense"):
        history.run(RunId("nonsense"))


def test_a_run_keeps_the_groups_that_it_started_with(history: History) -> None:
    history.enqueue(RUN)
    history.start_run(RUN.run, 10.0, FIRST, ((A, B), (C,)))
    assert history.run(RUN.run).groups == ((A, B), (C,))


def test_a_run_starts_once_with_its_first_round_planned_from_its_model(history: History) -> None:
    history.enqueue(RUN)
    history.start_run(RUN.run, 10.0, FIRST)
    assert history.run(RUN.run) == replace(RUN, state=RunState.RUNNING, started_at=10.0)
    planned = RoundRecord(FIRST, MODEL, None, (), None, None, None, 0)
    assert history.rounds(RUN.run) == (planned,)
    assert history.current_round(RUN.run) == planned
    with pytest.raises(ProtocolError, match="not queued"):
        history.start_run(RUN.run, 11.0, replace(FIRST, ref=replace(REF, round=2)))
    assert len(history.rounds(RUN.run)) == 1


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED, RunState.STOPPED])
def test_a_run_ends_once_with_its_reason(history: History, state: RunState) -> None:
    history.enqueue(RUN)
    history.finish_run(RUN.run, Ending(state, "max_rounds = 2"), 20.0)
    ended = replace(RUN, state=state, reason="max_rounds = 2", ended_at=20.0)
    assert history.run(RUN.run) == ended
    with pytest.raises(ProtocolError, match="over already"):
        history.finish_run(RUN.run, Ending(RunState.STOPPED, "again"), 21.0)
    with pytest.raises(ProtocolError, match="not queued"):
        history.start_run(RUN.run, 21.0, FIRST)
    assert history.run(RUN.run) == ended


def test_a_run_does_not_end_as_running() -> None:
    with pytest.raises(ValueError, match="does not end as running"):
        Ending(RunState.RUNNING, "")


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_run_ends_in_the_very_transition_that_ends_its_last_round(history: History, is_closed: bool) -> None:
    this, ending = collect(history), Ending(RunState.FINISHED, "max_rounds = 1")
    if is_closed:
        close(history, rounds.close(this), None, ending)
    else:
        history.fail_round(rounds.fail(this, "stopped"), 30.0, None, ending)
    record = history.run(RUN.run)
    assert (record.state, record.reason, record.ended_at is not None) == (ending.state, ending.reason, True)
    assert history.current_round(RUN.run) is None


def test_traffic_adds_up_beyond_32_bits(history: History) -> None:
    history.enqueue(RUN)
    history.add_traffic(RUN.run, 1 << 40, 7)
    history.add_traffic(RUN.run, 1, 1 << 41)
    assert history.run(RUN.run) == replace(RUN, bytes_up=(1 << 40) + 1, bytes_down=(1 << 41) + 7)


def test_a_round_that_closes_leaves_its_sums_a_new_model_and_the_next_round(history: History) -> None:
    closed = rounds.close(collect(history))
    second = Round(replace(REF, round=2), TaskKind.EVALUATE, since=13.5)
    close(history, closed, second)
    first = RoundRecord(closed, MODEL, NEXT_MODEL, LOSS, ADAM, opened_at=11.0, closed_at=13.5, num_examples=154)
    planned = RoundRecord(second, NEXT_MODEL, None, (), None, None, None, 0)
    assert history.rounds(RUN.run) == (first, planned)
    assert history.current_round(RUN.run) == planned
    assert history.run(RUN.run).model == NEXT_MODEL


def test_an_evaluation_leaves_the_model_as_it_is(history: History) -> None:
    closed = rounds.close(collect(history))
    history.close_round(
        closed, model_out=None, metrics=LOSS, optimizer_state=None, num_examples=0, now=1.0, next_round=None
    )
    assert history.run(RUN.run).model == MODEL
    assert history.current_round(RUN.run) is None


def test_answers_come_back_whole_and_sorted_by_envoy_while_the_round_is_open(history: History) -> None:
    this = collect(history)
    assert history.submissions(REF) == (answer(A), answer(B))
    assert history.current_round(RUN.run).round == this
    assert history.submissions(replace(REF, attempt=2)) == ()


def test_a_closed_round_keeps_receipts_and_no_single_sites_values(history: History) -> None:
    close(history, rounds.close(collect(history)), None)
    assert history.submissions(REF) == tuple(replace(answer(e), num_examples=0, metrics=()) for e in (A, B))


def test_a_failed_round_keeps_no_single_sites_values_and_is_tried_again(history: History) -> None:
    this = begin(history)
    this = rounds.receive(this, REF, A)
    history.add_submission(answer(A), this)
    failed = rounds.due(this, POLICY, now=99.0)
    again = rounds.again(failed, 99.0)
    history.fail_round(failed, 99.0, again)
    first, second = history.rounds(RUN.run)
    assert first == RoundRecord(failed, MODEL, None, (), None, opened_at=11.0, closed_at=99.0, num_examples=0)
    assert second == RoundRecord(again, MODEL, None, (), None, None, None, 0)
    assert history.current_round(RUN.run) == second
    assert history.submissions(REF) == (replace(answer(A), num_examples=0, metrics=()),)


def test_a_run_that_ends_in_mid_round_keeps_no_single_sites_values(history: History) -> None:
    collect(history)
    history.finish_run(RUN.run, Ending(RunState.STOPPED, "stopped by an operator"), 30.0)
    assert [(each.num_examples, each.metrics) for each in history.submissions(REF)] == [(0, ()), (0, ())]


def test_what_is_deleted_is_also_gone_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "director.sqlite"
    engine = open_database(f"sqlite:///{file}", durable=False)
    history = History(engine)
    this = rounds.receive(begin(history), REF, A)
    history.add_submission(answer(A, metrics=(*LOSS, mean_of("zebra", 0.125, 1))), this)

    def bytes_on_disk() -> bytes:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.rollback()
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert b"zebra" in bytes_on_disk()
    history.fail_round(rounds.fail(this, "stopped"), 12.0, None)
    assert b"zebra" not in bytes_on_disk()
    engine.dispose()


def test_a_number_that_no_database_holds_is_refused_and_changes_nothing(history: History) -> None:
    this = begin(history)
    with pytest.raises(MalformedMessageError, match="beyond 63 bits"):
        history.add_submission(replace(answer(A), num_examples=1 << 63), rounds.receive(this, REF, A))
    assert history.submissions(REF) == ()
    assert history.current_round(RUN.run).round == this


def test_a_second_answer_of_one_envoy_is_refused_and_changes_nothing(history: History) -> None:
    this = rounds.receive(begin(history), REF, A)
    history.add_submission(answer(A), this)
    with pytest.raises(DuplicateUpdateError, match="site-a already answered round 1 of run-1"):
        history.add_submission(replace(answer(A), length=5), replace(this, reason="changed"))
    assert history.submissions(REF) == (answer(A),)
    assert history.current_round(RUN.run).round == this


def test_an_answer_goes_with_the_round_that_has_it(history: History) -> None:
    this = begin(history)
    with pytest.raises(ValueError, match="site-a"):
        history.add_submission(answer(A), this)
    with pytest.raises(ValueError, match="site-a"):
        history.add_submission(answer(A, replace(REF, attempt=2)), rounds.receive(this, REF, A))


def test_a_round_that_is_over_does_not_move_again(history: History) -> None:
    this = collect(history)
    closed = rounds.close(this)
    close(history, closed, None)
    before = history.rounds(RUN.run)
    failed = rounds.fail(this, "too late")
    third = rounds.receive(replace(this, state=RoundState.OPEN, received=frozenset([B])), REF, A)
    for move in (
        lambda: history.save_round(this, 99.0),
        lambda: close(history, closed, replace(FIRST, ref=replace(REF, round=2))),
        lambda: history.fail_round(failed, 99.0, rounds.again(failed, 99.0)),
        lambda: history.add_submission(answer(A), third),
    ):
        with pytest.raises(ProtocolError):
            move()
    assert history.rounds(RUN.run) == before


def test_ending_a_round_is_never_done_by_saving_it(history: History) -> None:
    this = collect(history)
    closed, failed = rounds.close(this), rounds.fail(this, "stopped")
    for misuse in (
        lambda: history.save_round(closed, 1.0),
        lambda: history.save_round(failed, 1.0),
        lambda: close(history, this, None),
        lambda: history.fail_round(closed, 1.0, None),
    ):
        with pytest.raises(ValueError, match=REF.run):
            misuse()


def test_a_round_of_no_run_is_refused(history: History) -> None:
    with pytest.raises(ProtocolError, match="there is no run run-1"):
        history.save_round(FIRST, 1.0)


def test_a_round_that_was_not_there_begins_from_the_latest_model(history: History) -> None:
    close(history, rounds.close(collect(history)), None)
    second = Round(replace(REF, round=2), TaskKind.TRAIN, since=14.0)
    history.save_round(second, 14.0)
    assert history.current_round(RUN.run) == RoundRecord(second, NEXT_MODEL, None, (), None, None, None, 0)


def test_a_restart_moves_the_wait_and_not_the_time_of_opening(history: History) -> None:
    this = begin(history)
    resumed = rounds.resume(rounds.lose(this, A), now=500.0)
    history.save_round(resumed, 500.0)
    record = history.current_round(RUN.run)
    assert (record.round, record.opened_at) == (resumed, 11.0)


def test_rounds_come_in_order_of_number_then_attempt(history: History) -> None:
    history.enqueue(RUN)
    history.start_run(RUN.run, 1.0, FIRST)
    for number, attempt in ((10, 1), (2, 11), (2, 2), (2, 1)):
        history.save_round(replace(FIRST, ref=replace(REF, round=number, attempt=attempt)), 1.0)
    places = [(record.round.ref.round, record.round.ref.attempt) for record in history.rounds(RUN.run)]
    assert places == [(1, 1), (2, 1), (2, 2), (2, 11), (10, 1)]


ENVOYS = st.frozensets(st.sampled_from([EnvoyName(f"site-{number}") for number in range(6)]))
ROUNDS = st.builds(
    Round,
    ref=st.just(REF),
    kind=st.sampled_from(TaskKind),
    since=st.floats(0, 1e12),
    state=st.sampled_from([state for state in RoundState if not state.is_over]),
    cohort=ENVOYS,
    received=ENVOYS,
    declined=ENVOYS,
    lost=ENVOYS,
    reason=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)


@given(st.lists(ROUNDS, min_size=1, max_size=5))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_round_is_restored_exactly(history: History, states: list[Round]) -> None:
    run = RunId(f"run-{len(history.runs())}")
    history.enqueue(replace(RUN, run=run))
    for state in states:
        this = replace(state, ref=replace(REF, run=run))
        history.save_round(this, now=5.0)
        record = history.current_round(run)
        assert record.round == replace(this, kind=states[0].kind)
        assert history.rounds(run) == (record,)


class Stopped(Exception):  # noqa: N818
    pass


class StopsBeforeCommit(History):
    """Runs each transition to its last statement, and then loses it."""

    @contextmanager
    def _transition(self, name: str) -> Iterator[Connection]:
        with super()._transition(name) as connection:
            yield connection
            raise Stopped


def test_a_transition_that_is_not_committed_leaves_every_table_as_it_was(history: History, engine: Engine) -> None:
    this = collect(history)
    closed, failed, third = rounds.close(this), rounds.fail(this, "stopped"), EnvoyName("site-c")
    wider = replace(this, state=RoundState.COLLECTING, received=this.received | {third})
    next_round = Round(replace(REF, round=2), TaskKind.TRAIN, since=1.0)
    queued = replace(RUN, run=RunId("run-2"))
    history.enqueue(queued)

    def tables() -> list[object]:
        with reading(engine) as connection:
            return [
                connection.execute(text(f"SELECT * FROM {table}")).all() for table in ("runs", "rounds", "submissions")
            ]

    before, stops = tables(), StopsBeforeCommit(engine)
    for transition in (
        lambda: stops.enqueue(replace(RUN, run=RunId("run-3"))),
        lambda: stops.start_run(queued.run, 1.0, replace(FIRST, ref=replace(REF, run=queued.run))),
        lambda: stops.finish_run(RUN.run, Ending(RunState.FINISHED, ""), 1.0),
        lambda: stops.add_traffic(RUN.run, 1, 1),
        lambda: stops.save_round(wider, 1.0),
        lambda: stops.add_submission(answer(third), wider),
        lambda: close(stops, closed, next_round),
        lambda: close(stops, closed, None, Ending(RunState.FINISHED, "")),
        lambda: stops.fail_round(failed, 1.0, rounds.again(failed, 1.0)),
        lambda: stops.fail_round(failed, 1.0, None, Ending(RunState.FAILED, "")),
    ):
        with pytest.raises(Stopped):
            transition()
        assert tables() == before


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from fedveil.director.database import open_database
from fedveil.director.history import History
from fedveil.director.rounds import close

class Killed(History):
    @contextmanager
    def _transition(self, name):
        with super()._transition(name) as connection:
            yield connection
            if sys.argv[2] == "before":
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

history = Killed(open_database(sys.argv[1], durable=False))
run = history.runs()[0].run
history.close_round(close(history.current_round(run).round), model_out="f" * 64, metrics=(), optimizer_state=None,
                    num_examples=1, now=1.0, next_round=None)
"""


@pytest.mark.parametrize(("moment", "model", "examples"), [("before", MODEL, 77), ("after", Digest("f" * 64), 0)])
def test_kill_9_leaves_the_state_before_a_transition_or_the_state_after_it(
    history: History, database_url: str, moment: str, model: Digest, examples: int
) -> None:
    collect(history)
    killed = subprocess.run([sys.executable, "-c", KILLED, database_url, moment], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert history.run(RUN.run).model == model
    assert [each.num_examples for each in history.submissions(REF)] == [examples, examples]
    assert (history.current_round(RUN.run) is None) == (moment == "after")


def test_nothing_of_a_run_is_kept_without_the_run(engine: Engine) -> None:
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), transaction(engine) as connection:
        connection.execute(
            text("INSERT INTO submissions VALUES ('run-1', 1, 1, 'site-a', 'd', 1, NULL, NULL, '', NULL, NULL)")
        )
