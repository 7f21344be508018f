"""The registry over HTTP: a model of a task under a version, who sees it, what its card says, what withdrawals do."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fedveil.director.audit import audit_key
from fedveil.director.hub.agreements import Kind
from fedveil.director.hub.datasets import Dataset
from fedveil.director.hub.models import Models
from fedveil.director.hub.store import new_id
from fedveil.director.retention import Retention
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import SuspectLogError
from fedveil.utils.model_card import check_model_file, read_card
from fedveil.utils.proposal import Step
from fedveil.utils.tensors import Digest
from safetensors.numpy import load

SAID = {"intended_use": "Triage of pneumonia.\n# not a heading <b>", "limitations": "Adults alone."}


class Registry:
    """A task that is over, and who may register its model."""

    def __init__(self, study) -> None:
        self.study, self.hub = study, study.hub
        north = study.organizations["north"]
        self.consortium = study.sign(
            study.collaboration,
            Kind.CONSORTIUM,
            may_start_tasks=frozenset([north.id]),
            may_publish=frozenset([north.id]),
            intellectual_property="both hospitals in equal parts",
        )
        self.dataset = self.offer("north")
        self.anna = study.researcher("anna")
        self.run()

    def offer(self, name: str) -> Dataset:
        organization = self.study.organizations[name]
        made = Dataset(new_id(), "xrays", organization.id, f"{name}-1", "chest X-rays", created_at=1.0)
        return self.hub.datasets.add(made)

    def run(self, rounds: int = 2) -> str:
        self.study.world.clock.now += 1  # no proposal comes twice
        task = self.study.submit(self.anna, "anna", self.study.experiment(rounds=rounds))
        lines = self.study.there("north-1", "south-1")
        for _ in range(rounds):
            for name, line in lines.items():
                self.study.answer(name, self.study.order(line))
        self.study.until(task, lambda run: run.state.is_over)
        return task["task_id"]

    def register(self, semver="1.0.0", who=None, **more):
        body = {"name": "pneumonia", "semver": semver, "task_id": "study-1"} | SAID | more
        return (who or self.anna).post("/api/v1/models", json=body)

    def made(self, semver="1.0.0", **more):
        answer = self.register(semver, **more)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def withdraw(self, dataset: Dataset | None = None) -> None:
        one = self.hub.datasets.get((dataset or self.dataset).id)
        self.hub.datasets.change(one.id, one.version, lambda _: None, withdrawn_at=self.study.world.clock())

    def outsider(self):
        world = self.study.world
        world.user("eve", world.organization("East Hospital"), "researcher")
        return world.signed_in("eve")


@pytest.fixture
def registry(study):
    return Registry(study)


def test_a_model_has_its_lineage_from_dataset_to_file_on_a_card_that_is_signed(registry, tmp_path):
    made = registry.made()
    study, lineage, card = registry.study, made["lineage"], made["card"]
    record = study.history.run("study-1")
    assert (made["round"], made["sha256"], made["version"]) == (2, record.model, 1)
    assert (lineage["plan"], lineage["data"], lineage["model"]) == (record.plan, "xrays", record.model)
    assert [one["round"] for one in lineage["rounds"]] == [1, 2]
    assert lineage["rounds"][0]["model_out"] == lineage["rounds"][1]["model_in"]
    assert lineage["began_with"] == study.plan().manifest.file("initial.safetensors").sha256
    north, south = lineage["datasets"]
    assert (north["site"], north["dataset"], north["rounds"]) == ("north-1", registry.dataset.id, [1, 2])
    assert (south["site"], south["dataset"]) == ("south-1", None)
    assert (card["purpose"], card["permit"]["authority"]) == ("a test", "The Ministry")
    assert card["intellectual_property"]["owner"] == "both hospitals in equal parts"
    assert (card["registered"]["user"], card["published"]) == ("anna", None)
    assert card["protection"]["secure_aggregation"] == {"rounds": 2, "secure": 0}
    assert card["privacy"]["without_epsilon"] == ["north-1", "south-1"]
    saved = registry.anna.get(f"/api/v1/models/{made['model_id']}/card", params={"format": "json"}).content
    signed = read_card(saved)
    assert signed.key == public_bytes(audit_key(study.folder).public_key())
    assert signed.card == card
    file = tmp_path / "model.safetensors"
    file.write_bytes(registry.anna.get(f"/api/v1/models/{made['model_id']}/file").content)
    check_model_file(signed, file)
    assert load(file.read_bytes())["weights"].tolist() == [2.0] * 4
    assert read_card(json.dumps(made).encode()) == signed  # the answer holds it as well


def test_the_card_for_people_lets_nobody_write_in_its_name(registry):
    made = registry.made(limitations="x\n\n## Signature\n\n<script>\n| a | b |")
    answer = registry.anna.get(f"/api/v1/models/{made['model_id']}/card")
    page = answer.text
    assert answer.headers["content-type"].startswith("text/markdown")
    assert [one for one in page.splitlines() if one.startswith("## Signature")] == ["## Signature"]
    assert "> \\#\\# Signature" in page
    assert "<script>" not in page
    assert "None that was registered, as of this answer." in page
    assert made["key_fingerprint"] in page
    assert made["sha256"] in page
    assert "No epsilon was published by north\\-1, south\\-1." in page


def test_any_round_that_the_model_went_through_may_be_registered(registry, problem_of):
    for number in (1, 2):
        made = registry.made(f"1.0.{number}", round=number)
        assert (made["round"], len(made["lineage"]["rounds"])) == (number, number)
        file = registry.anna.get(f"/api/v1/models/{made['model_id']}/file").content
        assert load(file)["weights"].tolist() == [float(number)] * 4
    problem_of(registry.register("1.0.3", round=3), 404)


def test_a_version_is_registered_once_and_the_next_one_grows(registry, problem_of):
    registry.made()
    problem_of(registry.register(), 409)
    problem_of(registry.register("0.9.0"), 422)
    problem_of(registry.register("1.0"), 422)
    assert registry.made("1.0.1")["semver"] == "1.0.1"
    listed = registry.anna.get("/api/v1/models", params={"name": "pneumonia"}).json()["items"]
    assert sorted(one["semver"] for one in listed) == ["1.0.0", "1.0.1"]
    assert registry.anna.get("/api/v1/models", params={"name": "bones"}).json()["items"] == []


def test_a_name_stays_with_its_collaboration(registry, problem_of):
    registry.made()
    other = registry.study.agree("Bones", "north", "south")
    registry.study.collaboration = other
    task = registry.run()
    problem_of(registry.register("2.0.0", task_id=task), 409)
    assert registry.made(task_id=task, name="bones")["collaboration_id"] == other.id


def test_of_two_who_register_one_version_at_once_one_does(registry):
    together = threading.Barrier(2)

    def ask(_):
        together.wait(60)
        return registry.register().status_code

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(ask, range(2))) == [201, 409]


def test_of_two_who_publish_at_once_both_are_told_and_one_stands_on_the_card(registry):
    made = registry.made()
    together = threading.Barrier(2)

    def ask(_):
        together.wait(60)
        return registry.anna.post(f"/api/v1/models/{made['model_id']}/publication")

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(ask, range(2)))
    assert [one.status_code for one in answers] == [200, 200]
    assert {one.json()["version"] for one in answers} == {2}
    assert answers[0].json()["signature"] == answers[1].json()["signature"]


def test_before_it_is_published_nobody_outside_sees_it_and_then_everybody_does(registry, problem_of):
    made, eve = registry.made(), registry.outsider()
    url = f"/api/v1/models/{made['model_id']}"
    for path in ("", "/card", "/file"):
        problem_of(eve.get(url + path), 404)
    problem_of(eve.post(f"{url}/publication"), 404)
    assert eve.head(f"{url}/file").status_code == 404
    assert eve.get("/api/v1/models").json()["items"] == []
    partner = registry.study.researcher("sam", "south")
    assert partner.get(f"{url}/file").status_code == 200
    assert partner.get("/api/v1/models").json()["items"][0]["model_id"] == made["model_id"]

    published = registry.anna.post(f"{url}/publication")
    assert published.status_code == 200, published.text
    card = published.json()["card"]
    assert card["published"]["user"] == "anna"
    assert card["published"]["agreement"]["id"] == registry.consortium.id
    read_card(json.dumps(published.json()).encode())
    for path in ("", "/card", "/file"):
        assert eve.get(url + path).status_code == 200
    assert [one["model_id"] for one in eve.get("/api/v1/models").json()["items"]] == [made["model_id"]]
    again = registry.anna.post(f"{url}/publication")
    assert again.json()["signature"] == published.json()["signature"]
    assert registry.study.world.anonymous().get(f"{url}/file").status_code == 401


def test_only_whose_task_it_is_registers_and_only_whom_the_consortium_lets_publishes(registry, problem_of):
    sam = registry.study.researcher("sam", "south")
    problem_of(registry.register(who=sam), 403)
    reader = registry.study.world.user("rita", registry.study.organizations["north"], "reviewer")
    rita = registry.study.world.signed_in(reader.name)
    problem_of(registry.register(who=rita), 403)
    problem_of(registry.register(who=registry.outsider()), 404)
    made = registry.made()
    url = f"/api/v1/models/{made['model_id']}/publication"
    problem_of(sam.post(url), 403)
    problem_of(rita.post(url), 403)
    south = registry.study.organizations["south"]
    registry.study.sign(registry.study.collaboration, Kind.CONSORTIUM, may_publish=frozenset([south.id]))
    assert "may not publish" in problem_of(registry.anna.post(url), 403)["detail"]


def test_a_key_without_the_rule_sees_no_published_model(registry, problem_of):
    made = registry.made()
    registry.anna.post(f"/api/v1/models/{made['model_id']}/publication")
    body = {"label": "x", "rules": ["view:task:collaboration"], "days": 1}
    key = registry.study.world.signed_in("anna").post("/api/v1/keys", json=body)
    assert key.status_code == 201, key.text
    bearer = registry.study.world.anonymous()
    bearer.headers["Authorization"] = f"Bearer {key.json()['api_key']}"
    assert bearer.get("/api/v1/models").json()["items"] == []
    problem_of(bearer.get(f"/api/v1/models/{made['model_id']}"), 404)


def test_a_withdrawn_dataset_marks_the_models_that_it_fed_and_breaks_no_signature(registry, problem_of):
    made = registry.made()
    url = f"/api/v1/models/{made['model_id']}"
    assert made["withdrawn_datasets"] == []
    for path in (f"{url}/file", "/api/v1/federated/model?version=1.0.0"):
        assert "fedveil-withdrawn-datasets" not in registry.anna.get(path).headers
    registry.withdraw()
    marked = registry.anna.get(url).json()
    assert [(one["dataset_id"], one["in_card"]) for one in marked["withdrawn_datasets"]] == [
        (registry.dataset.id, False)
    ]
    assert marked["signature"] == made["signature"]
    read_card(json.dumps(marked).encode())
    held = {"If-None-Match": f'"{made["sha256"]}"'}
    for answer in (
        registry.anna.get(f"{url}/file"),
        registry.anna.head(f"{url}/file"),
        registry.anna.get(f"{url}/file", headers={"Range": "bytes=0-1"}),
        registry.anna.get(f"{url}/file", headers=held),
        registry.anna.get(f"{url}/card"),
    ):
        assert answer.headers["fedveil-withdrawn-datasets"] == registry.dataset.id
    for asked, headers in (
        ({"version": "1.0.0"}, {}),
        ({"version": made["sha256"]}, {}),
        ({"task": "study-1"}, {}),
        ({"version": "1.0.0"}, {"If-None-Match": f'"{made["sha256"]}-hex"'}),
        ({"version": "1.0.0", "format": "safetensors"}, {}),
        ({"version": "1.0.0", "format": "safetensors"}, {"Range": "bytes=0-1"}),
        ({"version": "1.0.0", "format": "safetensors"}, held),
    ):
        answer = registry.anna.get("/api/v1/federated/model", params=asked, headers=headers)
        assert answer.headers["fedveil-withdrawn-datasets"] == registry.dataset.id
    assert "after the card was signed" in registry.anna.get(f"{url}/card").text
    assert "was withdrawn" in problem_of(registry.anna.post(f"{url}/publication"), 409)["detail"]
    later = registry.made("1.0.1")
    assert later["card"]["withdrawn_datasets"] == [registry.dataset.id]
    assert [one["in_card"] for one in later["withdrawn_datasets"]] == [True]


def test_a_dataset_of_a_site_that_took_no_part_marks_nothing(registry):
    elsewhere = registry.offer("south")
    study = registry.study
    other = study.hub.datasets.add(
        Dataset(new_id(), "scans", study.organizations["north"].id, "north-1", "others", created_at=1.0)
    )
    made = registry.made()
    registry.withdraw(other)
    assert registry.anna.get(f"/api/v1/models/{made['model_id']}").json()["withdrawn_datasets"] == []
    registry.withdraw(elsewhere)
    marks = registry.anna.get(f"/api/v1/models/{made['model_id']}").json()["withdrawn_datasets"]
    assert [one["envoy"] for one in marks] == ["south-1"]


def test_a_model_that_is_registered_outlives_the_sweep_of_old_rounds(registry):
    made, study = registry.made(round=1), registry.study
    old, last = Digest(made["sha256"]), study.history.run("study-1").model
    Retention(study.history, study.artifacts, 1, Models(study.hub.engine).digests).sweep()
    assert study.artifacts.has(old)
    assert study.artifacts.has(last)
    answer = registry.anna.get(f"/api/v1/models/{made['model_id']}/file")
    assert hashlib.sha256(answer.content).hexdigest() == old


def test_what_was_swept_cannot_be_registered_and_nothing_is_kept_of_it(registry, problem_of):
    study = registry.study
    Retention(study.history, study.artifacts, 1, Models(study.hub.engine).digests).sweep()
    assert "not kept any more" in problem_of(registry.register(round=1), 409)["detail"]
    assert registry.anna.get("/api/v1/models").json()["items"] == []


def test_a_task_that_goes_on_and_one_that_gives_metrics_alone_have_no_model_to_register(registry, problem_of):
    study = registry.study
    going = study.submit(registry.anna, "anna", study.experiment(rounds=5))
    assert "once it is over" in problem_of(registry.register(task_id=going["task_id"]), 409)["detail"]
    whole = study.experiment(name="figures", rounds=1)
    text = whole.replace('purpose = "a test"', 'purpose = "a test"\noutputs = ["metrics"]')
    registry.anna.post(f"/api/v1/tasks/{going['task_id']}/patches", json=study.patch("anna", going, Step.STOP))
    task = study.submit(registry.anna, "anna", text)
    lines = study.there("north-1", "south-1")
    for name, line in lines.items():
        study.answer(name, study.order(line))
    study.until(task, lambda run: run.state.is_over)
    problem_of(registry.register(task_id=task["task_id"]), 403)
    given, run = "/api/v1/federated/model", study.history.run(task["task_id"])
    for path, asked in (
        (f"/api/v1/tasks/{run.run}/model", {}),
        (given, {}),
        (given, {"task": run.run}),
        (given, {"task": run.run, "format": "safetensors"}),
        (given, {"version": study.plan().manifest.file("initial.safetensors").sha256, "task": run.run}),
    ):
        refused = problem_of(registry.anna.get(path, params=asked), 403)
        assert refused["detail"] == "the sites were not asked for the model of figures-1, only for its metrics"


def test_a_model_that_a_study_of_metrics_shares_with_another_is_the_others_to_give(registry):
    """Both began with the plan's; what the first gives is no secret of the second."""
    study = registry.study
    text = study.experiment(name="figures").replace('purpose = "a test"', 'purpose = "a test"\noutputs = ["metrics"]')
    study.submit(registry.anna, "anna", text)
    began = study.plan().manifest.file("initial.safetensors").sha256
    told = registry.anna.get("/api/v1/federated/model", params={"version": began})
    assert (told.status_code, told.json()["task_id"]) == (200, "study-1"), told.text


