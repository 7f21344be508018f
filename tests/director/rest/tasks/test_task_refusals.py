"""Every way not to start or steer a task: refused for what it is, and nothing is lost or begun."""

from dataclasses import replace

import pytest
from fedveil.director.hub.agreements import Kind
from fedveil.director.hub.organizations import Status
from fedveil.utils.plan_bundle import read_manifest
from fedveil.utils.proposal import Step


@pytest.fixture
def anna(study):
    """A researcher of the organization that may start tasks, whose plan is here."""
    client = study.researcher("anna")
    study.bring(client, study.plan())
    return client


def refused(study, problem_of, client, body, status):
    """The problem; and no run came of it."""
    found = problem_of(client.post("/api/v1/tasks", json=body), status)
    assert study.history.runs() == ()
    return found


def test_nobody_starts_a_task_of_a_collaboration_that_is_not_theirs(study, anna, problem_of):
    other = study.world.organization("West Hospital")
    study.organizations["west"] = other
    foreign = study.agree("Elsewhere", "west")
    body = study.body("anna", study.plan(), collaboration_id=foreign.id)
    said = refused(study, problem_of, anna, body, 404)
    assert said["detail"] == refused(study, problem_of, anna, body | {"collaboration_id": "ab" * 12}, 404)["detail"]


def test_a_consortium_agreement_that_is_not_signed_lets_nobody_start(study, anna, problem_of):
    bare = study.agreeless("Not yet")
    agreed = next(one for one in study.hub.agreements.all() if one.kind is Kind.CONSORTIUM)
    draft = replace(agreed, id="c" * 24, collaboration=bare.id, signed={})
    study.hub.agreements.add(draft, study.world.clock(), lambda: None)
    said = refused(study, problem_of, anna, study.body("anna", study.plan(), collaboration_id=bare.id), 403)
    assert "has no consortium agreement in force" in said["detail"]


def test_an_organization_that_the_consortium_does_not_name_starts_nothing(study, problem_of):
    bert = study.researcher("bert", "south")
    study.bring(bert, study.plan())
    said = refused(study, problem_of, bert, study.body("bert", study.plan()), 403)
    assert "may not start tasks by version 1 of the consortium agreement" in said["detail"]


def test_a_plan_that_reads_another_dataset_than_the_permit_names_is_not_run(study, anna, problem_of):
    plan = study.plan("records")
    study.bring(anna, plan)
    said = refused(study, problem_of, anna, study.body("anna", plan), 403)
    assert "does not name dataset records" in said["detail"]


def test_a_plan_whose_manifest_lies_about_its_data_is_another_plan(study, anna, problem_of):
    manifest = study.plan("records").manifest
    lie = replace(manifest, data=replace(manifest.data, name="xrays"))
    url = f"/api/v1/plans/{manifest.digest}"
    assert lie.digest != manifest.digest
    problem_of(anna.put(url, content=lie.to_json()), 422)
    problem_of(anna.get(url), 404)
    problem_of(anna.put(url, content=manifest.to_json()[:-1]), 422)
    problem_of(anna.put(url, content=b""), 422)
    problem_of(anna.put(url, content=bytes((1 << 20) + 1)), 413)


def test_sites_of_other_organizations_are_not_asked(study, anna, problem_of):
    study.envoy("west-1", study.world.organization("West Hospital"))
    text = study.experiment(sites=("north-1", "west-1"))
    said = refused(study, problem_of, anna, study.body("anna", study.plan(), text), 422)
    assert "the experiment names west-1" in said["detail"]
    task = study.submit(anna, "anna")
    assert [one["envoy"] for one in task["subtasks"]] == ["north-1", "south-1"]
    lines = study.there("north-1", "west-1", "south-1")
    assert study.order(lines["north-1"]).cohort == ("north-1", "south-1")
    assert lines["west-1"].next(0) is None


def test_a_proposal_that_somebody_else_signed_or_that_came_before_is_refused(study, anna, problem_of):
    cleo = study.researcher("cleo")
    body = study.body("anna", study.plan())
    study.bring(cleo, study.plan())
    refused(study, problem_of, cleo, body, 403)
    broken = body["proposal"] | {"signature": body["proposal"]["signature"][:-4] + "AAA="}
    refused(study, problem_of, anna, body | {"proposal": broken}, 403)
    other = study.experiment(rounds=3)
    assert "settings" in refused(study, problem_of, anna, body | {"experiment": other}, 409)["detail"]
    study.world.clock.now += 400
    assert "set the clock" in refused(study, problem_of, anna, body, 409)["detail"]
    study.world.clock.now -= 400
    assert anna.post("/api/v1/tasks", json=body).status_code == 201
    assert "was submitted before" in problem_of(anna.post("/api/v1/tasks", json=body), 409)["detail"]
    assert len(study.history.runs()) == 1


