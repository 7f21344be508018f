"""A toy plan that reads images, sites for it, and what to compare with; the real sets where they are to be had."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

_TOY = '''
from dataclasses import dataclass

import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, MetricSum, PlanSettings, mean_of


@dataclass(frozen=True)
class Settings(PlanSettings):
    fails_at: int = -1


class Toy(ArrayPlan):
    """Goes half the way to the mean image of the site, and a bit by lot."""

    Settings = Settings
    data = DataSpec("toy", DataKind.IMAGES, (1, 4, 4), ("normal", "pneumonia"))

    def initial(self):
        return {"image": np.full((1, 4, 4), 0.5, np.float32), "share": np.zeros((), np.float32)}

    def train(self, weights, data, rng):
        if len(data) == self.settings.fails_at:
            raise ValueError("a toy that breaks")
        aim = {"image": data.features.mean(0), "share": np.float32(data.labels.mean())}
        lot = rng.standard_normal((1, 4, 4), np.float32) / 100
        image = (weights["image"] + aim["image"]) / 2 + lot
        return {"image": image, "share": np.asarray((weights["share"] + aim["share"]) / 2)}, len(data)

    def evaluate(self, weights, data):
        yield mean_of("distance", float(np.abs(data.features - weights["image"]).sum(dtype=np.float64)), len(data))
'''


@pytest.fixture
def toy_plan(tmp_path: Path) -> Path:
    """The file of an ArrayPlan."""
    path = tmp_path / "toy.py"
    path.write_text(_TOY, "utf-8")
    return path


@pytest.fixture
def toy_site(tmp_path: Path) -> Callable[..., Path]:
    """The npz of a site: ``toy_site(name, num_train)``; other sites hold other images."""

    def make(name: str, num_train: int) -> Path:
        rng = np.random.default_rng(list(name.encode()))
        path = tmp_path / f"{name}.npz"
        arrays = {}
        for word, count in (("train", num_train), ("val", 6), ("test", 4)):
            arrays[f"{word}_images"] = rng.integers(0, 256, (count, 4, 4), np.uint8)
            arrays[f"{word}_labels"] = np.arange(count) % 2
        np.savez(path, **arrays)
        return path

    return make


@pytest.fixture
def real_set() -> Callable[[str], Path]:
    """A file of the real sets; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        beside = Path(__file__).parents[2].parent / "shared" / "data"
        path = Path(os.environ.get("FEDVEIL_DATA_DIR") or beside) / name
        if not path.exists():
            pytest.skip(f"the real set {name} is not here; set FEDVEIL_DATA_DIR to the folder that holds it")
        return path

    return find
