"""A plan with differential privacy from its source to rounds of a federation: what is refused, what leaves."""

import json

import fedveil
import numpy as np
import pytest
from fedveil.director.experiments import ExperimentSettings
from fedveil.envoy.records import DataOptions
from fedveil.gradient_leakage.vae.codec import codec_bytes, read_codec
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.utils.config import parse_toml
from fedveil.utils.errors import ConfigError, FederationError, PlanError
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.tensors import read_model
from fedveil.workspace.plan_builder import build_plan
from safetensors.numpy import load

pytest.importorskip("opacus")

CLASSES = ("normal", "pneumonia")
PLAN = """
from dataclasses import dataclass
from fedveil import DataKind, DataSpec, DifferentialPrivacy, PlanSettings, TrainingPlan, mean_of
from torch import nn
from torch.nn import functional

@dataclass(frozen=True)
class Settings(PlanSettings):
    noise_multiplier: float = 0.5
    unit: str = "patient"
    norm: bool = False

class Private(TrainingPlan):
    Settings = Settings
    data = DataSpec("toy", DataKind.IMAGES, (1, 4, 4), ("normal", "pneumonia"))

    @property
    def privacy(self):
        own = self.settings
        return DifferentialPrivacy(own.unit, 1.0, own.noise_multiplier, sampling_rate=0.5, units=20, steps=2)

    def model(self):
        norm = [nn.BatchNorm2d(1)] if self.settings.norm else []
        return nn.Sequential(*norm, nn.Flatten(), nn.Linear(16, 2))

    def train_step(self, model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, loader):
        for images, labels in loader:
            yield mean_of("accuracy", (model(images).argmax(1) == labels).sum().item(), len(labels))
"""
SECURE = 'secure_aggregation = "required"\n[secure_sum]\nequal_weights = true\n'


def simulate(*arguments, **options):
    return fedveil.simulate(*arguments, threads=1, **options)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "private.py"
    path.write_text(PLAN)
    return path


