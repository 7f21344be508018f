"""A round under any order of events: it only moves forward, and never loses an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fedveil.director.rounds import (
    Round,
    RoundPolicy,
    RoundState,
    Stragglers,
    again,
    check_answer,
    close,
    decline,
    due,
    fail,
    lose,
    open_round,
    receive,
    regain,
    resume,
)
from fedveil.utils.errors import DuplicateUpdateError, NotInvitedError, ProtocolError, WrongRoundError
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.tensors import Digest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

REF = TaskRef(RunId("run-1"), round=3, attempt=1, plan=Digest("0" * 64))
A, B, C, D = (EnvoyName(f"site-{letter}") for letter in "abcd")
STRANGER = EnvoyName("stranger")
TWO = RoundPolicy(min_participants=2, timeout_seconds=60)
TWO_AND_DROP = replace(TWO, stragglers=Stragglers.DROP)
PLANNED = Round(REF, TaskKind.TRAIN, since=100.0)
OPEN = open_round(PLANNED, frozenset({A, B, C}), TWO, now=110.0)

ORDER = [RoundState.PLANNED, RoundState.OPEN, RoundState.COLLECTING, RoundState.AGGREGATING, RoundState.CLOSED]


def after(*events: Callable[[Round], Round], start: Round = OPEN) -> Round:
    for event in events:
        start = event(start)
    return start


def got(envoy: EnvoyName) -> Callable[[Round], Round]:
    return lambda this: receive(this, REF, envoy)


def declined(envoy: EnvoyName) -> Callable[[Round], Round]:
    return lambda this: decline(this, REF, envoy)


def lost(envoy: EnvoyName) -> Callable[[Round], Round]:
    return lambda this: lose(this, envoy)


# The docstring table of ``due``, line by line.


@pytest.mark.parametrize(
    ("this", "policy", "now", "state", "reason"),
    [
        (PLANNED, TWO, 159.9, RoundState.PLANNED, ""),
        (PLANNED, TWO, 160.0, RoundState.FAILED, "fewer than 2 envoys that approved were there for 60 s"),
        (after(got(A), got(B), got(C)), TWO, 111.0, RoundState.AGGREGATING, ""),
        (after(got(A), got(B), declined(C)), TWO, 111.0, RoundState.AGGREGATING, ""),
        (after(got(A), got(B), lost(C)), TWO, 111.0, RoundState.AGGREGATING, ""),
        (after(got(A), got(B)), TWO, 111.0, RoundState.COLLECTING, ""),
        (after(got(A), got(B)), TWO, 170.0, RoundState.AGGREGATING, ""),
        (OPEN, TWO, 169.9, RoundState.OPEN, ""),
        (OPEN, TWO, 170.0, RoundState.FAILED, "0 of 2 answers needed came within 60 s"),
        (after(got(A)), TWO, 170.0, RoundState.FAILED, "1 of 2 answers needed came within 60 s"),
        (after(got(A), declined(B)), TWO, 111.0, RoundState.COLLECTING, ""),
        (after(declined(A), declined(B)), TWO, 111.0, RoundState.FAILED, "2 of 3 envoys declined"),
        (after(got(A), declined(B), declined(C)), TWO, 111.0, RoundState.FAILED, "1 of 2 answers needed"),
        (after(lost(A), lost(B), lost(C)), TWO, 111.0, RoundState.OPEN, ""),
        (after(got(A), got(B)), TWO_AND_DROP, 111.0, RoundState.AGGREGATING, ""),
        (after(got(A)), TWO_AND_DROP, 111.0, RoundState.COLLECTING, ""),
    ],
)
def test_due_does_what_its_table_says(
    this: Round, policy: RoundPolicy, now: float, state: RoundState, reason: str
) -> None:
    then = due(this, policy, now)
    assert then.state is state
    assert reason in then.reason
    if state is this.state:
        assert then is this


def test_nobody_is_dropped_on_account_of_an_update_that_was_withheld() -> None:
    two_of_three = after(got(A), got(B))
    assert due(two_of_three, TWO_AND_DROP, 111.0, withheld=1) is two_of_three
    assert due(after(got(A), got(B), got(C)), TWO_AND_DROP, 111.0, withheld=1).state is RoundState.AGGREGATING
    assert due(after(got(A), got(B), got(C)), TWO_AND_DROP, 111.0, withheld=3).state is RoundState.AGGREGATING
    assert due(two_of_three, TWO_AND_DROP, 1e9, withheld=1).state is RoundState.AGGREGATING  # the sum says what is left


def test_a_whole_round() -> None:
    this = after(got(A), got(B), got(C))
    this = close(due(this, TWO, 120.0))
    assert this.state is RoundState.CLOSED
    assert this.received == {A, B, C}


def test_opening_begins_the_wait_anew() -> None:
    assert OPEN.since == 110.0
    assert OPEN.waiting == {A, B, C}


@pytest.mark.parametrize("this", [OPEN, after(got(A)), fail(OPEN, "stopped")])
def test_only_a_planned_round_is_opened(this: Round) -> None:
    with pytest.raises(ProtocolError, match="only a planned round can be opened"):
        open_round(this, frozenset({A, B}), TWO, 0.0)


def test_a_cohort_below_the_quorum_is_refused() -> None:
    with pytest.raises(ProtocolError, match="a cohort of 1 cannot give 2 answers"):
        open_round(PLANNED, frozenset({A}), TWO, 0.0)


@pytest.mark.parametrize(
    ("this", "ref", "envoy", "error", "words"),
    [
        (OPEN, replace(REF, round=2), A, WrongRoundError, "round 3 of run-1 is open; site-a answers round 2 of run-1"),
        (OPEN, replace(REF, attempt=2), A, WrongRoundError, r"answers round 3 \(attempt 2\)"),
        (OPEN, replace(REF, run=RunId("run-2")), A, WrongRoundError, "answers round 3 of run-2"),
        (OPEN, replace(REF, plan=Digest("1" * 64)), A, WrongRoundError, "under another plan"),
        (OPEN, REF, STRANGER, NotInvitedError, "stranger was not asked to take part"),
        (PLANNED, REF, A, NotInvitedError, "site-a was not asked"),
        (after(got(A)), REF, A, DuplicateUpdateError, "site-a already answered"),
        (fail(OPEN, "stopped"), REF, A, WrongRoundError, "takes no more answers; site-a came too late"),
        (due(after(got(A), got(B)), TWO, 999.0), REF, C, WrongRoundError, "is aggregating and takes no more answers"),
    ],
)
def test_an_answer_that_may_not_count_is_refused_and_changes_nothing(
    this: Round, ref: TaskRef, envoy: EnvoyName, error: type[ProtocolError], words: str
) -> None:
    for ask in (check_answer, receive, decline):
        with pytest.raises(error, match=words):
            ask(this, ref, envoy)


def test_one_who_declined_or_was_lost_counts_again_when_its_answer_comes() -> None:
    this = after(declined(A), lost(B), got(A), got(B))
    assert this.received == {A, B}
    assert not this.declined
    assert not this.lost


def test_a_line_that_breaks_after_the_answer_takes_nothing_away() -> None:
    this = after(got(A))
    assert lose(this, A) is this


def test_one_who_comes_back_is_waited_for_again() -> None:
    this = regain(after(got(A), got(B), lost(C)), C)
    assert this.waiting == {C}
    assert due(this, TWO, 111.0) is this


def test_only_an_aggregating_round_is_closed() -> None:
    for this in (PLANNED, OPEN, after(got(A)), fail(OPEN, "stopped")):
        with pytest.raises(ProtocolError, match="only an aggregating round can be closed"):
            close(this)


def test_after_a_restart_nobody_is_lost_yet_and_the_wait_begins_anew() -> None:
    this = resume(after(got(A), lost(B), declined(C)), now=500.0)
    assert (this.received, this.declined, this.lost, this.since) == ({A}, {C}, frozenset(), 500.0)
    assert due(this, TWO, 559.0) is this


def test_a_failed_round_is_tried_again_with_nothing_carried_over() -> None:
    this = again(fail(after(got(A)), "stopped"), now=200.0)
    assert this == Round(replace(REF, attempt=2), TaskKind.TRAIN, since=200.0)
    with pytest.raises(ProtocolError, match="only a failed round is tried again"):
        again(OPEN, 0.0)


@pytest.mark.parametrize(("quorum", "timeout"), [(0, 1.0), (1, 0.0), (1, -1.0), (1, float("nan"))])
def test_a_policy_that_can_never_close_a_round_is_refused(quorum: int, timeout: float) -> None:
    with pytest.raises(ValueError, match="at least one participant and a positive timeout"):
        RoundPolicy(quorum, timeout)


ENVOYS = st.sampled_from([A, B, C, D, STRANGER])
REFS = st.sampled_from([*[REF] * 8, replace(REF, round=2), replace(REF, attempt=2)])


class AnyOrder(RuleBasedStateMachine):
    """Feeds events in any order and holds the round against a plain record of what it accepted."""

    @initialize(
        quorum=st.integers(1, 3),
        stragglers=st.sampled_from(Stragglers),
        timeout=st.sampled_from([10.0, 60.0]),
        is_open=st.sampled_from([True, True, True, False]),  # else few examples get far
    )
    def begin(self, quorum: int, stragglers: Stragglers, timeout: float, is_open: bool) -> None:
        self.policy = RoundPolicy(quorum, timeout, stragglers)
        self.now = 0.0
        self.round = Round(REF, TaskKind.TRAIN, since=0.0)
        self.receipts: set[EnvoyName] = set()
        if is_open:
            self.round = open_round(self.round, frozenset({A, B, C, D}), self.policy, 0.0)

    def feed(self, event: Callable[[Round], Round]) -> bool:
        """Whether the event was accepted; whatever it did, the round that was is untouched and only went forward."""
        before, copy = self.round, replace(self.round)
        try:
            self.round = event(before)
        except ProtocolError:
            assert before == copy
            return False
        assert before == copy
        if before.state.is_over:
            assert self.round is before
        if RoundState.FAILED not in {before.state, self.round.state}:
            assert ORDER.index(self.round.state) >= ORDER.index(before.state)
        return True

    @rule(cohort=st.frozensets(st.sampled_from([A, B, C, D])))
    def open(self, cohort: frozenset[EnvoyName]) -> None:
        was = self.round.state
        accepted = self.feed(lambda this: open_round(this, cohort, self.policy, self.now))
        assert accepted == (was is RoundState.PLANNED and len(cohort) >= self.policy.min_participants)

    @rule(ref=REFS, envoy=ENVOYS)
    def receive(self, ref: TaskRef, envoy: EnvoyName) -> None:
        before = self.round
        accepted = self.feed(lambda this: receive(this, ref, envoy))
        may = before.state.takes_answers and ref == REF and envoy in before.cohort and envoy not in self.receipts
        assert accepted == may
        if accepted:
            self.receipts.add(envoy)
            assert self.round.state is RoundState.COLLECTING

    @rule(ref=REFS, envoy=ENVOYS)
    def decline(self, ref: TaskRef, envoy: EnvoyName) -> None:
        if self.feed(lambda this: decline(this, ref, envoy)):
            assert decline(self.round, ref, envoy) is self.round

    @rule(envoy=ENVOYS)
    def lose(self, envoy: EnvoyName) -> None:
        assert self.feed(lambda this: lose(this, envoy))
        assert lose(self.round, envoy) is self.round

    @rule(envoy=ENVOYS)
    def regain(self, envoy: EnvoyName) -> None:
        assert self.feed(lambda this: regain(this, envoy))
        assert regain(self.round, envoy) is self.round

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 15.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        before = self.round
        assert self.feed(lambda this: due(this, self.policy, self.now))
        assert due(self.round, self.policy, self.now) is self.round
        if before.state.takes_answers and self.now - before.since >= self.policy.timeout_seconds:
            assert not self.round.state.takes_answers

    @rule()
    def close(self) -> None:
        was = self.round.state
        assert self.feed(close) == (was is RoundState.AGGREGATING)

    @precondition(lambda self: self.round.state.takes_answers and len(self.round.received) > 1)
    @rule()
    def stop(self) -> None:
        assert self.feed(lambda this: fail(this, "stopped"))
        assert self.round.reason == "stopped"

    @rule()
    def restart(self) -> None:
        assert self.feed(lambda this: resume(this, self.now))
        assert self.round.state.is_over or not self.round.lost

    @precondition(lambda self: self.round.state is RoundState.FAILED)
    @rule()
    def retry(self) -> None:
        following = again(self.round, self.now)
        assert following.ref == replace(REF, attempt=2)
        assert following.state is RoundState.PLANNED
        assert not following.cohort

    @invariant()
    def no_receipt_is_lost(self) -> None:
        assert self.round.received == self.receipts

    @invariant()
    def everyone_is_in_one_place(self) -> None:
        this = self.round
        groups = (this.received, this.declined, this.lost, this.waiting)
        assert sum(map(len, groups)) == len(this.cohort)
        assert frozenset().union(*groups) == this.cohort

    @invariant()
    def it_sums_only_with_a_quorum(self) -> None:
        if self.round.state in {RoundState.AGGREGATING, RoundState.CLOSED}:
            assert len(self.round.received) >= self.policy.min_participants

    @invariant()
    def a_failure_has_a_reason(self) -> None:
        assert bool(self.round.reason) == (self.round.state is RoundState.FAILED)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, max_examples=200, stateful_step_count=30)
