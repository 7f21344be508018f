"""The leak test in its child: what must break breaks, what holds holds, and what cannot be measured says so."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from fedveil.envoy import leak_test as leak_test_module
from fedveil.envoy.__main__ import app
from fedveil.envoy.canaries import NUM_TARGETS, canaries_for
from fedveil.envoy.config import load_config
from fedveil.envoy.gate import LeakGate, Outcome
from fedveil.envoy.leak_test import BREAKS_AT, Attempt, LeakTest, Sent, measure
from fedveil.envoy.plan_commands import chain_at
from fedveil.envoy.protection import Closed, Open
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.vae.codec import codec_bytes
from fedveil.gradient_leakage.vae.fitting import seeded
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import ConfigError, DatasetError, PlanError
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.plan_builder import build_plan
from typer.testing import CliRunner

SECONDS = 12.0
PLAN = """
import torch
from fedveil import DataKind, DataSpec, TrainingPlan, mean_of
from torch import nn
from torch.nn import functional

class Digits(TrainingPlan):
    data = DataSpec("digits", DataKind.IMAGES, (1, 10, 10), tuple("0123456789"))

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(100, 32), nn.Tanh(), nn.Linear(32, 10))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step(self, model, batch):
        images, labels = batch
        BODY

    def evaluate(self, model, loader):
        for images, labels in loader:
            yield mean_of("loss", float(functional.cross_entropy(model(images), labels)), len(labels))
"""
HONEST = "return functional.cross_entropy(model(images), labels)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle whose train_step does what the test says."""
    folder = tmp_path_factory.mktemp("plans")

    def make(body=HONEST):
        source = folder / f"plan{len(list(folder.iterdir()))}.py"
        source.write_text(PLAN.replace("BODY", body))
        build_plan(source, source.with_suffix(""))
        return open_bundle(source.with_suffix(""))

    return make


def box(folder):
    """As the gate has it: the best that works here."""
    return Sandbox(SandboxPolicy(), folder / "envoy")


def run(bundle, chain, tmp_path, seconds=SECONDS, sandbox=None):
    canaries = canaries_for(bundle.manifest.data, None)
    rng = np.random.default_rng(0)
    return measure(
        bundle, chain, canaries, cpu_seconds=seconds, rng=rng, log=tmp_path / "log", sandbox=sandbox or box(tmp_path)
    )


@pytest.mark.slow
def test_large_noise_opens_the_gate_and_what_attacked_it_knew_the_defense(made, tmp_path):
    test = run(made(), Chain((GaussianMechanism(1.0, 3.0),)), tmp_path)
    assert test.obstacle == ""
    assert test.score < 0.25
    assert isinstance(Outcome.of(test).verdict(0.25), Open)
    tried = {one.attack for one in test.attempts if one.is_defended and one.gain is not None}
    assert tried >= {"first-layer", "inverting-gradients", "all-rows", "defended-matching"}


def test_a_plan_that_no_attack_breaks_is_not_measurable_and_keeps_the_gate_closed(made, tmp_path):
    test = run(made("return functional.cross_entropy(model(0 * images), labels)"), Chain(), tmp_path, 7)
    assert test.score is None
    assert test.obstacle.startswith("not measurable: no attack shows the public canaries even without protection")
    assert isinstance(Outcome.of(test).verdict(1.0), Closed)


def test_a_plan_that_raises_or_never_ends_costs_its_budget_at_most(made, tmp_path):
    with pytest.raises(PlanError, match="ZeroDivisionError in train_step"):
        run(made("return 1 / 0"), Chain(), tmp_path)
    endless = made("while True: pass")
    before = children_seconds()  # of an own process, as the plan's is without a box
    with pytest.raises(PlanError, match="no update within the budget"):
        run(endless, Chain(), tmp_path, 6.0, Sandbox.of_tier(Tier.NONE, SandboxPolicy(), tmp_path))
    assert 1 < children_seconds() - before < 6
    with pytest.raises(PlanError, match="no update within the budget"):
        run(endless, Chain(), tmp_path, 6.0)