def test_a_task_whose_plan_is_not_here_in_whole_is_told_what_is_missing(study, problem_of):
    anna = study.researcher("anna")
    plan = study.plan()
    url = f"/api/v1/plans/{plan.manifest.digest}"
    refused(study, problem_of, anna, study.body("anna", plan), 404)
    missing = anna.put(url, content=plan.manifest.to_json()).json()["missing"]
    assert refused(study, problem_of, anna, study.body("anna", plan), 409)["missing"] == missing
    blob = plan.manifest.files[0]
    problem_of(anna.put(f"{url}/blobs/{blob.sha256}", content=b"another"), 422)
    problem_of(anna.put(f"{url}/blobs/{blob.sha256}", content=bytes(blob.size)), 422)
    problem_of(anna.put(f"{url}/blobs/{'ab' * 32}", content=bytes((1 << 20) + 1)), 413)
    problem_of(anna.put(f"{url}/blobs/{'ab' * 32}", content=iter([b"of no length"])), 422)
    assert anna.get(url).json()["missing"] == missing
    study.bring(anna, plan)
    assert anna.get(url).json()["missing"] == []
    assert read_manifest(plan.manifest.to_json()).name == anna.get(url).json()["name"]


def test_a_model_of_a_task_that_one_may_not_see_is_nobodys_to_begin_with(study, anna, problem_of):
    task = study.submit(anna, "anna")
    lines = study.there("north-1", "south-1")
    for name, line in lines.items():
        study.answer(name, study.order(line))
    model = study.until(task, lambda run: study.history.rounds(run.run)[0].model_out is not None).model
    west = study.world.organization("West Hospital")
    study.organizations["west"] = west
    own = study.agree("Elsewhere", "west")
    wes = study.researcher("wes", "west")
    manifest = study.plan().manifest
    files = [
        replace(one, sha256=model, size=study.artifacts.size(model)) if one.path == "initial.safetensors" else one
        for one in manifest.files
    ]
    stolen = replace(manifest, files=tuple(files))
    url = f"/api/v1/plans/{stolen.digest}"
    assert wes.put(url, content=stolen.to_json()).status_code == 200

    class Bundle:
        manifest = stolen

    body = study.body("wes", Bundle, collaboration_id=own.id)
    assert "no blob" in problem_of(wes.post("/api/v1/tasks", json=body), 404)["detail"]
    assert len(study.history.runs()) == 1


def test_only_who_started_a_task_steers_it_by_patches_of_their_own(study, anna, problem_of):
    cleo = study.researcher("cleo")
    bert = study.researcher("bert", "south")
    task = study.submit(anna, "anna")
    url = "/api/v1/tasks/study-1/patches"
    for client, name in ((cleo, "cleo"), (bert, "bert")):
        problem_of(client.post(url, json=study.patch(name, task, Step.PAUSE)), 403)
        problem_of(client.post(url, json=study.patch("anna", task, Step.PAUSE)), 403)
    problem_of(anna.post(url, json=study.patch("cleo", task, Step.PAUSE)), 403)
    problem_of(anna.post(url, json=study.patch("anna", task | {"task_id": "study-2"}, Step.PAUSE)), 403)
    problem_of(anna.post(url, json=study.patch("anna", task, Step.PAUSE, 2)), 409)
    problem_of(anna.post(url, json=study.patch("anna", task, Step.PAUSE) | {"content": "!"}), 422)
    assert anna.get("/api/v1/tasks/study-1").json()["patches"] == 0
    assert anna.post(url, json=study.patch("anna", task, Step.PAUSE)).status_code == 201
    problem_of(anna.post(url, json=study.patch("anna", task, Step.PAUSE)), 409)


def test_a_key_that_was_replaced_or_whose_user_was_revoked_signs_nothing_any_more(study, anna, problem_of):
    body = study.body("anna", study.plan())
    assert study.certify(study.world.signed_in("anna"), "anna").status_code == 201
    assert "another key" in refused(study, problem_of, anna, body, 403)["detail"]
    study.works.registrar._revoked.revoke("anna", "left", study.world.clock())
    assert "revoked" in refused(study, problem_of, anna, study.body("anna", study.plan()), 403)["detail"]
    assert "revoked" in problem_of(study.certify(study.world.signed_in("anna"), "anna"), 403)["detail"]


def test_a_user_gets_no_certificate_in_the_name_of_another_member_or_without_the_key(study, anna, problem_of):
    study.joined("south-9", "envoy")
    study.world.user("south-9", study.organizations["south"], "researcher")
    study.world.user("operator", study.organizations["south"], "researcher")
    for name in ("south-9", "operator"):
        assert "another member" in problem_of(study.certify(study.world.signed_in(name), name), 409)["detail"]
    study.world.user("drew", study.organizations["south"], "auditor")
    assert "create:plan" in problem_of(study.certify(study.world.signed_in("drew"), "drew"), 403)["detail"]
    problem_of(study.certify(anna, "bert"), 403)  # signed that it is bert's
    key = "A" * 43 + "="
    problem_of(anna.post("/api/v1/me/identity", json={"identity_key": key, "identity_proof": key}), 403)


def test_a_disabled_user_submits_nothing_and_what_the_user_started_ends(study, anna, problem_of):
    task = study.submit(anna, "anna")
    user = study.hub.users.first(study.hub.users.table.c.name == "anna")
    study.hub.users.change(user.id, user.version, lambda _: None, disabled_at=study.world.clock())
    problem_of(anna.post("/api/v1/tasks", json=study.body("anna", study.plan())), 401)
    assert "user anna, who started it, is disabled" in study.until(task, lambda run: run.state.is_over).reason


def test_an_organization_that_is_suspended_starts_nothing(study, anna, problem_of):
    north = study.organizations["north"]
    study.hub.organizations.change(north.id, north.version, lambda _: None, status=Status.SUSPENDED)
    assert "is suspended" in refused(study, problem_of, anna, study.body("anna", study.plan()), 403)["detail"]
