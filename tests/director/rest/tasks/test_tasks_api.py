"""Tasks over HTTP: who may start one, what comes of it, and what ends it before its time."""

from fedveil.director.hub.organizations import Status
from fedveil.director.records import RunState
from fedveil.utils.proposal import Step


def test_a_task_is_proposed_run_and_shown_with_where_each_site_stands(study):
    anna = study.researcher("anna")
    task = study.submit(anna, "anna")
    assert (task["task_id"], task["state"], task["user"]) == ("study-1", "queued", "anna")
    assert task["processing"]["kind"] == "data-processing"
    assert [(one["envoy"], one["state"]) for one in task["subtasks"]] == [
        ("north-1", "proposed"),
        ("south-1", "proposed"),
    ]
    lines = study.there("north-1", "south-1")
    first = study.order(lines["north-1"])
    study.answer("north-1", first)
    shown = anna.get("/api/v1/tasks/study-1").json()
    assert [one["state"] for one in shown["subtasks"]] == ["answered", "working"]
    study.answer("south-1", study.order(lines["south-1"]))
    for name, line in lines.items():
        study.answer(name, study.order(line))
    assert study.until(task, lambda run: run.state.is_over).state is RunState.FINISHED
    over = anna.get("/api/v1/tasks/study-1").json()
    assert (over["state"], [one["state"] for one in over["rounds"]]) == ("finished", ["closed", "closed"])
    assert [one["state"] for one in over["subtasks"]] == ["done", "done"]
    assert over["model_digest"] == over["rounds"][1]["model_digest"]
    listed = anna.get("/api/v1/tasks").json()["items"]
    assert [one["task_id"] for one in listed] == ["study-1"]


def test_a_permit_that_ends_while_a_round_is_open_ends_the_task_and_keeps_what_was_closed(study):
    anna = study.researcher("anna")
    task = study.submit(anna, "anna", study.experiment(rounds=5))
    lines = study.there("north-1", "south-1")
    for name, line in lines.items():
        study.answer(name, study.order(line))
    second = {name: study.order(line) for name, line in lines.items()}
    assert {one.ref.round for one in second.values()} == {2}
    study.answer("north-1", second["north-1"])
    study.world.clock.now += 2000
    over = study.until(task, lambda run: run.state.is_over)
    assert over.state is RunState.STOPPED
    assert "permit P-Lungs of The Ministry ended on" in over.reason
    shown = anna.get("/api/v1/tasks/study-1").json()
    assert [one["state"] for one in shown["rounds"]] == ["closed", "failed"]
    assert shown["model_digest"] == shown["rounds"][0]["model_digest"]


def test_what_a_task_needs_is_looked_at_while_it_waits_too(study):
    anna = study.researcher("anna")
    task = study.submit(anna, "anna")
    north = study.organizations["north"]
    study.hub.organizations.change(north.id, north.version, lambda _: None, status=Status.SUSPENDED)
    over = study.until(task, lambda run: run.state.is_over)
    assert "organization North Hospital, whose task it is, is suspended" in over.reason


def test_a_task_is_paused_resumed_and_stopped_by_patches(study):
    anna = study.researcher("anna")
    task = study.submit(anna, "anna", study.experiment(rounds=5))
    url = "/api/v1/tasks/study-1/patches"
    assert anna.post(url, json=study.patch("anna", task, Step.PAUSE)).json()["state"] == "paused"
    lines = study.there("north-1", "south-1")
    assert anna.post(url, json=study.patch("anna", task, Step.RESUME, 2)).json()["state"] != "paused"
    study.order(lines["north-1"])
    answer = anna.post(url, json=study.patch("anna", task, Step.STOP, 3, reason="enough"))
    assert answer.status_code == 201
    assert (answer.json()["state"], answer.json()["reason"]) == ("stopped", "stopped: enough")


def test_an_api_key_certifies_no_key_in_the_place_of_another(study, world, problem_of):
    program = study.researcher("anna")  # who asks by a key, and whose first signing key it certified
    assert program.get("/api/v1/me").json()["api_key"]
    assert "sign in" in problem_of(study.certify(program, "anna"), 403)["detail"]
    assert study.certify(world.signed_in("anna"), "anna").status_code == 201
