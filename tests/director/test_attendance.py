"""Who is there, by what was heard and when."""

import pytest
from fedveil.director.attendance import COMEBACK_SECONDS, RETURN_SECONDS, Attendance
from fedveil.utils.transport import BEAT_SECONDS, SILENCE_SECONDS
from hypothesis import given
from hypothesis import strategies as st


def test_one_who_was_not_seen_is_neither_there_nor_gone_before_it_had_time_to_come_back():
    attendance = Attendance(100.0)
    assert not attendance.is_there("a", 100.0)
    assert not attendance.is_gone("a", 100.0 + COMEBACK_SECONDS)
    assert attendance.is_gone("a", 100.1 + COMEBACK_SECONDS)
    assert attendance.silent_seconds("a", 5.0) == float("inf")


def test_an_envoy_with_a_line_that_beats_stays():
    attendance = Attendance(0.0)
    attendance.arrive("a", 0.0)
    for second in range(1, 100):
        attendance.hear("a", float(second))
        assert attendance.there(float(second)) == {"a"}


def test_silence_is_loss_though_the_line_seems_to_stand():
    attendance = Attendance(0.0)
    attendance.arrive("a", 0.0)
    assert attendance.is_there("a", SILENCE_SECONDS)
    assert attendance.is_gone("a", SILENCE_SECONDS + 0.01)


def test_loss_is_noticed_within_five_seconds():
    assert SILENCE_SECONDS + BEAT_SECONDS <= 5.0
    assert RETURN_SECONDS <= 5.0


def test_a_line_that_broke_may_come_back_within_a_moment():
    attendance = Attendance(0.0)
    attendance.arrive("a", 0.0)
    attendance.leave("a", 1.0)
    assert attendance.is_there("a", 1.0 + RETURN_SECONDS)
    assert attendance.is_gone("a", 1.01 + RETURN_SECONDS)
    attendance.arrive("a", 10.0)
    assert attendance.is_there("a", 12.5)


def test_one_of_two_lines_may_break():
    attendance = Attendance(0.0)
    attendance.arrive("a", 0.0)
    attendance.arrive("a", 0.5)
    attendance.leave("a", 1.0)
    assert attendance.is_there("a", 1.0 + RETURN_SECONDS + 1)


def test_one_who_speaks_without_a_line_is_on_its_way_back():
    attendance = Attendance(0.0)
    attendance.arrive("a", 0.0)
    attendance.leave("a", 1.0)
    attendance.hear("a", 2.5)
    assert attendance.is_there("a", 2.5 + RETURN_SECONDS)
    assert attendance.is_gone("a", 2.51 + RETURN_SECONDS)


@given(
    st.lists(
        st.tuples(st.sampled_from(["hear", "arrive", "leave"]), st.sampled_from("ab"), st.floats(0, 3)), max_size=30
    )
)
def test_nobody_is_there_and_gone_at_once(events: list[tuple[str, str, float]]):
    attendance, now, lines = Attendance(0.0), 0.0, {"a": 0, "b": 0}
    for what, envoy, pause in events:
        now += pause
        if what == "leave" and not lines[envoy]:
            continue
        lines[envoy] += {"hear": 0, "arrive": 1, "leave": -1}[what]
        getattr(attendance, what)(envoy, now)
        assert what == "leave" or attendance.is_there(envoy, now)
        for name in "ab":
            assert not (attendance.is_there(name, now) and attendance.is_gone(name, now))
            assert (name in attendance.there(now)) == attendance.is_there(name, now)


def test_a_director_that_stood_still_thinks_nobody_silent():
    attendance = Attendance(started_at=0.0)
    attendance.arrive("a", 10.0)
    attendance.arrive("b", 10.0)
    attendance.leave("b", 10.5)
    assert attendance.is_gone("a", 30.0)
    attendance.shift(19.0)
    assert attendance.is_there("a", 30.0)
    assert attendance.is_there("b", 30.0)
    assert attendance.silent_seconds("a", 30.0) == pytest.approx(1.0)
    assert attendance.is_gone("b", 32.0)
