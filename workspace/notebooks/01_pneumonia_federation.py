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
# # Four hospitals train a pneumonia detector
#
# The images stay at the sites; model updates travel, under masks that cancel in their sum alone. This notebook does
# from Python what `fedveil demo` does in one command: first as a **simulation** in this process, then with **real
# processes** that talk over mutual TLS. Both give the same model, to the last bit.
#
# **What is protected, and what is not.** Updates, numbers of examples and metrics leave a site inside secure sums: the
# director sees what they come to together, and nothing of one site. That holds as long as no more sites work with the
# director than each site reckons with (here one of four). The protocol is our own code and has had no outside review.
# There is no differential privacy here: nothing is noised, and what the *sum* gives away is not hidden.

# %%
import os
import shutil
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from fedveil import simulate
from fedveil.envoy.datasets import DatasetRegistry
from fedveil.envoy.inspection import inspect
from fedveil.envoy.records import DataOptions
from fedveil.envoy.splits import SplitRule
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.chest_xrays import CLASSES, find_images
from fedveil.workspace.local_federation import LocalFederation
from fedveil.workspace.plan_builder import build_plan
from fedveil.workspace.pneumonia import plan as pneumonia
from fedveil.workspace.scoring import score
from fedveil.workspace.sites import DEMO_SITES, divide
from IPython.display import Code

ROUNDS = int(os.environ.get("FEDVEIL_NOTEBOOK_ROUNDS", "10"))
SEED = 2026
FOLDER = Path(tempfile.mkdtemp(prefix="fedveil-notebook-"))

# %% [markdown]
# ## The images
#
# PneumoniaMNIST: chest X-rays of children, 28x28 pixels, normal or pneumonia. It is taken from the folder that
# `FEDVEIL_DATA_DIR` names, else fetched through the `medmnist` package. Without either, scikit-learn's bundled
# handwritten digits take its place (odd against even), and nothing below says anything about pneumonia.

# %%
images = find_images(None, 28, FOLDER / "cache")
print(images.description)
if not images.is_xrays:
    print("\nThese are NOT X-rays: read every figure below as one about handwritten digits.")

# %%
figure, rows = plt.subplots(2, 6, figsize=(9, 3.4), layout="constrained")
for label, row in enumerate(rows):
    chosen = images.train.images[images.train.labels == label][: len(row)]
    for axes, picture in zip(row, chosen, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    row[0].set_title(CLASSES[label] if images.is_xrays else ("even", "odd")[label], loc="left")
plt.show()

# %% [markdown]
# ## Four sites that differ
#
# A large site that sees mostly ill children, two smaller ones, and a clinic that sees mostly healthy ones. All
# images of one patient go to one site where patients are known (PneumoniaMNIST does not name them). The test images go
# to nobody.

# %%
paths = divide(images, DEMO_SITES, FOLDER)
counts = {}
for name, path in paths.items():
    with np.load(path, allow_pickle=False) as arrays:
        counts[name] = np.bincount(arrays["train_labels"].ravel(), minlength=2)
    print(f"{name}: {counts[name][0]:5,} {CLASSES[0]}, {counts[name][1]:5,} {CLASSES[1]}")

# %%
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
left = np.zeros(len(counts))
for label, colour in enumerate(("#b8b8b8", "#1b6ca8")):
    widths = np.array([counted[label] for counted in counts.values()])
    axes.barh(list(counts), widths, left=left, color=colour, label=CLASSES[label])
    left += widths
axes.invert_yaxis()
axes.set_xlabel("training images")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# What `envoy data add` is told at each site. The classes have names, so that two sites cannot mean different things
# by label 1. Training and validation part are as they were written; no site keeps a test part of its own.

# %%
options = DataOptions(CLASSES, rule=SplitRule(0.9, 0.1, 0.0))
sites = {name: (path, options) for name, path in paths.items()}

# %% [markdown]
# ## The plan
#
# The text that a hospital reads. It says which model, what the loss of one batch is and how the model is judged;
# epochs, backward and the optimizer's step are the framework's. `build_plan` makes the bundle that is submitted: this
# text, the settings, the first weights, and one digest that stands for all of it.

# %%
Code(filename=pneumonia.__file__, language="python")

# %%
build_plan(Path(pneumonia.__file__), FOLDER / "plan")
bundle = open_bundle(FOLDER / "plan")
print(f"{bundle.manifest.name}: {bundle.layout.size:,} parameters, {bundle.layout.num_bytes:,} bytes an update")
print(f"digest {bundle.digest}")

# %% [markdown]
# ## A simulation
#
# The director's rounds and the envoys' code in this process, without TLS, since nothing leaves it. The same seed,
# device and number of threads give the same bits; another number of threads adds in another order, and rounds to other
# bits. The secure sums are the real ones, with keys that live as long as the call; by default a simulation leaves them
# out, as there is nobody here from whom they would hide anything.

# %%
SECURE = 'name = "pneumonia"\nsecure_aggregation = "required"\n'
started = time.monotonic()
together = simulate(bundle, sites, rounds=ROUNDS, experiment=SECURE, seed=SEED, device="cpu", threads=1)
print(f"{together.stop_reason}; {time.monotonic() - started:.0f} s")
for one in together.rounds:
    print(f"{one.kind.value:8} {one.round:3}   loss {one.metrics['loss']:.3f}   AUC {one.metrics['auc']:.4f}")

# %% [markdown]
# Each line is of the model that entered the round, on the sites' validation images, pooled: sites send sums, never a
# prediction of one image. The last line is the final model's.
#
# Now each site alone, with the same plan and as many rounds.

# %%
alone = {
    name: simulate(bundle, {name: site}, rounds=ROUNDS, seed=SEED, device="cpu", threads=1)
    for name, site in sites.items()
}

# %% [markdown]
# ## On the test images, which no site has

# %%
scores = {"federated": score(bundle, together.model, images.test)}
scores |= {f"{name} alone": score(bundle, run.model, images.test) for name, run in alone.items()}
for name, one in scores.items():
    print(f"{name:14} AUC {one.auc:.4f}   accuracy {one.accuracy:.4f}")

# %%
figure, (curve, bars) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(3, 2), layout="constrained")
seen = [one.round - 1 for one in together.rounds]
curve.plot(seen, [one.metrics["auc"] for one in together.rounds], marker="o", color="#1b6ca8")
curve.set(xlabel="rounds that the model has seen", ylabel="AUC on the sites' validation images, pooled")
curve.set_title("Federated model", loc="left")
curve.grid(alpha=0.3)
values = [one.auc for one in scores.values()]
drawn = bars.bar([name.replace(" ", "\n") for name in scores], values, color=["#1b6ca8"] + ["#b8b8b8"] * len(alone))
bars.bar_label(drawn, [f"{value:.3f}" for value in values], padding=2)
bars.set_ylim(max(0.0, min(values) - 0.08), 1.0)
bars.set_ylabel("AUC on the test images (axis cut)")
bars.set_title("Against each site alone", loc="left")
bars.spines[["top", "right"]].set_visible(False)
figure.suptitle(images.description, fontsize=9, color="#555555")
plt.show()

