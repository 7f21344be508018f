"""Lines on which work goes down."""

import threading

import pytest
from fedveil.director.lines import Line, Lines
from fedveil.utils.messages import Idle, TaskRef, Withdrawal

FIRST = Withdrawal(TaskRef("lungs-1", 1, 1, "ab" * 32), "over")
SECOND = Withdrawal(TaskRef("lungs-1", 2, 1, "ab" * 32), "over")


@pytest.fixture
def lines() -> Lines:
    return Lines()


def all_of(line: Line) -> list[object]:
    items = []
    while (item := line.next(0.0)) is not None:
        items.append(item)
    return items


def test_a_line_begins_with_what_is_open_and_keeps_the_order(lines: Lines):
    line = lines.open("a", [FIRST, Idle()])
    lines.push(["a"], SECOND)
    assert all_of(line) == [FIRST, Idle(), SECOND]


def test_what_is_pushed_goes_down_the_lines_of_those_envoys_alone(lines: Lines):
    one, two, other = lines.open("a", []), lines.open("b", []), lines.open("c", [])
    lines.push(["a", "b", "nobody"], FIRST)
    assert all_of(one) == all_of(two) == [FIRST]
    assert all_of(other) == []


def test_a_new_line_of_an_envoy_ends_its_older_one(lines: Lines):
    older = lines.open("a", [])
    newer = lines.open("a", [FIRST])
    assert older.is_closed
    lines.drop(older)  # as its own thread does then
    lines.push(["a"], SECOND)
    assert all_of(newer) == [FIRST, SECOND]
    assert not newer.is_closed


def test_a_dropped_line_gets_nothing_more_and_may_be_dropped_twice(lines: Lines):
    line, rest = lines.open("a", []), lines.open("b", [])
    lines.drop(line)
    lines.drop(line)
    lines.push(["a", "b"], FIRST)
    assert line.is_closed
    assert line.next(0.0) is None
    assert all_of(rest) == [FIRST]


def test_closing_wakes_whoever_waits(lines: Lines):
    line = lines.open("a", [])
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(line.next()))
    waiting.start()
    lines.close()
    waiting.join(60.0)
    assert got == [None]
    assert line.is_closed


def test_nothing_in_time_is_none_and_the_line_stays(lines: Lines):
    line = lines.open("a", [])
    assert line.next(0.01) is None
    assert not line.is_closed
