# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A hospital's first day
#
# A federation runs already; this morning one more hospital wants to take part. By the evening it has signed, its site
# is in, its data manager has approved a study, a model was trained with its X-rays, and everybody can look up who
# allowed what. All that people agree on is said to the director's **REST API**; what is the hospital's own is typed
# **at the hospital**.
#
# Everything here is real, processes and certificates too; only that all of it is on one machine and typed by one
# person. The documents are not real: an agreement is known to the director by the SHA-256 of its text, and signed by
# a click. Nothing here says that a study is lawful: that is for people.

# %%
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fedveil
import matplotlib.pyplot as plt
import numpy as np
from fedveil.director.founding import ROOT_FILE
from fedveil.director.server import REST_ADDRESS_FILE
from fedveil.envoy.datasets import DatasetRegistry
from fedveil.envoy.inspection import inspect
from fedveil.envoy.records import DataOptions
from fedveil.envoy.splits import SplitRule
from fedveil.utils.rest_calls import RestCalls
from fedveil.workspace.chest_xrays import CLASSES, find_images
from fedveil.workspace.local_federation import LocalFederation
from fedveil.workspace.plan_builder import build_plan
from fedveil.workspace.pneumonia import plan as pneumonia
from fedveil.workspace.sites import DEMO_SITES, divide

ROUNDS = int(os.environ.get("FEDVEIL_NOTEBOOK_ROUNDS", "6"))
FOLDER = Path(tempfile.mkdtemp(prefix="fedveil-notebook-"))
PASSWORD = secrets.token_urlsafe(12)
(FOLDER / "password").write_text(PASSWORD)

# %% [markdown]
# ## What is there in the morning
#
# A director with its API, and three hospitals that joined by invitation. The first user is made at the director's
# folder; all others through the API.

# %%
images = find_images(None, 28, FOLDER / "cache")
print(images.description)
paths = divide(images, DEMO_SITES, FOLDER)
options = DataOptions(CLASSES, rule=SplitRule(0.9, 0.1, 0.0))
*others, ours = DEMO_SITES
ENVOY = """
[training]
device = "cpu"
threads = 1
[protection]
chain = ["check", "encode"]  # the form of an update is checked; no patient is protected by that
[secure_aggregation]
rule = "required"  # nothing leaves but inside a secure sum
"""
home = FOLDER / "federation"
home.mkdir()
federation = LocalFederation(home, "notebook")
federation.found(settings={"rest.listen": '"127.0.0.1:0"'})
federation.start_director()
federation.wait_for_director()
for share in others:
    folder = federation.join(share.name, share.organization)
    (folder / "envoy.toml").write_text(ENVOY, "utf-8")
    found = inspect("chest-xray", paths[share.name], options, time.time())
    DatasetRegistry(folder / "datasets").add(found.record, found.index)
    federation.start_envoy(share.name)
federation.wait_for_envoys()


def types(command: str) -> None:
    """What somebody types at a shell, and what it says."""
    print(f"$ {command}")
    program, *words = command.split()
    done = subprocess.run(
        [str(Path(sys.executable).parent / program), *words],
        check=False,
        cwd=home,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "110"},
    )
    print(done.stdout + done.stderr)
    done.check_returncode()


types(
    f"director user add root --organization Federation --role admin --folder director --password-file {FOLDER}/password"
)
URL = (federation.director_folder / REST_ADDRESS_FILE).read_text()
ROOT = federation.director_folder / ROOT_FILE


class Person:
    """Somebody at the API, signed in with the password that everybody here has."""

    def __init__(self, name: str) -> None:
        self.calls = RestCalls(URL, "", ROOT.read_bytes())
        self.calls.bearer = self.post("sessions", {"name": name, "password": PASSWORD})["token"]

    def get(self, path: str, **params: str | int) -> dict:
        return self.calls.json("GET", f"/api/v1/{path}", params=params)

    def post(self, path: str, body: object = None) -> dict:
        return self.calls.json("POST", f"/api/v1/{path}", body)

    def put(self, path: str, body: object) -> dict:
        return self.calls.json("PUT", f"/api/v1/{path}", body)

    def change(self, path: str, version: int, body: object) -> dict:
        return self.calls.json("PATCH", f"/api/v1/{path}", body, headers={"If-Match": f'"{version}"'})


root = Person("root")
print("the API is at", URL)

# %% [markdown]
# ## Eight o'clock: the hospital registers
#
# Its status is *pending* until the federation's administrator accepts it. Then it has an administrator of its own,
# who makes its other users: a data manager, and a researcher. Each may do what a role says, and can ask why.