# %% [markdown]
# One seed and one division of the images: a difference of a hundredth is no evidence. Try other seeds before you
# believe a ranking.

# %% [markdown]
# ## The same with real processes
#
# A director and four envoys, each a process of its own, over mutual TLS on loopback. Each envoy is invited, joins with
# keys that it made itself, records its dataset and opens the only connection. On machines of their own these are the
# commands `director init`, `director start` and `director invite`, and `envoy join`, `envoy roster fetch` and `accept`,
# `envoy data add` and `envoy start`. The roster names the sites by the keys that they sign with. Between hospitals each
# data manager compares those keys by phone, since a director could make up sites; here all sites are ours, and
# `LocalFederation` accepts it for them.

# %%
EXPERIMENT = f"""
name = "pneumonia"
plan = "plan"
seed = "{SEED:064x}"
secure_aggregation = "required"

[study]
purpose = "a tutorial on public pictures"

[rounds]
max_rounds = {ROUNDS}
min_participants = {len(sites)}
"""
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
with LocalFederation(home, "notebook") as federation:
    federation.found()
    federation.start_director()
    print("the director listens at", federation.wait_for_director())
    for share in DEMO_SITES:
        folder = federation.join(share.name, share.organization)
        (folder / "envoy.toml").write_text(ENVOY, "utf-8")
        found = inspect("chest-xray", paths[share.name], options, time.time())
        DatasetRegistry(folder / "datasets").add(found.record, found.index)
        print(share.name, "joined for", share.organization)
    for share in DEMO_SITES:
        federation.start_envoy(share.name)
    federation.wait_for_envoys()
    view = federation.wait_for(federation.submit(EXPERIMENT, bundle))
    with federation.operator() as operator:
        model = operator.fetch(view.model)
print(f"{view.state}: {view.reason}")
print(f"{view.bytes_up / 1e6:.1f} MB up, {view.bytes_down / 1e6:.1f} MB down")
last = view.rounds[-1].sum
print(f"last sum: {', '.join(last.survivors)}; {last.threshold} of {last.cohort} could open it together")

# %% [markdown]
# Seeds come from the run's seed and name, the site's name and the round alone; masks cancel exactly, in integers. So
# what was simulated is what the processes computed: not nearly, but the same file.

# %%
assert model == together.model
print(f"the same {len(model):,} bytes")

# %% [markdown]
# ## What to keep in mind
#
# - The director saw sums over four sites, who took part, and when. Three of the four together would know the fourth's
#   update from the sum; `min_organizations`, `colluding` and `honest` in a site's `envoy.toml` say what it insists on.
# - Nothing was noised, and there is no epsilon.
# - Each site approved the plan before it ran. Here all sites have one owner, and `LocalFederation` approved for them;
#   between hospitals that is for each own data manager, by `envoy plan approve`.
# - A model trained on 28x28 pixels of one hospital's children is an exercise, not a diagnosis.

# %%
shutil.rmtree(FOLDER)