def children_seconds():
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_child_ends_with_its_parent_also_while_the_plan_loops(made, tmp_path):
    bundle = made("import os; os.write(2, b'it loops\\n')\n        while True: pass")
    canaries = canaries_for(bundle.manifest.data, None)
    np.savez(tmp_path / "canaries.npz", images=canaries.images, classes=canaries.classes)
    order = {"bundle": str(bundle.folder), "plan": bundle.digest, "phase": "make", "seconds": 30}
    (tmp_path / "order.json").write_text(json.dumps(order))
    theirs, ours = os.pipe()
    rows, arrays = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("rows", "arrays"))
    arguments = ["fedveil.envoy.leak_test_worker", str(tmp_path), str(rows), str(arrays), str(theirs)]
    entry = [sys.executable, "-P", "-m", "fedveil.envoy.sandbox.entry", ""]  # and no box
    given = (rows, arrays, theirs)
    child = subprocess.Popen([*entry, *arguments], pass_fds=given, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for descriptor in given:
        os.close(descriptor)
    with child.stderr as said:
        while b"it loops" not in said.readline():
            assert child.poll() is None
        os.close(ours)
        assert child.wait(timeout=60) == -signal.SIGIO


# ------------------------------------------------------------ what follows from the figures


def attempt(gain, *, is_defended=False, sent=Sent.GRADIENT, identified=4, reason="", is_unfit=False):
    return Attempt(sent, "dlg", is_defended, gain, gain, identified, 4, reason, is_unfit)


def test_the_score_is_that_of_the_worst_attack_on_what_leaves():
    broken, some, more = (
        attempt(0.9),
        attempt(0.2, is_defended=True),
        attempt(0.4, is_defended=True, sent=Sent.TRAINING),
    )
    assert LeakTest((broken, some, more), 1.0, has_chain=True).score == 0.4
    assert LeakTest((broken,), 1.0, has_chain=False).score == 0.9
    assert LeakTest((broken, attempt(-0.3, is_defended=True)), 1.0, has_chain=True).score == 0.0


@pytest.mark.parametrize(
    ("attempts", "obstacle"),
    [
        ((), "no attack shows the public canaries even without protection"),
        ((attempt(BREAKS_AT - 0.01),), "no attack shows the public canaries even without protection"),
        ((attempt(0.5, identified=1),), "no attack shows the public canaries even without protection"),
        ((attempt(0.9),), "no attack on the protected update came to its end"),
        (
            (attempt(0.9), attempt(0.0, is_defended=True), attempt(None, is_defended=True, reason="no time")),
            "the budget ended before dlg",
        ),
    ],
)
def test_without_a_break_and_a_whole_measurement_there_is_no_score(attempts, obstacle):
    test = LeakTest(attempts, 1.0, has_chain=True)
    assert test.score is None
    assert obstacle in test.obstacle


def test_a_child_that_the_budget_ended_measured_nothing():
    attempts = (attempt(0.9), attempt(0.0, is_defended=True))
    assert LeakTest(attempts, 1.0, has_chain=True, is_whole=False).score is None
    assert "the budget ended" in LeakTest(attempts, 1.0, has_chain=True, is_whole=False).obstacle


def test_an_attack_that_cannot_treat_the_model_is_no_obstacle():
    unfit = attempt(None, is_defended=True, reason="a convolution", is_unfit=True)
    assert LeakTest((attempt(0.9), attempt(0.1, is_defended=True), unfit), 1.0, has_chain=True).score == 0.1


# ------------------------------------------------------------ canaries


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 20)])
def test_the_digits_come_in_the_plans_shape_two_unlike_ones_of_a_class_first(shape):
    found = canaries_for(DataSpec("x", DataKind.IMAGES, shape), None)
    assert found.images.shape[1:] == shape
    assert found.images.dtype == np.float32
    assert found.images.min() >= 0 <= found.images.max() <= 1
    assert len(np.unique(found.images.reshape(len(found.images), -1), axis=0)) == len(found.images)
    assert found.classes[:NUM_TARGETS].tolist() == [found.classes[0]] * 2 + [found.classes[2]] * 2
    assert np.corrcoef(found.images[0].ravel(), found.images[1].ravel())[0, 1] < 0.3
    assert found.digest == canaries_for(DataSpec("y", DataKind.IMAGES, shape), None).digest


