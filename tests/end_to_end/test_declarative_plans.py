"""A plan without code through real processes: two sites let it run within limits, a third is asked and says nothing."""

import time

import numpy as np
from fedveil.envoy.approvals import State
from fedveil.envoy.datasets import DatasetRegistry
from fedveil.envoy.decisions import opened
from fedveil.envoy.inspection import inspect
from fedveil.envoy.records import DataOptions
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.local_federation import LocalFederation
from fedveil.workspace.plan_builder import build_plan

RECIPE = """
name = "Heart"
metrics = ["loss", "accuracy"]
[data]
name = "people"
kind = "table"
classes = ["well", "ill"]
columns = ["weight", "age"]
[model]
name = "logistic-regression"
mean = [70, 50]
scale = [10, 5]
[settings]
learning_rate = 0.5
local_epochs = 3
"""
EXPERIMENT = """
name = "heart"
seed = "heart"
secure_aggregation = "off"
[study]
purpose = "a test"
[rounds]
max_rounds = 3
min_participants = 2
"""
ALLOW = '[approval]\ndeclarative = "allow"\nrecipes = ["Heart"]\ndatasets = ["people"]\nmax_rounds = 3\n'
OTHERS = """
[training]
preload_torch = false
[protection]
chain = ["check", "encode"]
metrics = ["*"]
[secure_aggregation]
rule = "allowed"
"""
SITES = {"site-a": ALLOW, "site-b": ALLOW, "site-c": ""}


def table(path, seed):
    rng = np.random.default_rng(seed)
    weight, age = rng.normal(70, 10, 80), rng.normal(50, 5, 80)
    ill = ((weight - 70) / 10 - (age - 50) / 5 > 0).astype(int)
    rows = [f"p{n},{w:.3f},{a:.3f},{i}" for n, (w, a, i) in enumerate(zip(weight, age, ill, strict=True))]
    path.write_text("patient,weight,age,ill\n" + "\n".join(rows))
    options = DataOptions(("well=0", "ill=1"), "patient", "ill", ("age", "weight"))
    return inspect("people", path, options, time.time())


def test_a_plan_without_code_runs_unasked_where_a_site_allows_it_and_waits_where_it_does_not(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    build_plan(tmp_path / "recipe.toml", tmp_path / "plan")
    bundle = open_bundle(tmp_path / "plan")
    with LocalFederation(tmp_path) as federation:
        federation.found()
        federation.start_director()
        federation.wait_for_director()
        for seed, (name, approval) in enumerate(SITES.items()):
            folder = federation.join(name, name.title())
            (folder / "envoy.toml").write_text(approval + OTHERS)
            found = table(tmp_path / f"{name}.csv", seed)
            DatasetRegistry(folder / "datasets").add(found.record, found.index)
        federation.data_managers.end()  # nobody is there to approve anything
        for name in SITES:
            federation.start_envoy(name)
        view = federation.wait_for(federation.submit(EXPERIMENT, bundle))
    assert view.state == "finished", view.reason
    done = [one for one in view.rounds if one.state == "closed"]
    assert {one.received for one in done} == {2}
    assert done[-1].metrics["accuracy"] > 0.85
    for name, approval in SITES.items():
        with opened(tmp_path / name) as (_, store):
            (standing,) = store.books().standings.values()
        log = (tmp_path / name / "audit.jsonl").read_text()
        if approval:
            assert standing.decision.by == "[approval] of envoy.toml"
            assert standing.rounds_done() == 3
            assert '"approved"' in log
        else:
            assert standing.state(time.time()) is State.OFFERED
            assert standing.rounds_done() == 0
            assert '"approved"' not in log
