"""``fedveil attack run``: no figure where there could be no honest one, and what ended is never lost."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.threat_model import Knowledge, Observation, Reconstruction
from fedveil.utils.errors import AttackError
from fedveil.workspace.__main__ import app
from typer.testing import CliRunner

_MODELS = """
import torch
from torch import nn

def with_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
lazy_instance = lazy()
untrained_instance = nn.Flatten()

class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(144, 2)
    def forward(self, images):
        return self.last(images.sub_(0.5).flatten(1))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of somebody's own: five images of two classes, and some models."""
    monkeypatch.chdir(tmp_path)
    keep("own.npz", pictures(5))
    (tmp_path / "models_of_refusals.py").write_text(_MODELS)
    return tmp_path


def pictures(count, seed=0, side=12):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, side, side), np.uint8)


def keep(name, images, labels=None):
    np.savez(name, images=images, labels=np.arange(len(images)) % 2 if labels is None else labels)


def run(*words, images="own.npz", attack="imprint", model="mlp", code=0):
    given = [] if images is None else ["--images", images]
    given += [] if model is None else ["--model", model]
    result = CliRunner().invoke(app, ["attack", "run", "--attack", attack, *given, *map(str, words)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def report_of(here):
    return json.loads((here / "o.json").read_text())


def play(monkeypatch, attack):
    """Put an attack of our own into the catalogue."""
    entry = SimpleNamespace(name="own", paper="none", make=attack)
    monkeypatch.setattr("fedveil.workspace.attack_run.listed", lambda _: entry)


class Grey:
    """Finds grey; what happens at which of its calls is told by the tests."""

    needs = Knowledge()
    at_call = None
    calls = 0

    def __call__(self, observation: Observation, knowledge, rng):
        type(self).calls += 1
        if self.calls == 2 and self.at_call is not None:
            raise self.at_call
        return Reconstruction(torch.full((observation.num_examples, 1, 12, 12), 0.25))


def test_a_copy_of_an_image_is_not_another_patient_whose_update_gives_a_null(here):
    keep("copies.npz", np.repeat(pictures(1), 4, 0), [0, 0, 0, 0])
    output = run("--json", "o.json", images="copies.npz")
    report = report_of(here)
    assert report["psnr"] > 90
    assert report["null_psnr"] is None
    assert report["baseline_psnr"] is None
    assert report["psnr_interval"] == [None, None]
    assert "not measurable" in output


def test_images_that_the_attacker_has_already_are_not_attacked(here):
    keep("public.npz", np.concatenate([pictures(3, seed=1), pictures(5)[:2]]))
    output = run("--public", "public.npz", code=1)
    assert "2 of the public images are among the attacked ones" in output


@pytest.mark.parametrize("know", ["malicious", "malicious,public_data"])
def test_an_attack_prepares_with_public_images_only_where_it_may_know_them(here, monkeypatch, know):
    seen = []

    class Preparing(Grey):
        def prepare(self, model, domain, rng, public=None):
            seen.append(public is not None)
            return model

    play(monkeypatch, Preparing)
    keep("public.npz", pictures(4, seed=1))
    run("--public", "public.npz", "--know", know)
    assert seen == ["public_data" in know] * 5


@pytest.mark.parametrize("flag", ["--json", "--save", "--gif"])
def test_a_file_that_cannot_be_written_is_refused_before_the_attack(here, monkeypatch, flag):
    class Counting(Grey):
        calls = 0
        trace_every: int = 1

    play(monkeypatch, Counting)
    (here / "folder").mkdir()
    assert "own.npz is not a folder" in run(flag, "own.npz/deep/o", code=1)
    assert "it is a folder" in run(flag, "folder", code=1)
    assert Counting.calls == 0


def test_two_outputs_of_one_name_are_refused(here):
    assert "two of them have one name" in run("--json", "o", "--save", "o", code=1)


def test_an_animation_that_fails_takes_neither_the_table_nor_the_other_files_along(here, monkeypatch):
    class Traceless(Grey):
        calls = 0
        trace_every: int = 1

    play(monkeypatch, Traceless)
    output = run("--gif", "o.gif", "--json", "new/o.json", "--save", "o.npz", code=1)
    assert "PSNR" in output
    assert "o.gif cannot be made: the attack kept no picture" in output
    assert (here / "new" / "o.json").is_file()
    assert (here / "o.npz").is_file()


def test_an_interrupted_run_shows_and_writes_what_had_ended(here, monkeypatch):
    class Interrupted(Grey):
        calls = 0
        at_call = KeyboardInterrupt()

    play(monkeypatch, Interrupted)
    output = run("--json", "o.json", code=130)
    assert "PSNR" in output
    assert output.count("interrupted after 1 of 5 updates") == 2
    assert report_of(here)["updates"] == 1
    assert report_of(here)["remarks"] == ["interrupted after 1 of 5 updates"]


def test_an_update_that_cannot_be_prepared_is_an_error_of_its_own(here, monkeypatch):
    class Preparing(Grey):
        calls = 0

        def prepare(self, model, domain, rng, public=None):
            type(self).calls += 1
            if self.calls == 3:
                raise AttackError("no room")
            return model

    play(monkeypatch, Preparing)
    run("--json", "o.json", "--save", "o.npz", "--batch", 2)
    assert report_of(here)["errors"] == [None, "no room", None]
    with np.load("o.npz") as found:
        np.testing.assert_array_equal(found["truth"], pictures(5) / np.float32(255))


def test_a_last_batch_that_the_model_cannot_be_trained_on_is_named_and_the_others_are_attacked(here):
    run("--batch", 2, "--json", "o.json", attack="llg", model="models_of_refusals:with_norm")
    first, second, last = report_of(here)["errors"]
    assert (first, second) == (None, None)
    assert "models_of_refusals:with_norm cannot be trained on a batch of 1: ValueError: Expected more than 1" in last


def test_a_model_that_changes_its_images_in_place_trains_on_the_true_ones(here):
    run("--batch", 2, "--local-steps", 2, "--save", "o.npz", attack="llg", model="models_of_refusals:InPlace")
    with np.load("o.npz") as found:
        np.testing.assert_array_equal(found["truth"], pictures(5) / np.float32(255))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("models_of_refusals:lazy", "run it once in your callable"),
        ("models_of_refusals:lazy_instance", "run it once in your callable"),
        ("models_of_refusals:untrained_instance", "no parameter that is trained"),
        ("models_of_refusals:", "expected module:callable"),
        (":lazy", "expected module:callable"),
    ],
)
def test_a_model_that_nobody_could_train_is_refused(here, model, reason):
    assert reason in run(model=model, code=1)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--seed", -1),
        ("--image-size", 0),
        ("--image-size", -2),
        ("--classes", 0),
        ("--classes", -3),
        ("--classes", 10**9),
        ("--batch", 0),
        ("--local-steps", -1),
        ("--examples", 100_000_000),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_flag(here, flag, value):
    output = run(flag, value, code=2)
    assert f"Invalid value for '{flag}'" in output


