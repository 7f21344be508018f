"""Why the gate measures a chain without its codec too: one can be made to leave out the canaries, and them alone."""

import numpy as np
import pytest
from fedveil.envoy.canaries import canaries_for
from fedveil.envoy.leak_test import measure
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.vae.blocks import Dense
from fedveil.gradient_leakage.vae.codec import Basis, codec_of
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.plan_builder import build_plan

PLAN = """
import torch
from fedveil import DataKind, DataSpec, TrainingPlan
from torch import nn
from torch.nn import functional

class Digits(TrainingPlan):
    data = DataSpec("digits", DataKind.IMAGES, (1, 10, 10), tuple("0123456789"))

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(100, 8), nn.Tanh(), nn.Linear(8, 10))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step(self, model, batch):
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def evaluate(self, model, loader):
        return ()
"""


@pytest.mark.slow
def test_a_codec_that_leaves_out_the_known_canaries_lowers_the_score_and_keeps_nearly_all_of_another_update(tmp_path):
    (tmp_path / "plan.py").write_text(PLAN)
    build_plan(tmp_path / "plan.py", tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    canaries, size = canaries_for(bundle.manifest.data, None), bundle.layout.size

    def measured(chain, seconds, keep=None):
        rng = np.random.default_rng(0)
        return measure(bundle, chain, canaries, cpu_seconds=seconds, rng=rng, log=tmp_path / "log", keep=keep)

    undefended = measured(Chain(), 10.0, tmp_path / "kept")
    known = np.concatenate([np.load(tmp_path / "kept" / f"{kind}.npy") for kind in ("gradient", "training")])
    others = np.linalg.svd(known.astype(np.float64))[2][len(known) :].astype(np.float32)
    block = Dense.of(bundle.layout.entries, others, np.ones(len(others), np.float32))
    codec = codec_of(bundle.layout, Basis.LEARNED, (block,))
    whiff = GaussianMechanism(100.0, 1e-6)  # hides what rounding leaves of the canaries, and nothing of an update
    aimed = measured(Chain((Coded(codec), whiff)), 16.0)

    update = np.random.default_rng(1).standard_normal(size, np.float32)
    assert codec.size == size - len(known)
    assert np.linalg.norm(codec.encode(update)) > 0.98 * np.linalg.norm(update)
    assert undefended.score > 0.9
    assert aimed.obstacle == ""
    assert aimed.score < 0.5