def test_a_site_may_name_public_images_of_its_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (40, 9, 9), np.uint8)
    np.savez(tmp_path / "public.npz", images=images, labels=np.arange(40) % 2)
    found = canaries_for(DataSpec("x", DataKind.IMAGES, (1, 9, 9)), tmp_path / "public.npz")
    assert len(found.images) == 40
    assert {image.tobytes() for image in found.images} == {(i[None] / np.float32(255)).tobytes() for i in images}


def test_too_few_canaries_and_plans_of_other_data_are_refused(tmp_path):
    np.savez(tmp_path / "few.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.zeros(9, np.int64))
    with pytest.raises(DatasetError, match="holds 9 images, expected at least 32"):
        canaries_for(DataSpec("x", DataKind.IMAGES, (1, 8, 8)), tmp_path / "few.npz")
    with pytest.raises(ConfigError, match="leakage is measured on images alone"):
        canaries_for(DataSpec("x", DataKind.TABLE, (5,)), None)


# ------------------------------------------------------------ the commands


def site_with(folder, protection):
    folder.mkdir()
    (folder / "envoy.toml").write_text(f"[protection]\n{protection}\n")
    return folder


@pytest.mark.slow
def test_a_code_and_a_clip_show_the_canaries_and_the_data_manager_sees_them(made, tmp_path):
    bundle, codec = made(), tmp_path / "codec.safetensors"
    codec.write_bytes(codec_bytes(seeded(bundle.layout, 10.0)))
    bounds = "max_norm = 1.0\nmax_leakage = 0.05\naudit_cpu_seconds = 20"
    site = site_with(tmp_path / "site", f'chain = ["check", "encode", "clip", "audit"]\n{bounds}')
    told = ["plan", "leak-test", str(bundle.folder), "--folder", str(site), "--codec", str(codec)]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 1, done.output
    assert "gate closed at max_leakage 0.05" in done.output
    assert re.search(
        r"gradient +│ yes +│ defended-matching +│ \d+ +│ -?[01]\.\d\d", done.output
    )  # it reads the code that left
    (folder,) = (site / "leak-tests").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(file.name for file in folder.iterdir()) == ["defended.png", "undefended.png"]
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_bytes()[:4] == b"\x89PNG"
    policy = load_config(site).protection
    kept = LeakGate(site, policy).outcome(bundle, chain_at(policy, codec))  # nothing is measured again
    assert kept.score > 0.1
    assert f"score {kept.score:.2f}" in done.output


def test_what_own_images_show_is_told_and_not_kept(made, tmp_path, monkeypatch):
    measured = []

    def measure(bundle, chain, used, **_):
        measured.append(used.images)
        return LeakTest((attempt(0.9),), 1.0, has_chain=False)

    monkeypatch.setattr(leak_test_module, "measure", measure)
    monkeypatch.setattr("fedveil.envoy.plan_commands.draw", lambda *_: [])
    own = np.random.default_rng(0).integers(0, 255, (40, 10, 10), np.uint8)
    np.savez(tmp_path / "own.npz", images=own, labels=np.arange(40) % 2)
    site = site_with(tmp_path / "there", 'chain = ["check", "audit"]\nmax_leakage = 0.5')
    told = ["plan", "leak-test", str(made().folder), "--folder", str(site), "--images", str(tmp_path / "own.npz")]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 1, done.output
    assert "score 0.90" in done.output
    assert "of own images: it stays here, and the gate does not know it" in done.output
    assert {one.tobytes() for one in measured[0]} == {(one[None] / np.float32(255)).tobytes() for one in own}
    assert not (site / "envoy.sqlite").exists()


def test_a_plan_is_checked_by_its_folder_or_the_beginning_of_its_digest(made, tmp_path):
    bundle = made()
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / bundle.digest).symlink_to(bundle.folder)
    for named in (str(bundle.folder), bundle.digest[:8]):
        done = CliRunner().invoke(app, ["plan", "check", named, "--folder", str(tmp_path)])
        assert done.exit_code == 0, done.output
        assert "0 layers or biases look built for an attack (a heuristic)" in done.output
    assert CliRunner().invoke(app, ["plan", "check", "nothing", "--folder", str(tmp_path)]).exit_code == 1