def test_what_is_not_as_described_is_refused_and_keeps_nothing(registry, problem_of):
    for wrong in (
        {"name": "Pneumonia"},
        {"name": ""},
        {"semver": "1.0.0+x"},
        {"semver": 1},
        {"round": 0},
        {"round": "last"},
        {"intended_use": ""},
        {"intended_use": "a\x00b"},
        {"limitations": "x" * 8001},
        {"limitations": None},
        {"published": True},
        {"task_id": ""},
    ):
        problem_of(registry.register(**wrong), 422)
    assert registry.anna.get("/api/v1/models").json()["items"] == []


def test_unknown_ids_are_not_found(registry, problem_of):
    problem_of(registry.register(task_id="study-9"), 404)
    for path in ("", "/card", "/file"):
        problem_of(registry.anna.get(f"/api/v1/models/{'0' * 24}{path}"), 404)
    problem_of(registry.anna.post(f"/api/v1/models/{'0' * 24}/publication"), 404)


def test_a_model_that_began_with_a_registered_one_has_its_data_too(registry):
    """What fed the first fed the second, by way of its weights."""
    first = registry.made()
    study = registry.study
    lineage = registry.hub.models.parents(Digest(first["sha256"]), study.collaboration.id)
    assert ([one.model for one in lineage[0]], lineage[1]) == ([first["model_id"]], (registry.dataset.id,))
    other = study.agree("Bones", "north", "south")
    assert registry.hub.models.parents(Digest(first["sha256"]), other.id) == ((), ())


def test_a_published_model_may_be_begun_with_by_whoever_may_see_it(registry):
    made, digest = registry.made(), registry.study.history.run("study-1").model
    eve = registry.outsider()
    caller = registry.hub.sign_in.caller(eve.headers["authorization"].split()[1], registry.study.world.clock())
    assert not registry.hub.models.seen(caller.actor, digest)
    registry.anna.post(f"/api/v1/models/{made['model_id']}/publication")
    assert registry.hub.models.seen(caller.actor, digest)


def test_a_card_that_was_changed_is_found(registry):
    made = json.dumps(registry.made())
    for field in ("intended_use", "withdrawn_datasets", "published", "version"):
        document = json.loads(made)
        document["card"][field] = "changed"
        with pytest.raises(SuspectLogError, match="was changed"):
            read_card(json.dumps(document).encode())
