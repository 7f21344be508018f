"""A newcomer registers without a key and nothing comes of it; and the model, to those who may have it."""

from __future__ import annotations

import pytest
from fedveil.director.hub.encryption_keys import age_text, fingerprint
from fedveil.director.rest.federated_organizations import AT_ONCE
from fedveil.utils.tensors import digest_of

ORGANIZATIONS, MODEL = "/api/v1/federated/organizations", "/api/v1/federated/model"
KEY = bytes(range(32))
NEW = {"organization_name": "West Hospital", "endpoint": "https://west.example.org", "encryption_key": age_text(KEY)}


def test_a_newcomer_registers_without_a_key_and_may_do_nothing_until_it_is_let_in(world, problem_of):
    newcomer = world.anonymous()
    answer = newcomer.post(ORGANIZATIONS, json=NEW)
    assert answer.status_code == 201
    told = answer.json()
    assert (told["status"], told["fingerprint"]) == ("pending", fingerprint(KEY))
    problem_of(newcomer.get(answer.headers["Location"]), 401)
    admin = world.signed_in("root")
    seen = admin.get(answer.headers["Location"])
    assert seen.json()["encryption_key"] == age_text(KEY)
    done = admin.patch(
        answer.headers["Location"], json={"status": "active"}, headers={"If-Match": seen.headers["ETag"]}
    )
    assert done.json()["status"] == "active"


def test_an_endpoint_may_be_left_out_and_a_key_may_not(world, problem_of):
    newcomer = world.anonymous()
    assert newcomer.post(ORGANIZATIONS, json=NEW | {"endpoint": None}).status_code == 201
    problem_of(newcomer.post(ORGANIZATIONS, json={"organization_name": "x"}), 422)
    secret = "AGE-SECRET-KEY-1QQPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQSXZQ5C"
    found = problem_of(newcomer.post(ORGANIZATIONS, json=NEW | {"encryption_key": secret}), 422)
    assert "looks like a secret" in found["detail"]
    assert secret not in str(found)
    for wrong in ({"organization_name": 3}, {"organization_name": "a\nb"}, {"encryption_key": "00"}, {"role": "admin"}):
        problem_of(newcomer.post(ORGANIZATIONS, json=NEW | wrong), 422)


def test_one_address_registers_a_few_times_and_then_waits(world, problem_of):
    newcomer = world.anonymous()
    for number in range(int(AT_ONCE)):
        assert newcomer.post(ORGANIZATIONS, json=NEW | {"organization_name": f"w{number}"}).status_code == 201
    problem_of(newcomer.post(ORGANIZATIONS, json=NEW), 429)
    world.clock.now += 3600.0
    assert newcomer.post(ORGANIZATIONS, json=NEW).status_code == 201


def test_whoever_comes_with_a_key_must_be_allowed_to(world, problem_of):
    problem_of(world.signed_in("north-admin").post(ORGANIZATIONS, json=NEW), 403)
    assert world.signed_in("root").post(ORGANIZATIONS, json=NEW).status_code == 201
    stranger = world.anonymous()
    stranger.headers["Authorization"] = "Bearer fs_" + "a" * 43
    problem_of(stranger.post(ORGANIZATIONS, json=NEW), 401)


@pytest.fixture
def trained(stage):
    """A run of one round that is over."""
    run = stage.submit()
    stage.approve("north-1")
    stage.open()
    assert stage.post().status_code == 201
    stage.record = stage.ended(run)
    return stage


def test_the_model_has_all_that_is_said_of_it_and_is_the_file(trained, problem_of):
    client, digest = trained.clients["north-1"], trained.record.model
    answer = client.get(MODEL)
    told = answer.json()
    raw = bytes.fromhex(told["weights"].removeprefix("0x"))
    assert digest_of(raw) == told["sha256"] == told["model_version"] == digest
    assert (told["training_round"], told["organizations_contributed"], told["bytes"]) == (1, 1, len(raw))
    assert told["accuracy"] is None
    assert len(told["signature"]) == 128
    assert client.get(MODEL, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    file = client.get(MODEL, params={"format": "safetensors", "version": digest})
    assert file.content == raw
    part = client.get(MODEL, params={"format": "safetensors"}, headers={"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, raw[8:16])
    for version in ("9.9.9", "f" * 64, "yesterday"):
        problem_of(client.get(MODEL, params={"version": version}), 404)
    problem_of(client.get(MODEL, params={"task": "other-1"}), 404)
    problem_of(client.get(MODEL, params={"format": "pickle"}), 422)


def test_who_takes_no_part_sees_no_model_report_or_budget(trained, problem_of):
    outsider = trained.world.signed_in("north-admin")
    for path in ("model", "privacy-report", "budget", "round"):
        found = outsider.get(f"/api/v1/federated/{path}")
        assert problem_of(found, 404)["detail"]
        problem_of(trained.world.anonymous().get(f"/api/v1/federated/{path}"), 401)


def test_without_a_budget_nothing_is_made_up(trained):
    told = trained.clients["north-1"].get("/api/v1/federated/budget").json()
    assert [told[name] for name in ("epsilon", "spent", "remaining", "rounds_allowed")] == [None] * 4
    report = trained.clients["north-1"].get("/api/v1/federated/privacy-report").json()
    assert (report["total_epsilon"], report["participants"]) == (None, 1)
    assert report["secure_aggregation"]["state"] == "off"
