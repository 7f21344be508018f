"""Who withdraws a dataset is asked no more: what reads it ends, and is run again without that site."""

from fedveil.director.records import RunState


def described(study, envoy):
    """A dataset that its hospital's data manager described; gives the manager's client and the path."""
    hospital = envoy.partition("-")[0]
    study.world.user(f"data-{envoy}", study.organizations[hospital], "data-manager")
    manager = study.world.signed_in(f"data-{envoy}")
    made = manager.post("/api/v1/datasets", json={"name": "xrays", "envoy": envoy, "examples": "100-499"})
    assert made.status_code == 201, made.text
    return manager, made.headers["location"]


def withdrawn(manager, path):
    answer = manager.post(f"{path}/withdrawal", json={"reason": "consent was taken back"})
    assert answer.status_code == 200, answer.text


def test_a_withdrawal_ends_what_reads_the_data_and_the_same_again_runs_without_that_site(study, problem_of):
    study.envoy("south-2", study.organizations["south"])
    anna, north = study.researcher("anna"), described(study, "north-1")
    described(study, "south-1")
    task = study.submit(anna, "anna", study.experiment(rounds=5))
    lines = study.there("north-1", "south-1", "south-2")
    for name, line in lines.items():
        study.answer(name, study.order(line))
    assert {study.order(line).ref.round for line in lines.values()} == {2}
    withdrawn(*north)
    over = study.until(task, lambda run: run.state.is_over)
    assert over.state is RunState.STOPPED
    assert "dataset xrays of envoy north-1 was withdrawn on" in over.reason
    assert "consent" not in over.reason
    shown = anna.get("/api/v1/tasks/study-1").json()
    assert [one["state"] for one in shown["rounds"]] == ["closed", "failed"]

    study.world.clock.now += 1
    named = study.body("anna", study.plan(), study.experiment(sites=("north-1", "south-1")))
    assert "north-1 was withdrawn" in problem_of(anna.post("/api/v1/tasks", json=named), 403)["detail"]
    again = study.submit(anna, "anna", study.experiment(name="again", rounds=1))
    for line in lines.values():
        study.coordinator.close_line(line)
    lines = study.there("north-1", "south-1", "south-2")
    for name in ("south-1", "south-2"):
        study.answer(name, study.order(lines[name]))
    assert study.until(again, lambda run: run.state.is_over).state is RunState.FINISHED
    rounds = study.history.rounds(study.history.run(again["task_id"]).run)
    assert [one.round.cohort for one in rounds] == [{"south-1", "south-2"}]


def test_a_task_that_nobody_could_serve_any_more_is_refused(study, problem_of):
    anna = study.researcher("anna")
    withdrawn(*described(study, "north-1"))
    study.bring(anna, study.plan())
    body = study.body("anna", study.plan())
    assert "nobody else of the collaboration" in problem_of(anna.post("/api/v1/tasks", json=body), 403)["detail"]
