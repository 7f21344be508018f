"""A recipe.toml: from the file to the update that leaves, beside the plan that was written by hand."""

from pathlib import Path

import fedveil
import numpy as np
import pytest
from fedveil.envoy.plan_loading import plan_of
from fedveil.envoy.records import DataOptions, LoadedDataset
from fedveil.envoy.training import LocalRound, run_round
from fedveil.utils.differential_privacy import DifferentialPrivacy
from fedveil.utils.errors import PlanError
from fedveil.utils.messages import TaskKind
from fedveil.utils.plan_bundle import PlanKind, open_bundle
from fedveil.workspace.plan_builder import build_plan
from fedveil.workspace.simulation import simulate

FOLDER = Path(fedveil.__file__).parent / "workspace" / "pneumonia"
TABLE = """
name = "Heart"
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
local_epochs = 5
"""
RESNET = """
name = "Deep"
metrics = ["loss", "accuracy", "auc"]
[data]
name = "chest-xray"
kind = "images"
shape = [1, 32, 32]
classes = ["normal", "pneumonia"]
[model]
name = "resnet18"
norm = "NORM"
[optimizer]
name = "sgd"
momentum = 0.9
weight_decay = 0.0001
[[augmentations]]
name = "mirror"
"""
PRIVATE = """
name = "Private"
metrics = ["accuracy"]
[data]
name = "chest-xray"
kind = "images"
shape = [1, 28, 28]
classes = ["normal", "pneumonia"]
[model]
name = "edge-histograms"
[settings]
learning_rate = 1.0
[privacy]
unit = "patient"
max_norm = 1.0
noise_multiplier = 3.2
sampling_rate = 0.1
units = 800
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def trained(bundle, size):
    rng = np.random.default_rng(0)
    labels = np.tile(np.array([0, 1], np.int64), 20)
    images = rng.integers(0, 256, (40, 1, size, size), np.uint8)
    data = LoadedDataset(images, labels, np.repeat(np.array([0, 1], np.uint8), 20), np.arange(40) // 2)
    vector, exact = bundle.initial()
    privacy = bundle.manifest.privacy
    given = LocalRound(TaskKind.TRAIN, 1, 2, bundle.layout, vector, exact, data, {}, "cpu", privacy)
    out = np.empty(bundle.layout.size, np.float32)
    result, state = run_round(plan_of(bundle), given, out)
    return out, result, state


@pytest.mark.parametrize(
    ("source", "recipe", "size", "settings"),
    [
        ("plan.py", (FOLDER / "recipe.toml").read_text(), 28, {"local_epochs": 2}),
        ("resnet18.py", RESNET.replace("NORM", "group"), 32, {"image_size": 32}),
        ("resnet18.py", RESNET.replace("NORM", "fedbn"), 32, {"image_size": 32, "norm": "fedbn"}),
    ],
)
def test_a_declarative_plan_gives_the_very_update_of_the_plan_with_code(source, recipe, size, settings, tmp_path):
    build_plan(FOLDER / source, tmp_path / "code", settings)
    same = {name: value for name, value in settings.items() if name == "local_epochs"}
    build_plan(write(tmp_path, recipe), tmp_path / "recipe", same)
    code, declared = open_bundle(tmp_path / "code"), open_bundle(tmp_path / "recipe")
    assert declared.layout == code.layout
    assert np.array_equal(declared.initial()[0], code.initial()[0])
    ours, theirs = trained(declared, size), trained(code, size)
    assert np.array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert ours[2].keys() == theirs[2].keys()


def test_private_training_is_the_same_too(tmp_path):
    build_plan(FOLDER / "private_plan.py", tmp_path / "code")
    build_plan(write(tmp_path, PRIVATE), tmp_path / "recipe")
    code, declared = open_bundle(tmp_path / "code"), open_bundle(tmp_path / "recipe")
    assert declared.manifest.privacy == code.manifest.privacy == DifferentialPrivacy("patient", 1.0, 3.2, 0.1, 800)
    assert np.array_equal(declared.initial()[0], code.initial()[0])


def test_the_bundle_holds_no_code_and_its_manifest_says_everything(tmp_path):
    manifest = build_plan(FOLDER / "recipe.toml", tmp_path / "out")
    assert manifest.kind is PlanKind.DECLARATIVE
    assert manifest.is_declarative
    assert [file.path for file in manifest.files] == ["initial.safetensors", "layout.json"]
    assert manifest.recipe.loss.values == {"label_smoothing": 0.0}
    assert build_plan(FOLDER / "recipe.toml", tmp_path / "again").digest == manifest.digest
    assert build_plan(FOLDER / "recipe.toml", tmp_path / "other", {"learning_rate": 0.5}).digest != manifest.digest


def test_softmax_regression_of_a_table_learns_over_three_sites(tmp_path):
    rng = np.random.default_rng(4)
    sites = {}
    for site in ("north", "south", "west"):
        weight, age = rng.normal(70, 10, 60), rng.normal(50, 5, 60)
        ill = ((weight - 70) / 10 - (age - 50) / 5 > 0).astype(int)
        rows = (f"{w:.3f},{a:.3f},{n},{i}" for n, (w, a, i) in enumerate(zip(weight, age, ill, strict=True)))
        path = tmp_path / f"{site}.csv"
        path.write_text("weight,age,number,ill\n" + "\n".join(rows))
        sites[site] = (path, DataOptions(("well=0", "ill=1"), label_column="ill"))
    build_plan(write(tmp_path, TABLE), tmp_path / "plan")
    done = simulate(open_bundle(tmp_path / "plan"), sites, rounds=4)
    assert done.rounds[-1].metrics["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "Heart"', 'title = "Heart"', "title is not a key"),
        ('name = "Heart"', "", "name: must be given"),
        ('kind = "table"', 'kind = "video"', "data.kind: expected one of images, table"),
        ('columns = ["weight", "age"]', "", "data.columns: must be given"),
        ('columns = ["weight", "age"]', 'columns = ["weight", "weight"]', "named twice"),
        ('classes = ["well", "ill"]', 'labels = ["well"]', "data.labels is not a key"),
        ('name = "logistic-regression"', 'name = "logistic"', "unknown model logistic"),
        ("mean = [70, 50]", 'mean = ["x"]', "or a list of numbers"),
        ("mean = [70, 50]", "middle = [70, 50]", "has no value middle"),
        ("learning_rate = 0.5", "speed = 0.5", "unknown setting speed"),
        ("learning_rate = 0.5", "proximal_mu = 0.5", "steps by itself"),
        ("[settings]", "[privacy]\nunit = 'patient'\n[settings]", "privacy: expected unit, max_norm"),
        ("[settings]", PRIVATE[PRIVATE.index("[privacy]") :] + "[settings]", "cannot be trained privately"),
        ("[data]", "[data", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named_and_nothing_is_written(old, new, message, tmp_path):
    with pytest.raises(PlanError, match=message):
        build_plan(write(tmp_path, TABLE.replace(old, new)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_there_not_text_or_too_long_is_refused(tmp_path):
    with pytest.raises(PlanError, match="cannot be read"):
        build_plan(tmp_path / "no.toml", tmp_path / "out")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="is not TOML"):
        build_plan(tmp_path / "a.toml", tmp_path / "out")
    (tmp_path / "b.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(PlanError, match="a recipe has"):
        build_plan(tmp_path / "b.toml", tmp_path / "out")
