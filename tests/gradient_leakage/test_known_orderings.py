"""What is known of these attacks comes out of the benchmark by itself, on real X-rays.

Two or three updates a cell: enough for differences of 10 dB, and for nothing finer.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.benchmark import run_cells
from fedveil.gradient_leakage.cells import Cell
from fedveil.gradient_leakage.rows import RunStore
from fedveil.gradient_leakage.runners import in_this_process
from fedveil.workspace.leakage_data import available_cases
from fedveil.workspace.leakage_laboratory import RealLaboratory
from torch import nn

XRAYS = "pneumonia28"
LABELS = ("labels",)
SMOOTH = Cell(XRAYS, "tanh-cnn", "inverting-gradients", LABELS)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(XRAYS not in available_cases(), reason="the set pneumoniamnist is not here"),
]


@dataclass(frozen=True, slots=True)
class Laboratory(RealLaboratory):
    """With a small network of BatchNorm beside those of the benchmark; the X-rays need no verification here."""

    def model(self, cell):
        if cell.model != "small-bn":
            return RealLaboratory.model(self, cell)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            layers = []
            for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
                layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
            return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))

    def embedding(self, case):
        return None


@pytest.fixture(scope="module")
def mean_psnr(tmp_path_factory):
    """``mean_psnr(cell)`` in dB; a cell that two tests share is run once."""
    folder: Path = tmp_path_factory.mktemp("orderings")

    def measure(cell):
        with RunStore(folder, writing=True) as store:
            rows = run_cells([cell], Laboratory(folder), store, in_this_process)
        assert not any(row.error for row in rows)
        return np.mean([row.psnr for row in rows])

    return measure


def test_dlg_is_above_cosine_on_an_untrained_lenet(mean_psnr):
    dlg = mean_psnr(Cell(XRAYS, "lenet", "dlg", LABELS))
    cosine = mean_psnr(Cell(XRAYS, "lenet", "inverting-gradients", LABELS))
    assert dlg > cosine + 20


def test_a_trained_model_gives_far_less_away_than_an_untrained_one(mean_psnr):
    assert mean_psnr(replace(SMOOTH, state="converged")) < mean_psnr(SMOOTH) - 15


def test_a_batch_of_eight_gives_less_away_than_a_single_image(mean_psnr):
    assert mean_psnr(replace(SMOOTH, batch=8)) < mean_psnr(SMOOTH) - 15


def test_eight_local_steps_give_less_away_than_one_to_whoever_takes_them_for_a_gradient(mean_psnr):
    one, eight = (replace(SMOOTH, local_steps=steps, learning_rate=0.1) for steps in (1, 8))
    assert mean_psnr(eight) < mean_psnr(one) - 15


def test_statistics_of_batch_normalisation_help_where_smoothness_says_little(mean_psnr):
    weak = (("iterations", 150), ("total_variation", 0.01), ("total_variation_end", 1e-4))
    blind = Cell(XRAYS, "small-bn", "see-through", LABELS, weak, batch=4)
    assert mean_psnr(replace(blind, knowledge=(*LABELS, "batch_norm_statistics"))) > mean_psnr(blind) + 1