@pytest.fixture
def hospitals(tmp_path):
    """Four, of different size, whose patients have two images each."""
    rng, options, found = np.random.default_rng(0), DataOptions(CLASSES, patient="patient"), {}
    for place, count in enumerate((20, 24, 30, 36)):
        labels = np.arange(count) // 2 % 2
        images = (rng.integers(0, 100, (count, 4, 4)) + 100 * labels[:, None, None]).astype(np.uint8)
        path = tmp_path / f"{place}.npz"
        arrays = {"train_images": images, "train_labels": labels, "train_patient": np.arange(count) // 2}
        held = {"val_images": images[:4], "val_labels": labels[:4], "val_patient": np.arange(4) + 1000}
        np.savez(path, **arrays, **held)
        found[f"site-{place}"] = (path, options)
    return found


def test_the_privacy_of_a_plan_stands_in_its_manifest(plan, tmp_path):
    build_plan(plan, tmp_path / "out", {"noise_multiplier": 2.0})
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.privacy.label == "per patient: clip 1, noise 2, sampling 0.5, 2 steps a round"
    document = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert document["privacy"]["noise_multiplier"] == 2.0
    assert manifest.digest != build_plan(plan, tmp_path / "other").digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": True}, "0 is BatchNorm2d"),
        ({"local_epochs": 2}, "local_epochs is 2"),
        ({"noise_multiplier": 0.0}, "without noise nothing is private"),
        ({"unit": "hospital"}, "unit 'hospital'"),
    ],
)
def test_a_plan_that_cannot_be_private_is_not_built(plan, tmp_path, settings, message):
    with pytest.raises(PlanError, match=message):
        build_plan(plan, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_a_plan_that_says_something_else_than_its_manifest_is_not_run(plan, hospitals):
    once = PLAN.replace(
        "own = self.settings\n", "own = self.settings; Private.asked = getattr(Private, 'asked', 0) + 1\n"
    )
    plan.write_text(once.replace("sampling_rate=0.5", "sampling_rate=0.5 if Private.asked < 2 else 0.1"))
    with pytest.raises(FederationError, match="PlanError") as caught:
        simulate(plan, hospitals, rounds=1)
    assert "declares other privacy than its manifest" in str(caught.value.__cause__)


@pytest.mark.parametrize("experiment", ["", SECURE], ids=["plain", "secure sum"])
def test_rounds_of_a_private_plan_move_the_model_and_tell_no_metric(plan, hospitals, experiment):
    runs = [simulate(plan, hospitals, rounds=2, experiment=experiment, seed=1) for _ in range(2)]
    assert all(one.metrics == {} for run in runs for one in run.rounds)
    first, second = (load(run.model)["1.weight"] for run in runs)
    assert np.isfinite(first).all()
    assert (first != second).all()  # the same seed, another noise


@pytest.mark.parametrize("experiment", ["", SECURE], ids=["plain", "secure sum"])
def test_with_a_codec_the_hospitals_send_noised_codes(plan, hospitals, tmp_path, experiment):
    build_plan(plan, tmp_path / "built", {"learning_rate": 1.0})
    bundle = open_bundle(tmp_path / "built")
    initial = bundle.initial()[0]
    updates = np.random.default_rng(0).standard_normal((3, bundle.layout.size)).astype(np.float32)
    file = tmp_path / "codec.safetensors"
    file.write_bytes(codec_bytes(fit(bundle.layout, updates, 11.0)))
    run = simulate(bundle, hospitals, rounds=1, codec=file, experiment=experiment)
    moved = read_model(bundle.layout, run.model)[0] - initial
    codec = read_codec(file.read_bytes())
    np.testing.assert_allclose(codec.decode(codec.encode(moved)), moved, atol=1e-5)
    assert np.linalg.norm(moved) > 0


def test_a_secure_sum_of_private_updates_counts_sites_and_no_examples(plan, hospitals):
    run = simulate(plan, hospitals, rounds=1, experiment=SECURE)
    assert run.rounds[0].sum.total_weight == len(hospitals)


def test_a_hospital_that_names_no_patients_is_refused_with_what_to_do(plan, hospitals):
    path, _ = hospitals["site-2"]
    with pytest.raises(FederationError, match="site-2: DatasetError") as caught:
        simulate(plan, hospitals | {"site-2": (path, DataOptions(CLASSES))}, rounds=1)
    assert "the plan protects patients" in str(caught.value.__cause__)
    assert "--patient" in str(caught.value.__cause__)
    simulate(plan, hospitals | {"site-2": (path, DataOptions(CLASSES))}, rounds=1, settings={"unit": "record"})


def test_an_experiment_that_waits_for_a_metric_of_a_private_plan_is_not_taken(plan, hospitals):
    stop = '[stop]\nmetric = "accuracy"\npatience = 1\n'
    with pytest.raises(ConfigError, match=r"stop\.metric: plan Private is trained with differential privacy"):
        simulate(plan, hospitals, rounds=3, experiment=stop)
    text = f'name = "x"\nsecure_aggregation = "off"\n[rounds]\nmax_rounds = 3\nmin_participants = 4\n{stop}'
    assert parse_toml(text, ExperimentSettings, "experiment.toml").stop.metric == "accuracy"


def test_a_federation_learns_through_the_noise(plan, hospitals):
    optimizer = '[server_optimizer]\nname = "fedadam"\nlearning_rate = 0.2\n'
    settings = {"noise_multiplier": 0.5, "learning_rate": 1.0}
    run = simulate(plan, hospitals, rounds=8, experiment=optimizer, settings=settings)
    weight, bias = load(run.model)["1.weight"], load(run.model)["1.bias"]
    with np.load(hospitals["site-3"][0]) as arrays:
        scores = arrays["train_images"].reshape(-1, 16) / 255 @ weight.T + bias
        assert (scores.argmax(1) == arrays["train_labels"]).mean() > 0.9
