"""Trying again: for as long as it takes, no longer than it is wanted."""

import threading

import pytest
from fedveil.envoy.patience import Patience, a_few_times
from fedveil.utils.errors import NotInvitedError, ProtocolError, UnreachableError


class Lot:
    """Every pause as long as it may be, none of them waited for."""

    def __init__(self, ends_after: int | None = None):
        self.pauses = []
        self.ends_after = ends_after

    def wait(self, seconds):
        self.pauses.append(seconds)
        return self.ends_after is not None and len(self.pauses) >= self.ends_after

    def uniform(self, _, most):
        return most


@pytest.fixture
def lot():
    return Lot()


def patience_of(lot):
    patience = Patience(lot)
    patience._lot = lot
    return patience


def failing(times, answer="answer"):
    left = [UnreachableError("the line broke")] * times

    def attempt():
        if left:
            raise left.pop()
        return answer

    return attempt


def test_it_is_tried_until_it_is_answered_with_pauses_that_grow_to_two_seconds(lot):
    assert patience_of(lot).insist(failing(10)) == "answer"
    assert lot.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_after_an_answer_pauses_are_short_again(lot):
    patience = patience_of(lot)
    patience.insist(failing(5))
    patience.insist(failing(1))
    assert lot.pauses[-1] == 0.1


def test_pauses_are_shortened_by_lot_so_that_not_all_come_back_at_once():
    lot = Lot()
    patience = Patience(lot)
    patience.insist(failing(40))
    assert all(1.0 <= pause <= 2.0 for pause in lot.pauses[7:])
    assert len(set(lot.pauses)) > 30


def test_it_is_given_up_when_nobody_wants_it_any_more():
    with pytest.raises(ProtocolError, match="nobody waits for it any more; the line was broken: the line broke"):
        patience_of(Lot(ends_after=3)).insist(failing(100))


def test_what_the_other_side_refuses_is_not_tried_again(lot):
    def attempt():
        raise NotInvitedError("no")

    with pytest.raises(NotInvitedError):
        patience_of(lot).insist(attempt)
    assert lot.pauses == []


def test_an_end_wakes_whoever_pauses():
    ended = threading.Event()
    patience = Patience(ended)
    patience._pause = 60.0
    paused = []
    thread = threading.Thread(target=lambda: paused.append(patience.pause()))
    thread.start()
    ended.set()
    thread.join(60.0)
    assert paused == [False]


def test_a_first_call_over_a_new_connection_is_made_a_few_times_and_not_for_ever():
    answers = [UnreachableError("slow"), UnreachableError("slow"), "here"]

    def attempt() -> str:
        answer = answers.pop(0)
        if isinstance(answer, UnreachableError):
            raise answer
        return answer

    assert a_few_times(attempt) == "here"
    answers.extend(UnreachableError("away") for _ in range(9))
    with pytest.raises(UnreachableError, match="away"):
        a_few_times(attempt)
    assert len(answers) == 4
