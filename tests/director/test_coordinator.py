"""What the coordinator does when its disk, its clock or its own process lets it down."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.coordinator import Coordinator
from fedveil.director.database import open_database
from fedveil.director.experiment_desk import ExperimentDesk
from fedveil.director.history import History
from fedveil.director.identity_store import IdentityStore
from fedveil.director.lines import Line
from fedveil.director.records import RunRecord, RunState
from fedveil.director.uploads import Uploads
from fedveil.utils import messages as m
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.errors import StorageError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.proposal import Output, Proposal
from fedveil.utils.signed_document import SignedDocument
from fedveil.utils.tensors import bytes_of, digest_of
from fedveil.workspace.plan_builder import build_plan

PLAN = Path(__file__).parents[2] / "workspace" / "benchmarks" / "noop_plan.py"
SETTINGS = """
name = "toy"
plan = "plan"
secure_aggregation = "off"
[rounds]
max_rounds = 2
min_participants = 1
final_evaluation = false
"""
A = m.EnvoyName("a")
UPDATE = np.ones(4, np.float32)


class Desk:
    """A coordinator over a folder, and one envoy that is a puppet of the test."""

    def __init__(self, folder: Path, url: str) -> None:
        self.engine = open_database(url, durable=False)
        self.history = History(self.engine)
        self.artifacts = ArtifactStore(folder / "artifacts", durable=False)
        self.uploads = Uploads(folder / "uploads", 4, durable=False)
        self.broke, self.ahead = threading.Event(), 0.0
        self.coordinator = Coordinator(
            self.history,
            self.artifacts,
            self.uploads,
            lambda: frozenset({A}),
            now=lambda: time.time() + self.ahead,
            broken=self.broke.set,
        )

    def close(self) -> None:
        self.coordinator.close()
        self.engine.dispose()

    def open_line(self, envoy: m.EnvoyName, held: tuple[m.TaskRef, ...] = ()) -> Line:
        """An envoy is there, whose site approved all that was proposed."""
        approved = tuple(run.proposal_digest for run in self.history.runs())
        return self.coordinator.open_line(envoy, held, approved)

    def queue(self, folder: Path, run: str) -> None:
        build_plan(PLAN, folder / "plan", {"elements": 4})
        bundle = open_bundle(folder / "plan")
        for file in bundle.manifest.files:
            self.artifacts.put([bundle.blob(file.path)])
        plan = self.artifacts.put([bundle.manifest.to_json()])
        initial = bundle.manifest.file("initial.safetensors").sha256
        proposal = Proposal(
            "toys",
            run,
            plan,
            "00" * 32,
            "a test",
            "",
            100,
            False,
            "director",
            None,
            m.AskedProtection(),
            (),
            (Output.MODEL,),
            PeerId("toys", Role.OPERATOR, "alice"),
            0.0,
            4e9,
        )
        record = RunRecord(
            m.RunId(run),
            "toy",
            RunState.QUEUED,
            SETTINGS,
            plan,
            bundle.layout.digest,
            bytes(32),
            0.0,
            None,
            None,
            "",
            initial,
            proposal=SignedDocument(proposal.to_json(), bytes(64), b""),
        )
        self.coordinator.enqueue(record)

    def task(self, line) -> m.Task:
        while not isinstance(item := line.next(20), m.Task):
            assert item is not None, "no task came"
        return item

    def answer(self, task: m.Task) -> None:
        header = m.UpdateHeader(task.ref, task.layout, UPDATE.nbytes, 1)
        turn = self.coordinator.request_upload(A, header)
        raw = bytes_of(UPDATE)
        parts = [m.Opening(len(raw), turn.offset, turn.grant), m.Data(raw), m.Closing(digest_of(raw))]
        self.coordinator.upload(A, iter(parts))

    def ended(self, run: str) -> RunRecord:
        for _ in range(200):
            record = self.history.run(m.RunId(run))
            if record.state.is_over:
                return record
            self.coordinator.wait_for_change(m.RunId(run), 0.1)
        raise AssertionError(f"{run} is {record.state}")


@pytest.fixture
def desk(tmp_path, database_url):
    made = Desk(tmp_path, database_url)
    made.queue(tmp_path, "toy-1")
    made.coordinator.start()
    yield made
    made.close()


def test_housekeeping_that_fails_is_put_off_and_the_round_stays_closed(desk, monkeypatch):
    def full(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(desk.history, "add_traffic", full)
    line = desk.open_line(A)
    for _ in range(2):
        desk.answer(desk.task(line))
    assert desk.ended("toy-1").state is RunState.FINISHED
    assert not desk.broke.is_set()


@pytest.mark.parametrize("transition", ["close_round", "fail_round"])
def test_a_run_whose_end_can_be_read_has_all_of_its_traffic(desk, monkeypatch, transition):
    real, seen = getattr(desk.history, transition), []

    def then_read(*arguments, **values):
        real(*arguments, **values)
        seen.append(desk.history.run(m.RunId("toy-1")))

    monkeypatch.setattr(desk.history, transition, then_read)
    line = desk.open_line(A)
    desk.answer(desk.task(line))
    task = desk.task(line)
    desk.coordinator.count_download(1 << 33)
    if transition == "close_round":
        desk.answer(task)
    else:
        desk.coordinator.stop_run(m.RunId("toy-1"), "enough")
    ended = desk.ended("toy-1")
    last = seen[-1]
    assert last.state is ended.state
    assert last.bytes_down == 1 << 33
    assert last.bytes_up == len(bytes_of(UPDATE)) * (2 if transition == "close_round" else 1)


def test_a_database_that_is_full_for_a_moment_loses_no_round(desk, monkeypatch):
    close_round, failures = desk.history.close_round, [StorageError("the disk is full")]

    def full_once(*arguments, **values):
        if failures:
            raise failures.pop()
        close_round(*arguments, **values)

    monkeypatch.setattr(desk.history, "close_round", full_once)
    line = desk.open_line(A)
    for _ in range(2):
        desk.answer(desk.task(line))
    record = desk.ended("toy-1")
    assert record.state is RunState.FINISHED
    model = np.frombuffer(desk.artifacts.read(record.model)[-16:], np.float32)
    assert model.tolist() == [2.0, 2.0, 2.0, 2.0]


def test_an_error_that_nobody_expected_ends_the_director_instead_of_standing_still(desk, monkeypatch):
    def surprise(*_):
        raise MemoryError

    monkeypatch.setattr(desk.uploads, "stored", surprise)
    desk.answer(desk.task(desk.open_line(A)))
    assert desk.broke.wait(60)


def test_a_run_whose_model_is_gone_fails_alone_when_the_director_starts_again(tmp_path, database_url):
    first = Desk(tmp_path, database_url)
    first.queue(tmp_path, "toy-1")
    first.coordinator.start()
    line = first.open_line(A)
    first.answer(first.task(line))
    assert first.task(line).ref.round == 2
    record = first.history.run(m.RunId("toy-1"))
    first.close()
    first.artifacts.path(record.model).unlink()
    second = Desk(tmp_path, database_url)
    second.queue(tmp_path, "toy-2")
    second.coordinator.start()
    line = second.open_line(A)
    assert second.ended("toy-1").state is RunState.FAILED
    assert "UnknownArtifactError" in second.history.run(m.RunId("toy-1")).reason
    for _ in range(2):
        second.answer(second.task(line))
    assert second.ended("toy-2").state is RunState.FINISHED
    second.close()


def test_an_update_that_was_damaged_while_the_director_was_away_is_asked_for_again(tmp_path, database_url):
    first = Desk(tmp_path, database_url)
    first.queue(tmp_path, "toy-1")
    first.coordinator.start()
    task = first.task(first.open_line(A))
    first.coordinator._conclude = lambda *_: None  # killed before the sum
    first.answer(task)
    first.close()
    spool = first.uploads.path(A)
    spool.write_bytes(spool.read_bytes()[:-1] + b"\x7f")
    second = Desk(tmp_path, database_url)
    second.coordinator.start()
    line = second.open_line(A)
    again = second.task(line)
    assert (again.ref.round, again.ref.attempt) == (1, 2)
    second.answer(again)
    second.answer(second.task(line))
    assert second.ended("toy-1").state is RunState.FINISHED
    second.close()


def test_a_task_that_the_envoy_holds_is_not_sent_again(desk):
    line = desk.open_line(A)
    task = desk.task(line)
    assert desk.open_line(A, (task.ref,)).next(0.3) is None


def test_a_director_that_stood_still_for_a_minute_loses_nobody(desk):
    line = desk.open_line(A)
    task = desk.task(line)
    desk.ahead = 60.0
    jumped = time.time() + 50.0
    for _ in range(200):
        if desk.coordinator._looked_at > jumped:
            break
        desk.coordinator.wait_for_change(m.RunId("toy-1"), 0.1)
    assert desk.coordinator._looked_at > jumped
    assert desk.history.current_round(m.RunId("toy-1")).round.lost == frozenset()
    desk.answer(task)
    assert desk.task(line).ref.round == 2


def test_a_run_whose_model_is_gone_does_not_hide_the_others(desk, researcher):
    operator = ExperimentDesk(
        "toys",
        desk.history,
        desk.artifacts,
        desk.coordinator,
        IdentityStore(desk.engine),
        researcher("toys").root,
        max_model_bytes=1 << 20,
    )
    desk.task(desk.open_line(A))  # before its round is open, a run without its model fails
    record = desk.history.run(m.RunId("toy-1"))
    assert operator.show(record.run).model_bytes > 0
    desk.artifacts.path(record.model).unlink()
    assert operator.show(record.run).model_bytes == 0
    assert [view.run for view in operator.list()] == ["toy-1"]
    assert [view.run for view in operator.status().experiments] == ["toy-1"]