# %%
ids = {}
for share in DEMO_SITES:
    made = root.post("organizations", {"name": share.organization, "contact": f"it@{share.name}"})
    ids[share.name] = made["organization_id"]
    print(f"{share.organization}: {made['status']}", end="")
    print(" ->", root.change(f"organizations/{ids[share.name]}", made["version"], {"status": "active"})["status"])
    admin = {"name": f"{share.name}-admin", "organization_id": ids[share.name], "password": PASSWORD}
    root.post("users", admin | {"roles": ["organization-admin"]})
for share in others:  # they joined before there was an API: it is said whose they are
    root.put(f"envoys/{share.name}/organization", {"organization_id": ids[share.name]})

admin = Person(f"{ours.name}-admin")
for name, role in (("mara", "data-manager"), ("anna", "researcher")):
    admin.post("users", {"name": name, "organization_id": ids[ours.name], "password": PASSWORD, "roles": [role]})
mara, anna = Person("mara"), Person("anna")
print()
for operation in ("create", "approve"):
    said = anna.get("me/may", operation=operation, resource="agreement", organization_id=ids[ours.name])
    print("may anna", operation, "an agreement?", said["why"])

# %% [markdown]
# ## Nine o'clock: agreements
#
# Without an *infrastructure-user* agreement no envoy of a hospital joins. A collaboration has a permit, of an
# authority, for a purpose, until a date: it ends by itself. A *consortium* agreement says who may start studies and
# who may publish; a *data-processing* or a *joint-controller* agreement says which of the two applies. Each is in
# force once all of its parties have signed.


# %%
def agree(kind: str, parties: list[str], collaboration: str | None = None, **terms: object) -> None:
    """The federation's administrator writes it down; each party's administrator signs."""
    body = {
        "kind": kind,
        "document_sha256": hashlib.sha256(f"the text of the {kind} agreement".encode()).hexdigest(),
        "parties": [ids[name] for name in parties],
        "collaboration_id": collaboration,
        "valid_from": time.time() - 60,
    }
    made = root.post("agreements", body | terms)
    for name in parties:
        made = Person(f"{name}-admin").post(f"agreements/{made['agreement_id']}/signatures")
    print(f"{kind}: signed by {len(made['signed'])}, in force: {made['is_in_force']}")


everybody = [share.name for share in DEMO_SITES]
for name in everybody:
    agree("infrastructure-user", [name])
permit = {
    "number": "2026-17",
    "authority": "an authority that does not exist",
    "purpose": "pneumonia in chest X-rays",
    "starts_at": time.time() - 60,
    "ends_at": time.time() + 86_400,
    "datasets": ["chest-xray"],
}
lungs = {"name": "Lungs", "organizations": list(ids.values()), "permit": permit}
lungs = root.post("collaborations", lungs)["collaboration_id"]
terms = {"may_start_tasks": [ids[ours.name]], "may_publish": [ids[ours.name]], "intellectual_property": "all four"}
agree("consortium", everybody, lungs, **terms)
agree("joint-controller", everybody, lungs)

# %% [markdown]
# ## Eleven o'clock: the site
#
# The hospital's IT makes an API key that may bring an envoy and nothing else, and the site registers with it over
# HTTPS. (Where gRPC gets through, `envoy join` takes a file from `POST /api/v1/envoys` instead.) Keys are made at the
# site and stay there. The data stay where they are: `data add` looks at them once.

# %%
key = {"label": "the site", "rules": ["create:envoy:organization", "edit:envoy:organization"], "days": 30}
(FOLDER / "key").touch(mode=0o600)
(FOLDER / "key").write_text(admin.post("keys", key)["api_key"])
types(f"envoy register {ours.name} --url {URL} --root {ROOT} --key-file {FOLDER}/key --folder {ours.name} --yes")
(home / ours.name / "envoy.toml").write_text(ENVOY, "utf-8")
types(
    f"envoy data add chest-xray {paths[ours.name]} --classes {','.join(CLASSES)} --split 0.9,0.1,0 --folder {ours.name}"
)
federation.adopt(home / ours.name)
federation.start_envoy(ours.name)
federation.wait_for_envoys()

# %% [markdown]
# What the hospital tells the federation of its data is metadata, and a range instead of a count. The figure is for
# the hospital's own eyes.

# %%
with np.load(paths[ours.name], allow_pickle=False) as arrays:
    counts = np.bincount(arrays["train_labels"].ravel(), minlength=2)
about = {"name": "chest-xray", "envoy": ours.name, "modality": "DX", "examples": "100-9999", "description": "children"}
print(mara.post("datasets", about))
figure, axes = plt.subplots(figsize=(5, 1.6), layout="constrained")
axes.barh(CLASSES, counts, color=["#b8b8b8", "#1b6ca8"])
axes.set(xlabel="training images", title=f"{ours.organization}: stays at the site")
plt.show()

