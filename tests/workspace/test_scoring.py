"""Scores are those of scikit-learn on the model's own outputs."""

import numpy as np
import pytest
from fedveil.utils.errors import PlanError
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.chest_xrays import Part
from fedveil.workspace.plan_builder import build_plan
from fedveil.workspace.scoring import score
from safetensors.numpy import load, save

PLAN = """
import torch
from fedveil import BATCH_NORM_LAYERS, DataKind, DataSpec, TrainingPlan

class Brightness(TrainingPlan):
    data = DataSpec("x", DataKind.IMAGES, (1, 2, 2), ("normal", "pneumonia"))
    #local

    def model(self):
        return torch.nn.Sequential(torch.nn.Flatten(), #norm
            torch.nn.Linear(4, 2))

    def train_step(self, model, batch):
        return model(batch[0]).sum()

    def evaluate(self, model, loader):
        return []
"""


def built(tmp_path, local="", norm=""):
    source = tmp_path / "plan.py"
    source.write_text(PLAN.replace("#local", local).replace("#norm", norm))
    build_plan(source, tmp_path / "plan")
    return open_bundle(tmp_path / "plan")


def brightness_model(scale=1.0):
    """Pneumonia is what is bright: more than half the light on the mean."""
    return save(
        {
            "1.weight": np.array([[0] * 4, [scale] * 4], np.float32),
            "1.bias": np.array([0, -2 * scale], np.float32),
        }
    )


def part_of(brightness, labels):
    images = np.repeat(np.array(brightness, np.uint8), 4).reshape(-1, 2, 2)
    return Part(images, np.array(labels, np.int64), tuple(map(str, range(len(labels)))))


def test_auc_and_accuracy_of_six_images_by_hand(tmp_path):
    # Pairs of an ill and a healthy image in the right order: 200 > 10, 100, 140; 120 > 10, 100; 250 > all. 8 of 9.
    part = part_of([10, 100, 140, 120, 200, 250], [0, 0, 0, 1, 1, 1])
    found = score(built(tmp_path), brightness_model(), part)
    assert found.auc == pytest.approx(8 / 9)
    assert found.accuracy == pytest.approx(4 / 6)  # 140 is over 127.5, 120 is not


def test_many_images_are_scored_in_batches_as_scikit_learn_does(tmp_path):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    brightness = np.clip(rng.normal(110 + 40 * labels, 50), 0, 255).astype(np.uint8)
    found = score(built(tmp_path), brightness_model(), part_of(brightness, labels))
    assert found.auc == pytest.approx(roc_auc_score(labels, brightness), abs=1e-6)
    assert found.accuracy == pytest.approx(np.mean((brightness > 127.5) == labels))


def test_a_model_that_points_the_other_way_scores_the_complement(tmp_path):
    part = part_of([10, 100, 140, 120, 200, 250], [0, 0, 0, 1, 1, 1])
    assert score(built(tmp_path), brightness_model(-1.0), part).auc == pytest.approx(1 / 9)


def test_control_variates_in_the_file_are_left_aside(tmp_path):
    part = part_of([10, 250], [0, 1])
    more = load(brightness_model()) | {"control/1.weight": np.ones((2, 4), np.float32)}
    assert score(built(tmp_path), save(more), part).auc == 1


def test_a_plan_whose_layers_stay_at_the_sites_is_not_scored_here(tmp_path):
    local = "site_local = (BATCH_NORM_LAYERS,)"
    bundle = built(tmp_path, local, "torch.nn.BatchNorm1d(4),")
    model = bundle.blob("initial.safetensors")
    with pytest.raises(PlanError, match="keeps 4 tensors at the sites"):
        score(bundle, model, part_of([10, 250], [0, 1]))


def test_a_plan_of_arrays_is_not_scored_here(tmp_path, toy_plan):
    build_plan(toy_plan, tmp_path / "plan")
    with pytest.raises(PlanError, match="is no TrainingPlan"):
        score(open_bundle(tmp_path / "plan"), b"", part_of([10, 250], [0, 1]))
