"""One line of long polls: each answer says again what is open, and each thing is told once."""

from __future__ import annotations

import itertools

import pytest
from fedveil.envoy.rest_link import RestLink
from fedveil.utils import messages as m
from fedveil.utils.certificates import certificate_pem, make_root

FIRST, SECOND = (m.TaskRef(m.RunId("toy-1"), number, 1, "ab" * 32) for number in (1, 2))
DIGEST = "cd" * 32


def task(ref: m.TaskRef, seconds_left: float) -> m.Task:
    return m.Task(
        ref=ref,
        kind=m.TaskKind.TRAIN,
        model=DIGEST,
        model_bytes=4,
        layout=DIGEST,
        seed=bytes(32),
        seconds_left=seconds_left,
        min_participants=1,
        cohort=(m.EnvoyName("site-r"),),
        payload=m.PayloadKind.PLAIN,
        codec=None,
    )


@pytest.fixture
def link(monkeypatch):
    """One whose polls are answered by a list; what was asked is kept."""
    made = RestLink("https://127.0.0.1:1", "fv_key", certificate_pem(make_root("lungs", 1.0).certificate), "site-r")
    made.asked = []

    def answered(*answers):
        left = iter(answers)

        def next_work(held, wait_seconds, approved=()):
            made.asked.append((held, wait_seconds, approved))
            return next(left)

        monkeypatch.setattr(made, "next_work", next_work)
        return made

    yield answered
    made.close()


def test_a_line_stands_first_and_then_tells_each_thing_once(link):
    item, other = m.SumItem(FIRST, b"advert"), m.SumItem(FIRST, b"shares")
    gone = m.Withdrawal(FIRST, "over")
    made = link(task(FIRST, 9.0), task(FIRST, 8.0), item, item, other, item, gone, gone, task(SECOND, 5.0))
    told = list(itertools.islice(made.work(()), 6))
    assert told == [m.Idle(), task(FIRST, 9.0), item, other, gone, task(SECOND, 5.0)]


def test_each_poll_says_what_the_site_holds_and_approved_by_now(link):
    made = link(m.Idle(), task(FIRST, 9.0), m.Idle(), m.Withdrawal(FIRST, "over"), m.Idle())
    line = made.work((SECOND,), ())
    assert [next(line) for _ in range(2)] == [m.Idle(), task(FIRST, 9.0)]
    made._approved = (DIGEST,)
    list(itertools.islice(line, 3))
    held = [set(one[0]) for one in made.asked]
    assert held == [{SECOND}, {SECOND}, {SECOND, FIRST}, {SECOND, FIRST}, {SECOND}]
    assert [one[2] for one in made.asked] == [(), (), (DIGEST,), (DIGEST,), (DIGEST,)]
    assert [one[1] > 0 for one in made.asked] == [False, True, True, True, True]
