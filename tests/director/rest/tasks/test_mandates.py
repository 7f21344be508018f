"""What ends a task before its time, however often the director is started anew; and what of it stays."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fedveil.director.evidence import _members
from fedveil.director.hub.agreements import Kind
from fedveil.director.records import RunState
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.errors import StorageError


@pytest.fixture
def begun(study):
    """A task with one round closed and the second one open."""
    anna = study.researcher("anna")
    task = study.submit(anna, "anna", study.experiment(rounds=5))
    lines = study.there("north-1", "south-1")
    for name, line in lines.items():
        study.answer(name, study.order(line))
    for line in lines.values():
        assert study.order(line).ref.round == 2
    return task, lines


def test_a_consortium_that_no_longer_lets_the_organization_start_ends_its_tasks(study, begun):
    task, _ = begun
    study.sign(study.collaboration, Kind.CONSORTIUM, may_start_tasks=frozenset([study.organizations["south"].id]))
    over = study.until(task, lambda run: run.state.is_over)
    assert over.state is RunState.STOPPED
    assert "may not start tasks by version 2 of the consortium agreement" in over.reason
    assert over.model == study.history.rounds(over.run)[0].model_out


def test_another_sort_of_agreement_on_data_ends_what_was_started_under_the_one_before(study, begun):
    task, _ = begun
    past = study.world.clock() - 1
    made = study.hub.agreements.all()
    old = next(one for one in made if one.kind is Kind.DATA_PROCESSING)
    study.end_agreement(old, past)
    study.sign(study.collaboration, Kind.JOINT_CONTROLLER)
    over = study.until(task, lambda run: run.state.is_over)
    assert "data-processing" in over.reason


def test_envoys_are_told_that_their_task_is_over(study, begun):
    task, lines = begun
    study.world.clock.now += 2000
    over = study.until(task, lambda run: run.state.is_over)
    for line in lines.values():
        item = line.next(20)
        assert (type(item).__name__, item.ref.round) == ("Withdrawal", 2)
        assert "permit" in item.reason
    said = study.logged("run withheld")
    assert [one["run"] for one in said] == [over.run]
    assert "permit P-Lungs of The Ministry ended" in said[0]["reason"]


def test_a_permit_that_ends_while_the_director_is_away_hands_out_no_task_when_it_is_back(study, begun):
    task, _ = begun
    study.coordinator.close()
    study.world.clock.now += 2000
    study.start()
    over = study.until(task, lambda run: run.state.is_over)
    assert "permit" in over.reason
    assert study.there("north-1")["north-1"].next(0) is None


def test_a_task_whose_row_cannot_be_kept_is_no_run_either(study, monkeypatch, problem_of):
    anna = study.researcher("anna")
    study.bring(anna, study.plan())

    def full(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(type(study.hub.tasks), "add", staticmethod(full))
    problem_of(anna.post("/api/v1/tasks", json=study.body("anna", study.plan())), 503)
    assert study.history.runs() == ()
    monkeypatch.undo()
    assert anna.post("/api/v1/tasks", json=study.body("anna", study.plan())).status_code == 201


def test_a_bundle_of_evidence_holds_permits_agreements_and_tasks(study, begun):
    task, _ = begun
    (study.folder / "audit.jsonl").touch()
    config = SimpleNamespace(
        federation="lungs", durability=SimpleNamespace(value="fsync"), keep_models=5, keep_sums=False, leaf_days=7
    )
    found = _members(study.folder, config, study.hub.engine, ArtifactStore(study.folder / "artifacts", durable=False))
    (told,) = json.loads(found["tasks.json"])
    agreements = {one["agreement_id"]: one for one in json.loads(found["organization-agreements.json"])}
    (permit,) = json.loads(found["permits.json"])
    assert (told["run"], told["started_by"], told["dataset"]) == (task["task_id"], "anna", "xrays")
    assert agreements[told["processing"]]["kind"] == "data-processing"
    assert (permit["collaboration_id"], permit["number"]) == (told["collaboration_id"], "P-Lungs")
    assert set(agreements[told["processing"]]["signed"]) == set(permit["organizations"])
    north = next(one for one in json.loads(found["organizations.json"]) if one["name"] == "North Hospital")
    assert north["envoys"] == ["north-1"]


def test_what_nobody_can_look_up_any_more_allows_nothing_and_the_director_goes_on(study, begun, monkeypatch):
    task, _ = begun

    found = study.hub.tasks.get(task["task_id"])
    monkeypatch.setattr(study.coordinator._mandates._tasks, "find", lambda _: replace(found, collaboration="ab" * 12))
    over = study.until(task, lambda run: run.state.is_over)
    assert "what it was started under is gone" in over.reason
