import ast
from pathlib import Path

import fedveil
import numpy as np
import pytest
from fedveil.envoy.plan_loading import plan_of
from fedveil.envoy.records import LoadedDataset
from fedveil.envoy.training import LocalRound, run_round
from fedveil.utils.messages import TaskKind
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.plan_builder import build_plan

FOLDER = Path(fedveil.__file__).parent / "workspace" / "pneumonia"


def train_once(tmp_path, file, size, **settings):
    build_plan(FOLDER / file, tmp_path, {"image_size": size} | settings)
    bundle = open_bundle(tmp_path)
    vector, exact = bundle.initial()
    rng = np.random.default_rng(0)
    labels = np.tile(np.array([0, 1], np.int64), 20)
    images = rng.integers(0, 100, (40, 1, size, size), np.uint8)
    images[labels == 1, :, : size // 2] += 120  # the second class is brighter above
    data = LoadedDataset(images, labels, np.repeat(np.array([0, 1], np.uint8), 20))
    given = LocalRound(TaskKind.TRAIN, 1, 2, bundle.layout, vector, exact, data, {}, "cpu")
    out = np.empty(bundle.layout.size, np.float32)
    result, state = run_round(plan_of(bundle), given, out)
    return bundle.layout, out, result, state


@pytest.mark.parametrize("file", ["plan.py", "resnet18.py"])
def test_a_plan_imports_fedveil_torch_and_the_standard_library_alone(file):
    tree = ast.parse((FOLDER / file).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {module.partition(".")[0] for module in modules} <= {"fedveil", "torch", "dataclasses", "collections"}


def test_the_small_plan_learns_and_reports_loss_accuracy_and_auc(tmp_path):
    layout, update, result, state = train_once(tmp_path, "plan.py", 28, local_epochs=10, batch_size=4)
    assert layout.size == 23_650
    assert not layout.exact
    assert not state
    assert np.abs(update).max() > 0
    metrics = {metric.name: metric.value for metric in result.metrics}
    assert set(metrics) == {"loss", "accuracy", "auc", "train_loss"}
    assert metrics["train_loss"] < metrics["loss"]


@pytest.mark.parametrize(("norm", "num_local"), [("group", 0), ("fedbn", 100)])
def test_resnet18_has_no_statistics_to_average_in_either_form(tmp_path, norm, num_local):
    layout, update, _, state = train_once(tmp_path, "resnet18.py", 32, norm=norm)
    assert {entry.role.value for entry in layout.entries} == {"parameter"}
    assert len(state) == num_local
    assert np.isfinite(update).all()
