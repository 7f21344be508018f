"""Updates that are posted: each field, each code, and what is wrong, late, another's or too much."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from fedveil.director.hub.organizations import Status
from fedveil.director.hub.tables import USERS
from fedveil.director.revocations import Revocations
from fedveil.utils import messages as m
from fedveil.utils.sealed_update import Destination, sealed
from fedveil.utils.tensors import digest_of
from fedveil.utils.update_receipt import read_receipt
from safetensors.numpy import save

PATH = "/api/v1/federated/gradients"


@pytest.fixture
def opened(stage):
    """Round 1 of 1 waits for the north alone."""
    stage.run = stage.submit()
    stage.approve("north-1")
    stage.open()
    return stage


def kinds(problem):
    return problem["type"].rpartition(":")[2]


def model(stage, run):
    record = stage.ended(run)
    assert record.state.value == "finished", record.reason
    return np.frombuffer(stage.world.works.artifacts.read(record.model)[-16:], "<f4").tolist()


def test_an_update_comes_as_hexadecimal_base64_or_safetensors_and_is_the_same(stage, update):
    raw = update(1.0, 2.0, 3.0, 4.0)
    ways = ["0x" + raw.hex(), "0X" + raw.hex().upper(), base64.b64encode(raw).decode()]
    ways.append("0x" + save({"weights": np.frombuffer(raw, "<f4")}).hex())
    run = stage.submit(rounds=len(ways))
    stage.approve("north-1")
    for number, text in enumerate(ways, 1):
        stage.open(number)
        answer = stage.post(round=number, gradients_encrypted=text, sample_count="10-19")
        assert answer.status_code == 201, answer.text
        told = answer.json()
        assert (told["task_id"], told["round"], told["envoy"], told["sample_count"]) == (run, number, "north-1", 10)
        assert told["update_sha256"] == digest_of(raw)
    assert model(stage, run) == [4.0, 8.0, 12.0, 16.0]


def test_a_receipt_is_signed_by_the_key_of_the_log_and_names_its_entry(opened, update):
    told = opened.post().json()
    audit = opened.world.hub.audit
    receipt = read_receipt(base64.b64decode(told["document"]), bytes.fromhex(told["signature"]), audit.public_key)
    assert (receipt.update, receipt.organization) == (digest_of(update(1.0)), opened.organizations["north-1"])
    with pytest.raises(Exception, match="not signed by that key"):
        read_receipt(base64.b64decode(told["document"]), bytes.fromhex(told["signature"]), bytes(32))


def test_what_a_site_weighs_is_the_lower_bound_of_its_bucket(stage, update):
    run = stage.submit(quorum=2)
    stage.approve()
    stage.open()
    assert stage.post("north-1", gradients_encrypted="0x" + update(1.0).hex(), sample_count="1-9").status_code == 201
    assert stage.post("south-1", gradients_encrypted="0x" + update(5.0).hex(), sample_count=3).status_code == 201
    assert model(stage, run) == [4.0] * 4


WRONG = [
    {"round": "1"},
    {"round": 0},
    {"round": True},
    {"round": 1.5},
    {"organization_id": 7},
    {"gradients_encrypted": ["0x00"]},
    {"gradients_encrypted": "0x" + "00" * 7 + "0"},
    {"gradients_encrypted": "0xzz"},
    {"gradients_encrypted": "not base64!"},
    {"gradients_encrypted": "0x"},
    {"gradients_encrypted": "0x00"},
    {"gradients_encrypted": "0x" + "ff" * 8 + "00" * 8},
    {"gradients_encrypted": None},
    {"upload_id": "a" * 24, "gradients_encrypted": None},
    {"model_version": 3},
    {"sample_count": 0},
    {"sample_count": -5},
    {"sample_count": "9-1"},
    {"sample_count": "many"},
    {"sample_count": 10**12},
    {"sample_count": None},
    {"sealed_to": "abc"},
    {"privacy": {"epsilon": -1, "delta": 1e-5, "unit": "patient"}},
    {"privacy": {"epsilon": 1, "delta": 2, "unit": "patient"}},
    {"privacy": {"epsilon": 1, "delta": 1e-5, "unit": "house"}},
    {"metrics": [{"name": "a b", "values": [1], "weight": 1}]},
    {"metrics": [{"name": "auc", "kind": "auc", "values": [1], "weight": 1}]},
    {"metrics": [{"name": "loss", "values": [1], "weight": -1}]},
    {"leakage_score": 3},
    {"task_id": "../x"},
    {"password": "x"},
]


def test_what_is_not_as_it_should_be_is_refused_and_the_right_one_is_still_taken(opened, problem_of):
    for changes in WRONG:
        found = opened.post(**changes)
        assert found.status_code in ({404} if "upload_id" in changes else {422}), (changes, found.text)
        problem_of(found, found.status_code)
    assert opened.post().status_code == 201


def test_failed_checks_are_listed_with_the_tensors_that_fail_them(stage, update, problem_of):
    stage.submit("[protection]\nmax_norm = 1.0\n")
    stage.approve("north-1")
    stage.open()
    bad = update(1.0, float("nan"), float("inf"), 0.0)
    found = problem_of(stage.post(gradients_encrypted="0x" + bad.hex()), 422)
    assert kinds(found) == "FailedChecksError"
    assert [(one["check"], "weights" in one["what"]) for one in found["errors"]] == [("nan_check", True)]
    found = problem_of(stage.post(gradients_encrypted="0x" + update(10.0).hex()), 422)
    assert [one["check"] for one in found["errors"]] == ["bounds_check"]
    assert stage.post(gradients_encrypted="0x" + update(0.5).hex()).status_code == 201


STRANGE = [
    {"weights": np.zeros(5, np.float32)},
    {"weights": np.zeros(4, np.float64)},
    {"weights": np.zeros((2, 2), np.float32)},
    {"other": np.zeros(4, np.float32)},
    {"weights": np.zeros(4, np.float32), "more": np.zeros(1, np.float32)},
]


def test_tensors_that_are_not_the_plans_are_refused_by_name(opened, problem_of):
    for tensors in STRANGE:
        found = problem_of(opened.post(gradients_encrypted="0x" + save(tensors).hex()), 422)
        assert kinds(found) == "LayoutMismatchError"


def test_another_round_is_409_and_one_that_is_over_410(stage, problem_of):
    run = stage.submit(rounds=2)
    problem_of(stage.post(), 409)  # nothing is open
    stage.approve("north-1")
    stage.open()
    assert kinds(problem_of(stage.post(round=2), 409)) == "WrongRoundError"
    assert kinds(problem_of(stage.post(model_version="a" * 64), 409)) == "WrongRoundError"
    assert kinds(problem_of(stage.post(task_id="other-1"), 409)) == "WrongRoundError"
    assert stage.post().status_code == 201
    stage.open(2)
    assert kinds(problem_of(stage.post(round=1), 410)) == "RoundOverError"
    assert stage.post(round=2).status_code == 201
    stage.ended(run)
    assert kinds(problem_of(stage.post(round=2), 410)) == "RoundOverError"


def test_one_who_was_not_asked_is_told_why(opened, problem_of):
    assert kinds(problem_of(opened.post("south-1"), 403)) == "NotApprovedError"
    opened.approve("south-1")
    assert kinds(problem_of(opened.post("south-1"), 403)) == "NotInvitedError"


def test_nobody_posts_for_another_organization(opened, problem_of):
    other = opened.organizations["north-1"]
    assert opened.clients["south-1"].post(PATH, json=opened.body()).status_code in {403, 404}
    problem_of(opened.post("south-1", organization_id=other), 404)
    problem_of(opened.post("south-1", organization_id="0" * 24), 404)
    problem_of(opened.clients["north-1"].post(PATH, json=opened.body() | {"envoy": "south-1"}), 404)
    problem_of(opened.world.anonymous().post(PATH, json=opened.body()), 401)


def test_a_site_that_was_revoked_or_suspended_posts_no_more(opened, problem_of):
    hub = opened.world.hub
    organization = hub.organizations.get(opened.organizations["north-1"])
    hub.organizations.change(organization.id, 1, lambda _: None, status=Status.SUSPENDED)
    problem_of(opened.post(), 403)
    hub.organizations.change(organization.id, 2, lambda _: None, status=Status.ACTIVE)
    Revocations(hub.engine).revoke("north-1", "left", opened.world.clock())
    problem_of(opened.post(), 403)


def test_one_answer_counts_and_the_same_may_come_again(stage, update, problem_of):
    run = stage.submit(quorum=2)
    stage.approve()
    stage.open()
    first = stage.post().json()
    again = stage.post()
    assert (again.status_code, again.json()["update_sha256"]) == (201, first["update_sha256"])
    found = problem_of(stage.post(gradients_encrypted="0x" + update(2.0).hex()), 409)
    assert kinds(found) == "DuplicateUpdateError"
    assert stage.post("south-1").status_code == 201
    assert model(stage, run) == [1.0] * 4


def test_an_idempotency_key_gives_the_same_answer_though_the_round_is_over(opened):
    headers = {"Idempotency-Key": "round-1"}
    body = opened.body()
    first = opened.clients["north-1"].post(PATH, json=body, headers=headers)
    opened.ended(opened.run)
    again = opened.clients["north-1"].post(PATH, json=body, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"


def test_under_secure_aggregation_no_body_is_taken_and_the_learner_is_named(stage, problem_of):
    stage.submit(secure="required", quorum=3)
    found = stage.clients["north-1"].get("/api/v1/federated/proposals").json()["items"]
    assert found[0]["is_secure"]
    said = {"organization_id": stage.organizations["north-1"], "approved": [found[0]["proposal_digest"]]}
    problem = problem_of(stage.clients["north-1"].post("/api/v1/federated/approvals", json=said), 409)
    assert "FederatedLearner" in problem["detail"]


def test_a_sealed_body_opens_at_its_own_place_alone(stage, update, problem_of):
    stage.submit(quorum=2)
    stage.approve()
    this = stage.open()
    ref = m.TaskRef(m.RunId(this["task_id"]), 1, this["attempt"], this["plan_digest"])
    key = this["sealing"]["key"]
    to = Destination("lungs", ref, this["model_version"], stage.organizations["north-1"], m.EnvoyName("north-1"))
    body = "0x" + sealed(to, update(1.0), bytes.fromhex(key)).hex()
    assert kinds(problem_of(stage.post("south-1", gradients_encrypted=body, sealed_to=key), 422))
    problem_of(stage.post(gradients_encrypted=body[:-2] + "00", sealed_to=key), 422)
    problem_of(stage.post(gradients_encrypted=body, sealed_to="00" * 32), 409)
    problem_of(stage.post(gradients_encrypted=body), 422)  # it is no update as it is
    assert stage.post(gradients_encrypted=body, sealed_to=key).status_code == 201


def test_an_evaluation_is_answered_with_metrics_and_gives_the_models_accuracy(stage, problem_of):
    run = stage.submit(final=True)
    stage.approve("north-1")
    stage.open()
    problem_of(stage.post(gradients_encrypted=None), 422)
    assert stage.post().status_code == 201
    stage.open(2, "metrics")
    problem_of(stage.post(round=2), 422)
    said = [{"name": "accuracy", "values": [30], "weight": 40}]
    answer = stage.post(round=2, gradients_encrypted=None, metrics=said)
    assert answer.status_code == 201, answer.text
    assert stage.ended(run).state.value == "finished"
    assert stage.clients["north-1"].get("/api/v1/federated/model").json()["accuracy"] == 0.75


def test_a_claim_of_two_gigabytes_is_refused_before_they_come(opened, problem_of):
    client, whose = opened.clients["north-1"], opened.organizations["north-1"]
    headers = {"Content-Length": str(2 << 30), "Content-Type": "application/json"}
    problem_of(client.post(PATH, content=b"{}", headers=headers), 413)
    found = client.post(f"{PATH}/uploads", json={"organization_id": whose, "length": 2 << 30})
    assert kinds(problem_of(found, 422)) == "LengthMismatchError"


def test_a_body_in_pieces_is_resumed_where_it_stopped(opened, update, problem_of):
    client, whose = opened.clients["north-1"], opened.organizations["north-1"]
    raw = update(1.0)
    made = client.post(f"{PATH}/uploads", json={"organization_id": whose, "length": len(raw)})
    assert made.status_code == 201, made.text
    where, headers = made.headers["Location"], {"Content-Type": "application/octet-stream"}
    assert client.put(f"{where}?offset=0", content=raw[:6], headers=headers).json()["offset"] == 6
    problem_of(client.put(f"{where}?offset=0", content=raw[:6], headers=headers), 412)
    problem_of(client.put(f"{where}?offset=6", content=raw, headers=headers), 422)
    problem_of(client.put(f"{where}?offset=6", content=b"", headers=headers), 422)
    problem_of(opened.post(gradients_encrypted=None, upload_id=made.json()["upload_id"]), 422)  # not whole
    problem_of(opened.clients["south-1"].get(where), 404)
    assert client.get(where).json()["offset"] == 6
    assert client.put(f"{where}?offset=6", content=raw[6:], headers=headers).json()["offset"] == len(raw)
    problem_of(opened.post("south-1", gradients_encrypted=None, upload_id=made.json()["upload_id"]), 403)
    answer = opened.post(gradients_encrypted=None, upload_id=made.json()["upload_id"])
    assert answer.status_code == 201, answer.text
    problem_of(client.get(where), 404)


def test_uploads_are_bounded_and_forgotten(opened, problem_of):
    client, whose = opened.clients["north-1"], opened.organizations["north-1"]
    new = {"organization_id": whose, "length": 16}
    made = [client.post(f"{PATH}/uploads", json=new) for _ in range(8)]
    assert {one.status_code for one in made} == {201}
    problem_of(client.post(f"{PATH}/uploads", json=new), 429)
    assert client.delete(made[0].headers["Location"]).status_code == 204
    assert client.post(f"{PATH}/uploads", json=new).status_code == 201
    with opened.world.works.coordinator._lock:
        opened.world.clock.now += 90_000.0
    again = opened.signed_in(opened.world.hub.users.first(USERS.c.name == "north-1-program"))
    problem_of(again.get(made[1].headers["Location"]), 404)


def test_a_site_says_what_it_spent_where_the_run_has_a_budget_and_the_run_ends_before_it_is_passed(stage, problem_of):
    run = stage.submit("[privacy_budget]\nepsilon = 2.0\ndelta = 1e-5\n", rounds=5)
    stage.approve("north-1")
    stage.open()
    found = problem_of(stage.post(), 422)
    assert [one["check"] for one in found["errors"]] == ["privacy_check"]
    loose = {"epsilon": 1.0, "delta": 1e-2, "unit": "patient"}
    assert [one["check"] for one in problem_of(stage.post(privacy=loose), 422)["errors"]] == ["privacy_check"]
    assert kinds(problem_of(stage.post(privacy=loose | {"epsilon": 2.5, "delta": 1e-5}), 402)) == "BudgetExhaustedError"
    for number, epsilon in ((1, 1.0), (2, 1.6)):
        stage.open(number)
        answer = stage.post(round=number, privacy={"epsilon": epsilon, "delta": 1e-5, "unit": "patient"})
        assert answer.status_code == 201, answer.text
    record = stage.ended(run)
    assert record.state.value == "finished"
    assert record.reason.startswith("privacy_budget: north-1 publishes epsilon 1.6")
    assert kinds(problem_of(stage.post(round=3), 402)) == "BudgetExhaustedError"
    budget = stage.clients["north-1"].get("/api/v1/federated/budget").json()
    assert (budget["epsilon"], budget["spent"], budget["rounds_done"]) == (2.0, 1.6, 2)
    assert budget["remaining"] == pytest.approx(0.4)
    report = stage.clients["north-1"].get("/api/v1/federated/privacy-report", params={"round": 1}).json()
    assert (report["round"], report["total_epsilon"], report["participants"]) == (1, 1.0, 1)


def test_a_site_that_says_it_is_away_is_not_waited_for(stage):
    run = stage.submit(quorum=1)
    stage.approve()
    stage.open()
    assert stage.post("north-1").status_code == 201
    gone = {"organization_id": stage.organizations["south-1"], "approved": [], "available_seconds": 0}
    assert stage.clients["south-1"].post("/api/v1/federated/approvals", json=gone).status_code == 200
    assert stage.ended(run).state.value == "finished"


def test_who_may_not_approve_plans_says_only_that_it_is_there(stage, problem_of):
    stage.submit()
    north = stage.organizations["north-1"]
    client = stage.signed_in(stage.world.user("plain", stage.world.hub.organizations.get(north), "site"))
    said = {"organization_id": north, "approved": []}
    assert client.post("/api/v1/federated/approvals", json=said).status_code == 200
    digest = stage.clients["north-1"].get("/api/v1/federated/proposals").json()["items"][0]["proposal_digest"]
    problem_of(client.post("/api/v1/federated/approvals", json=said | {"approved": [digest]}), 404)
    problem_of(stage.clients["north-1"].post("/api/v1/federated/approvals", json=said | {"approved": ["0" * 64]}), 404)
