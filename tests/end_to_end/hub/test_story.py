"""The story of a federation that is run from its API: from the first organization to a dataset that is withdrawn.

Over HTTP alone, but for what is a site's own and done at the site (joining, adding data, accepting the roster,
approving) and the very first user. Three hospitals speak gRPC, one REST; they sum securely.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import fedveil
import numpy as np
import pytest
from fedveil.director.researcher.run import Run
from fedveil.envoy.__main__ import app as envoy
from fedveil.utils import errors
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.__main__ import app as fedveil_app
from fedveil.workspace.plan_builder import build_plan
from safetensors.numpy import load
from typer.testing import CliRunner

NAMES = ("north", "south", "west", "east")
OVER_REST = "east"
PLAN = '''
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, auc_of, mean_of


class Line(ArrayPlan):
    """A logistic regression on two columns."""

    data = DataSpec("people", DataKind.TABLE, (2,), ("well", "ill"), ("marker", "age"))

    def initial(self):
        return {"w": np.array([0.1, 0.0, 0.0], np.float32)}

    def train(self, weights, data, rng):
        x = np.c_[data.features, np.ones(len(data))]
        w = weights["w"].astype(np.float64)
        for _ in range(5):
            w -= 0.5 * x.T @ (1 / (1 + np.exp(-x @ w)) - data.labels) / len(data)
        return {"w": w.astype(np.float32)}, len(data)

    def evaluate(self, weights, data):
        score = 1 / (1 + np.exp(-np.c_[data.features, np.ones(len(data))] @ weights["w"].astype(np.float64)))
        yield mean_of("accuracy", float(((score > 0.5) == data.labels).sum()), len(data))
        yield auc_of("auc", score, data.labels)
'''
EXPERIMENT = """
name = "{name}"
plan = "{plan}"
[study]
purpose = "who is ill"
legal_basis = "ethics vote 2026-041"
min_approvals = 4
[rounds]
max_rounds = {rounds}
min_participants = 3
round_timeout_seconds = 120
[secure_sum]
clip = 4.0
max_examples = 1000
"""


def typed(app: Any, *words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def people(path: Path, seed: int) -> None:
    """As many women as men, half of each ill; the marker says less of men. One in two is held out."""
    rng = np.random.default_rng(seed)
    rows = ["marker,age,sex,ill,part,patient"]
    for sex, spread in (("F", 0.3), ("M", 0.9)):
        for n in range(160):
            ill = n // 2 % 2
            marker = ill + rng.normal(0, spread)
            rows.append(f"{marker:.4f},{rng.random():.3f},{sex},{ill},{('test', 'train')[n % 2]},{sex}{n}-Doe-{seed}")
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture
def federation(tmp_path, toy_federation, free_port):
    """A director with the API, and nobody else."""
    with toy_federation(tmp_path, "", "required") as made:
        made.sites = ()
        made.director_settings = {"rest.listen": f'"127.0.0.1:{free_port()}"'}
        made.set_up()
        yield made
        made.history._engine.dispose()


@pytest.fixture
def consortium(consortium_of, federation):
    """People, who use the API."""
    made = consortium_of(federation.director_folder)
    yield made
    made.close()


def bring(consortium, federation, said, tmp_path, number: int, name: str) -> dict[str, Any]:
    """A hospital signs for the infrastructure, its envoy joins, and its data manager says what data there is."""
    admin = consortium.signed_in(f"{name}-admin")
    said(admin.post("/api/v1/envoys", json={"name": f"{name}-1"}), 403)  # not without the agreement
    consortium.sign("infrastructure-user", [name])
    folder = federation.folder / f"{name}-1"
    if name == OVER_REST:
        key = tmp_path / "east.key"
        key.write_text(consortium.key(admin, "create:envoy:organization", "edit:envoy:organization"))
        key.chmod(0o600)
        where = ("--url", consortium.url, "--root", consortium.root, "--key-file", key, "--folder", folder, "--yes")
        typed(envoy, "register", f"{name}-1", *where)
    else:
        invited = said(admin.post("/api/v1/envoys", json={"name": f"{name}-1"}), 201)
        file = tmp_path / f"{name}.join"
        file.write_text(invited["join_file"])
        typed(envoy, "join", file, "--fingerprint", invited["root_sha256"], "--folder", folder)
    (folder / "envoy.toml").write_text(federation.envoy_settings)
    if name != "west":  # which tells nothing of its subgroups
        with (folder / "envoy.toml").open("a") as settings:
            settings.write('\n[fairness]\npublish = true\nsubgroups = ["sex"]\n')
    people(tmp_path / f"{name}.csv", number)
    columns = ("--label", "ill", "--columns", "marker,age", "--patient", "patient", "--split-column", "part")
    file, classes = tmp_path / f"{name}.csv", ("--classes", "well=0,ill=1")
    typed(envoy, "data", "add", "people", file, *columns, *classes, "--folder", folder)
    federation.adopt(folder)
    federation.start_envoy(f"{name}-1")
    manager = consortium.user(f"{name}-data", name, "data-manager")
    about = {"name": "people", "envoy": f"{name}-1", "modality": "table", "examples": "100-999"}
    return dict(said(manager.post("/api/v1/datasets", json=about), 201))


@pytest.mark.slow
@pytest.mark.story
def test_the_hub_story_from_the_first_organization_to_a_withdrawn_dataset(
    consortium, federation, said, wait_until, tmp_path
):
    # ---- four hospitals: each registers, is accepted, and gets an administrator, who does the rest for it
    for name in NAMES:
        consortium.organization(name)
    datasets = [bring(consortium, federation, said, tmp_path, number, name) for number, name in enumerate(NAMES)]
    envoys = {f"{name}-1" for name in NAMES}
    wait_until(lambda: federation.sees(envoys), "all four", 90)
    anna = consortium.user("anna", "north", "researcher")
    otto = consortium.user("otto", "south", "researcher")
    vera = consortium.user("vera", "west", "reviewer")

    # ---- a collaboration under a permit; without its agreements nothing starts
    lungs = consortium.collaboration("Lungs", list(NAMES), ["people"])
    (tmp_path / "line.py").write_text(PLAN)
    build_plan(tmp_path / "line.py", tmp_path / "bundle")
    experiment = tmp_path / "experiment.toml"

    def submit(who: str, name: str, rounds: int) -> Run:
        experiment.write_text(EXPERIMENT.format(name=name, plan="bundle", rounds=rounds))
        return clients[who].submit(experiment, collaboration="Lungs")

    clients = {
        name: fedveil.connect(
            consortium.url,
            name=name,
            password="correct horse battery staple",
            root=consortium.root,
            folder=tmp_path / f"{name}-key",
        )
        for name in ("anna", "otto")
    }
    with pytest.raises(errors.AgreementError, match="no consortium agreement in force"):
        submit("anna", "line", 3)
    terms: dict[str, Any] = {"may_start_tasks": ["north"], "may_publish": ["north"]}
    consortium.sign("consortium", list(NAMES), lungs, intellectual_property="The four hospitals", **terms)
    with pytest.raises(errors.AgreementError, match="data-processing"):
        submit("anna", "line", 3)
    consortium.sign("joint-controller", list(NAMES), lungs)
    with pytest.raises(errors.AgreementError, match="may not start tasks"):
        submit("otto", "line", 3)

    # ---- the collaboration asks for a reviewer's word on each plan
    tag = {"If-Match": '"1"'}
    said(consortium.admin.patch(f"/api/v1/collaborations/{lungs}", json={"reviews_needed": 1}, headers=tag), 200)
    with pytest.raises(errors.AgreementError, match="0 approved this one"):
        submit("anna", "line", 3)
    plan = open_bundle(tmp_path / "bundle")
    clients["anna"].show_plan(plan, collaboration="Lungs")
    thread = f"/api/v1/plans/{plan.manifest.digest}/remarks"
    said(vera.post(thread, json={"text": "It reads what it says.", "verdict": "approved"}), 201)
    assert [one["author"] for one in clients["anna"].remarks(plan)] == ["vera"]

    # ---- a run: four sites, three over gRPC and one over REST, in one secure sum
    run = submit("anna", "line", 3)
    events = list(run.stream())
    task = run.show()
    assert task["state"] == "finished", task["reason"]
    assert task["processing"]["kind"] == "joint-controller"
    trained = [one for one in task["rounds"] if one["kind"] == "train"]
    assert [one["survivors"] for one in trained] == [sorted(envoys)] * 3
    assert {one["envoy"] for one in task["subtasks"]} == envoys
    assert [one.data["metrics"]["auc"] for one in events if one.kind == "metrics"][-1] > 0.8
    assert vera.get(f"/api/v1/tasks/{run.id}").status_code == 200
    stranger = consortium.client()
    assert stranger.get(f"/api/v1/tasks/{run.id}").status_code == 401

    # ---- what it cost, and whether it is fair
    privacy = run.privacy_report()
    assert privacy["participants"] == 4
    assert privacy["secure_aggregation"]["state"] == "all"
    fairness = said(anna.get(f"/api/v1/reports/fairness/{run.id}"), 200)["rounds"][-1]
    assert (fairness["publishing"], fairness["silent"]) == (3, ["west-1"])
    pooled = {(one["value"], one["metric"]): one["mean"] for one in fairness["pooled"]}
    assert pooled["F", "auc"] > pooled["M", "auc"]

    # ---- the model: registered, its card read, published, downloaded elsewhere and checked there
    new = {
        "name": "line",
        "semver": "1.0.0",
        "task_id": run.id,
        "intended_use": "to be looked at",
        "limitations": "two columns of people who do not exist",
    }
    model = said(anna.post("/api/v1/models", json=new), 201)
    assert said(otto.post(f"/api/v1/models/{model['model_id']}/publication"), 403)
    published = said(anna.post(f"/api/v1/models/{model['model_id']}/publication"), 200)
    assert published["is_published"]
    card = anna.get(f"/api/v1/models/{model['model_id']}/card").text.replace("\\", "")  # Markdown's
    for expected in (
        "The four hospitals",
        "two columns of people who do not exist",
        "P-2026-17",
        "ethics vote 2026-041",
    ):
        assert expected in card
    outsider = consortium_reader(consortium)
    path = f"/api/v1/models/{model['model_id']}/file"
    half = outsider.get(path, headers={"Range": "bytes=0-49"})
    assert half.status_code == 206
    rest = outsider.get(path, headers={"Range": "bytes=50-", "If-Range": half.headers["etag"]})
    whole = half.content + rest.content
    assert hashlib.sha256(whole).hexdigest() == published["sha256"] == task["model_digest"]
    assert load(whole)["w"].shape == (3,)
    (tmp_path / "line.safetensors").write_bytes(whole)
    (tmp_path / "card.json").write_bytes(
        outsider.get(f"/api/v1/models/{model['model_id']}/card", params={"format": "json"}).content
    )
    verify = ("model", "verify", tmp_path / "line.safetensors", "--card", tmp_path / "card.json")
    typed(fedveil_app, *verify, "--key", published["key_fingerprint"])
    (tmp_path / "line.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert CliRunner().invoke(fedveil_app, list(map(str, verify))).exit_code == 1
    served = said(anna.get("/api/v1/federated/model", params={"version": "1.0.0"}), 200)
    assert bytes.fromhex(served["weights"].removeprefix("0x")) == whole
    assert served["organizations_contributed"] == 4

    # ---- a permit that ends in the middle of a run
    long = submit("anna", "long", 5000)
    wait_until(lambda: any(one["state"] == "closed" for one in long.show()["rounds"]), "a round of the long run", 90)
    before = said(consortium.admin.get(f"/api/v1/collaborations/{lungs}"), 200)
    permit = before["permit"] | {"ends_at": time.time() + 2.0}
    tag = {"If-Match": f'"{before["version"]}"'}
    said(consortium.admin.patch(f"/api/v1/collaborations/{lungs}", json={"permit": permit}, headers=tag), 200)
    ended = long.wait()
    assert ended["state"] in {"failed", "stopped"}
    assert "permit P-2026-17" in ended["reason"]
    closed = [one["round"] for one in ended["rounds"] if one["state"] == "closed"]
    assert closed == list(range(1, len(closed) + 1))
    assert long.model().keys() == {"w"}  # what was closed stays
    with pytest.raises(errors.AgreementError, match="ended on"):
        submit("anna", "again", 1)

    # ---- a dataset is withdrawn: the models that it fed say so, beside a signature that stays good
    data_manager = consortium.signed_in("south-data")
    gone = f"/api/v1/datasets/{datasets[1]['dataset_id']}/withdrawal"
    said(otto.post(gone, json={"reason": "not mine"}), 403)
    said(data_manager.post(gone, json={"reason": "consent of some was taken back"}), 200, 201)
    marked = said(anna.get(f"/api/v1/models/{model['model_id']}"), 200)
    assert [one["dataset_id"] for one in marked["withdrawn_datasets"]] == [datasets[1]["dataset_id"]]
    assert outsider.head(path).headers["fedveil-withdrawn-datasets"]
    assert marked["signature"] == published["signature"]

    # ---- an auditor takes it all home and checks it there
    auditor = consortium.user("ines", "the director's", "auditor", by=consortium.admin)
    bundle = tmp_path / "evidence.zip"
    answer = auditor.post("/api/v1/audit/evidence")
    assert answer.status_code == 200
    bundle.write_bytes(answer.content)
    checked = typed(fedveil_app, "audit", "verify", bundle)
    assert "3 fairness reports" in checked.replace("\n", " ")
    evidence = read_json_members(bundle)
    assert "The four hospitals" in json.dumps(evidence["organization-agreements.json"])
    assert [(one["author"], one["verdict"]) for one in evidence["remarks.json"]] == [("vera", "approved")]
    assert {one["run"] for one in evidence["tasks.json"]} == {run.id, long.id}
    for file in (bundle.read_bytes(), (federation.director_folder / "log.txt").read_bytes()):
        assert b"-Doe-" not in file
    for client in clients.values():
        client.close()


def consortium_reader(consortium: Any) -> Any:
    """Somebody of another organization of the federation, outside of the collaboration."""
    consortium.organization("far")
    return consortium.user("reader", "far", "researcher")


def read_json_members(bundle: Path) -> dict[str, Any]:
    with zipfile.ZipFile(bundle) as files:
        return {name: json.loads(files.read(name)) for name in files.namelist() if name.endswith(".json")}