def test_figures_that_make_no_sense_together_are_refused(here):
    assert "--batch 64: there are 5 images" in run("--batch", 64, code=1)
    assert "expected a positive number" in run("--local-steps", 1, "--learning-rate", "nan", code=1)
    assert "belongs to --local-steps" in run("--learning-rate", 0.1, code=1)
    keep("far.npz", pictures(2), [0, 10**9])
    assert "labels run to 1000000000; expected 0 to classes - 1" in run(images="far.npz", code=1)
    keep("tiny.npz", pictures(2, side=2))
    assert "2 x 2 pixels; at least 3 x 3" in run(images="tiny.npz", code=1)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--batch", 1), ("--model", "mlp"), ("--local-steps", 2), ("--learning-rate", 1), ("--classes", 2)],
)
def test_flags_that_a_recorded_update_does_not_use_are_refused(here, flag, value):
    output = run("--update", "u.f32", "--plan", "plan", flag, value, images=None, model=None, code=1)
    assert f"leave {flag} out" in output


def test_labels_that_were_granted_are_not_counted_as_found(here):
    words = ("--batch", 1, "--option", "labels=known", "--option", "iterations=1", "--json", "o.json")
    keep("one.npz", pictures(1))
    output = run(*words, attack="dlg", images="one.npz")
    assert report_of(here)["label_recovery"] is None
    assert "labels found" not in output


def test_the_report_holds_only_settings_that_were_used(here):
    run("--json", "o.json")
    assert set(report_of(here)["config"]) == {
        *("attack", "images", "model", "batch", "local_steps", "seed", "dtype", "device", "options", "know")
    }