# %% [markdown]
# ## Two o'clock: a study
#
# The researcher connects, and proposes a study under the collaboration. Her signing key is made on her machine; the
# director certifies it, and the sites check what it signs. Nothing runs before each site's data manager approved:
# here all sites have the same owner, and `LocalFederation` types `envoy plan approve` for them.

# %%
build_plan(Path(pneumonia.__file__), FOLDER / "plan")
(FOLDER / "experiment.toml").write_text(f"""
name = "pneumonia"
plan = "plan"
secure_aggregation = "required"
[study]
purpose = "pneumonia in chest X-rays"
legal_basis = "permit 2026-17"
[rounds]
max_rounds = {ROUNDS}
min_participants = {len(DEMO_SITES)}
""")
connection = fedveil.connect(URL, name="anna", password=PASSWORD, root=ROOT, folder=FOLDER / "anna")
run = connection.submit(FOLDER / "experiment.toml", collaboration="Lungs")
curve = []
for event in run.stream():
    if event.kind == "metrics":
        curve.append(event.data["metrics"]["auc"])
        print(f"round {event.data['round']}: AUC {curve[-1]:.4f}, pooled over the sites' validation images")
task = run.show()
print(f"{task['state']}: {task['reason']}; under a {task['processing']['kind']} agreement")
types(f"envoy plan list --folder {ours.name}")

# %%
figure, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
axes.plot(range(len(curve)), curve, marker="o", color="#1b6ca8")
axes.set(xlabel="rounds that the model has seen", ylabel="AUC", title="As it was streamed")
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# What it cost in privacy, as far as anybody can know it: all answers were masked, nothing was noised, so there is no
# epsilon.

# %%
report = run.privacy_report()
print({name: report[name] for name in ("total_epsilon", "participants", "secure_aggregation", "leakage_score")})

# %% [markdown]
# ## Four o'clock: the model
#
# Registered under a version, with a card that the director signs: from which data sets, plan and rounds, under which
# permit and agreements, what it is for, what it is not for. Once it is published, every hospital can fetch it, and
# check file and card at home.

# %%
asked = {
    "name": "pneumonia",
    "semver": "1.0.0",
    "task_id": run.id,
    "intended_use": "a tutorial",
    "limitations": "28x28 pixels of children of one hospital; no diagnosis",
}
model = anna.post("models", asked)
model = anna.post(f"models/{model['model_id']}/publication")
with anna.calls.open("GET", f"/api/v1/models/{model['model_id']}/card") as answer:
    print(b"".join(answer.iter_bytes()).decode())

# %%
connection.download_model("pneumonia", FOLDER / "pneumonia.safetensors")
with anna.calls.open("GET", f"/api/v1/models/{model['model_id']}/card", params={"format": "json"}) as answer:
    (FOLDER / "card.json").write_bytes(b"".join(answer.iter_bytes()))
verify = f"fedveil model verify {FOLDER}/pneumonia.safetensors --card {FOLDER}/card.json"
types(f"{verify} --key {model['key_fingerprint'].replace(' ', '')}")
weights = run.model()
names = [name for name, tensor in weights.items() if tensor.ndim > 1]
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
axes.boxplot([weights[name].ravel() for name in names], orientation="horizontal", showfliers=False, tick_labels=names)
axes.set(xlabel="weight", title="What was fetched")
plt.show()

# %% [markdown]
# ## Five o'clock: an auditor, and a hospital that changes its mind
#
# The auditor takes the director's log and the bundle of evidence home, and believes neither before it is checked.
# Then the hospital withdraws its data set: no new study reads it, and each model that it fed says so, beside a
# signature that stays good. What was learned from it is in the model: a withdrawal does not take it out.

# %%
auditor = {"name": "ines", "organization_id": root.get("me")["organization_id"], "password": PASSWORD}
root.post("users", auditor | {"roles": ["auditor"]})
(FOLDER / "evidence.zip").write_bytes(Person("ines").calls.send("POST", "/api/v1/audit/evidence", b"", "text/plain"))
types(f"fedveil audit verify {FOLDER}/evidence.zip")
dataset = next(one for one in mara.get("datasets")["items"] if one["envoy"] == ours.name)
mara.post(f"datasets/{dataset['dataset_id']}/withdrawal", {"reason": "consent of some patients was taken back"})
marked = anna.get(f"models/{model['model_id']}")["withdrawn_datasets"]
print("the model says:", [f"{one['name']} of {one['envoy']} was withdrawn" for one in marked])

# %%
connection.close()
federation.end()
shutil.rmtree(FOLDER)
