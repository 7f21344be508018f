"""Where each site stands, and what is told of a task: over any course that rounds can take."""

from dataclasses import replace

import pytest
from fedveil.director import rounds
from fedveil.director.hub.subtasks import SubtaskState, subtasks
from fedveil.director.hub.task_events import after, events_of, progress_of
from fedveil.director.records import RoundRecord, RunRecord, RunState, SumRecord
from fedveil.director.rounds import Round, RoundPolicy, RoundState
from fedveil.utils.errors import FederationError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.metrics import MetricKind, MetricSum
from fedveil.utils.proposal import Patch, Step
from fedveil.utils.tensors import Digest
from hypothesis import given
from hypothesis import strategies as st

SITES = tuple(EnvoyName(name) for name in ("a", "b", "c", "d"))
POLICY = RoundPolicy(1, 50.0)
PLAN, MODEL = Digest("ab" * 32), Digest("cd" * 32)
RUN = RunRecord(RunId("toy-1"), "toy", RunState.QUEUED, "", PLAN, PLAN, bytes(32), 1.0, None, None, "", MODEL)
PATCH = Patch(RunId("toy-1"), PLAN, 1, Step.PAUSE, {}, None, {}, None, "", PeerId("toys", Role.OPERATOR, "alice"), 1.0)

_steps = st.sampled_from(["open", "receive", "decline", "lose", "regain", "due", "close", "fail", "patch"])
_courses = st.lists(st.tuples(_steps, st.sampled_from(SITES), st.sets(st.sampled_from(SITES), min_size=1)), max_size=60)


class Course:
    """A run, moved by events that may come in any order; what cannot happen now is left out."""

    def __init__(self) -> None:
        self.now, self.records, self.patches = 2.0, [], []
        self.run = replace(RUN, state=RunState.RUNNING, started_at=2.0)
        self.plan(TaskRef(RUN.run, 1, 1, PLAN))

    def plan(self, ref):
        self.records.append(RoundRecord(Round(ref, TaskKind.TRAIN, self.now), MODEL, None, (), None, None, None, 0))

    @property
    def this(self):
        return self.records[-1].round

    def put(self, this, **more):
        self.records[-1] = replace(self.records[-1], round=this, **more)

    def step(self, what, site, cohort):
        self.now += 1.0
        try:
            self._step(what, site, frozenset(cohort))
        except FederationError:
            return

    def _step(self, what, site, cohort):
        this = self.this
        if what == "open":
            self.put(rounds.open_round(this, cohort, POLICY, self.now), opened_at=self.now)
        elif what in {"receive", "decline"}:
            self.put(getattr(rounds, what)(this, this.ref, site))
        elif what in {"lose", "regain"}:
            self.put(getattr(rounds, what)(this, site))
        elif what == "due":
            self.put(rounds.due(this, POLICY, self.now))
        elif what == "patch":
            number = len(self.patches) + 1
            step = Step.PAUSE if number % 2 else Step.RESUME
            self.patches.append((replace(PATCH, number=number, step=step), self.now))
        elif what == "close":
            metric = MetricSum("loss", MetricKind.MEAN, (1.0,), 1.0)
            self.put(rounds.close(this), model_out=MODEL, metrics=(metric,), closed_at=self.now)
            self.plan(replace(this.ref, round=this.ref.round + 1, attempt=1))
        elif what == "fail" and not this.state.is_over:
            self.put(rounds.fail(this, "a reason"), closed_at=self.now)
            self.plan(rounds.again(self.this, self.now).ref)

    def end(self):
        self.now += 1.0
        if not self.this.state.is_over:
            self.put(rounds.fail(self.this, "stopped"), closed_at=self.now)
        self.run = replace(self.run, state=RunState.STOPPED, ended_at=self.now, reason="stopped")


def course_of(steps):
    course = Course()
    for one in steps:
        course.step(*one)
    return course


def states(course, asked=SITES, approved=(), expelled=()):
    found = subtasks(asked, approved, expelled, course.records, is_over=course.run.state.is_over)
    assert len({one.envoy for one in found}) == len(found)
    return {one.envoy: one.state for one in found}


@given(_courses, st.sets(st.sampled_from(SITES)), st.sets(st.sampled_from(SITES)), st.sets(st.sampled_from(SITES)))
def test_every_site_that_is_or_was_asked_has_one_state_and_is_at_work_just_while_it_is_waited_for(
    steps, asked, approved, expelled
):
    course = course_of(steps)
    found = states(course, asked, approved, expelled)
    assert found.keys() == asked | expelled | {name for one in course.records for name in one.round.cohort}
    waiting = course.this.waiting if not course.this.state.is_over else frozenset()
    assert {name for name, state in found.items() if state is SubtaskState.WORKING} == waiting - expelled
    assert {name for name, state in found.items() if state is SubtaskState.EXPELLED} == expelled


@given(_courses)
def test_once_a_task_is_over_sites_were_in_its_result_or_not(steps):
    course = course_of(steps)
    course.end()
    gave = {name for one in course.records if one.round.state is RoundState.CLOSED for name in one.round.received}
    assert states(course) == {name: SubtaskState.DONE if name in gave else SubtaskState.OVER for name in SITES}


def test_a_site_that_left_a_secure_sum_has_no_part_in_its_result():
    course = course_of([("open", "a", {"a", "b"}), ("receive", "a", {"a"}), ("receive", "b", {"a"})])
    course.step("due", "a", {"a"})
    course.step("close", "a", {"a"})
    kept = SumRecord((EnvoyName("a"),), 2, 2, 10, PLAN, (), ())
    course.records[0] = replace(course.records[0], sum=kept)
    course.end()
    assert states(course, ("a", "b")) == {"a": SubtaskState.DONE, "b": SubtaskState.OVER}


@given(_courses)
def test_what_was_told_of_a_task_stays_in_its_place_as_it_goes_on(steps):
    course, told = Course(), []
    for one in steps:
        course.step(*one)
        now = [event.id for event in events_of(course.run, course.records, course.patches)]
        assert now[: len(told)] == told
        assert len(set(now)) == len(now)
        told = now
    course.end()
    events = events_of(course.run, course.records, course.patches)
    assert [event.id for event in events][: len(told)] == told
    assert [event.id for event in events if event.id == "stopped"] == ["stopped"]
    assert events[-1].id == "stopped"
    assert progress_of(course.records) is None
    for number, event in enumerate(events, 1):
        assert after(events, event.id) == events[number:]
    assert after(events, "") == after(events, "of another director") == events


@pytest.mark.parametrize("step", [Step.PAUSE, Step.RESUME])
def test_a_pause_is_told_as_the_state_that_it_makes(step):
    patches = [(PATCH, 3.0), (replace(PATCH, number=2, step=Step.RESUME), 4.0)][: 1 + (step is Step.RESUME)]
    told = events_of(replace(RUN, state=RunState.RUNNING, started_at=2.0), [], patches)[-1]
    assert told.data["state"] == ("paused" if step is Step.PAUSE else "running")
