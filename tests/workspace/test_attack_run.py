"""``fedveil attack run``: own images and models are attacked whole and in order, a recorded update as it was sent."""

import json
import shutil
from types import SimpleNamespace

import fedveil
import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.threat_model import Knowledge, Observation, Reconstruction
from fedveil.utils.errors import AttackError
from fedveil.workspace.__main__ import app
from PIL import Image
from typer.testing import CliRunner

_MODELS = """
import torch
from torch import nn

def fitting(image_shape, num_classes):
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 16), nn.Tanh(), nn.Linear(16, num_classes))

def of_domain(domain):
    return nn.Sequential(nn.Flatten(), nn.Linear(domain.pixels, domain.num_classes))

class OwnClass(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(144, 3)
    def forward(self, images):
        return self.last(images.flatten(1))

ready = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
def no_model(): return 5
def breaks(): raise RuntimeError("out of luck")
def one_number(): return nn.Sequential(nn.Flatten(), nn.Linear(144, 1), nn.Flatten(0))
def untrained(): return nn.Flatten()
class Rounded(nn.Module):
    def forward(self, features):
        return features.round()
class Detached(nn.Module):
    def forward(self, features):
        return features.detach()
def rounding(): return nn.Sequential(nn.Flatten(), nn.Linear(144, 8), Rounded(), nn.Linear(8, 2))
def detaching(): return nn.Sequential(nn.Flatten(), nn.Linear(144, 2), Detached())
def of_nan():
    made = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    nn.init.constant_(made[1].weight, float("nan"))
    return made
number = 5
"""

_PLAN = """
import torch
from fedveil import DataKind, DataSpec, TrainingPlan, mean_of

class Plain(TrainingPlan):
    data = DataSpec("toy", DataKind.IMAGES, (1, 12, 12), ("normal", "pneumonia"))

    def model(self):
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(144, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)
        )

    def train_step(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, loader):
        yield mean_of("nothing", 0.0, 1)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of somebody's own: six images of two classes, and some models."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("own.npz", images=rng.integers(0, 256, (6, 1, 12, 12), np.uint8), labels=np.arange(6) % 2)
    (tmp_path / "own_models_of_a_test.py").write_text(_MODELS)
    return tmp_path


def run(*words, succeeds=True):
    result = CliRunner().invoke(app, ["attack", "run", *map(str, words)])
    assert (result.exit_code == 0) is succeeds, result.output
    return " ".join(result.output.split())


def refused(*words):
    """The one line that says why."""
    output = run(*words, succeeds=False)
    assert "Traceback" not in output
    assert "Error: " in output
    return output


def test_every_attack_is_listed_with_its_paper_and_what_it_must_know(monkeypatch):
    from fedveil.gradient_leakage.attacks.catalogue import ATTACKS

    monkeypatch.setenv("COLUMNS", "80")
    output = CliRunner().invoke(app, ["attack", "list"]).output
    for one in ATTACKS:
        assert one.name in output
        assert one.paper in output


@pytest.mark.parametrize("model", ["mlp", "own_models_of_a_test:fitting"])
def test_every_image_is_attacked_and_saved_beside_its_truth_in_the_order_of_the_file(here, model):
    run(
        "--images",
        "own.npz",
        "--model",
        model,
        "--attack",
        "imprint",
        "--batch",
        4,
        "--json",
        "o.json",
        "--save",
        "o.npz",
    )
    with np.load("o.npz") as found, np.load("own.npz") as own:
        np.testing.assert_array_equal(found["truth"], own["images"] / np.float32(255))
        assert found["reconstruction"].dtype == found["truth"].dtype == np.float32
        np.testing.assert_allclose(found["reconstruction"], found["truth"], atol=1e-4)
    report = json.loads((here / "o.json").read_text())
    assert [row["batch"] for row in report["per_image"]] == [0, 0, 0, 0, 1, 1]
    assert report["psnr"] > 90
    assert report["null_psnr"] < 20
    assert report["psnr_interval"][0] <= report["psnr"] <= report["psnr_interval"][1]
    assert report["re_identification"]["rank1"] is None
    assert "not measurable (gallery of 3" in report["re_identification"]["words"]
    assert len(report["cpu_seconds"]) == report["updates"] == 2
    assert report["config"]["options"]["bins"] == 1024


def test_the_same_seed_gives_the_same_files(here):
    for name in ("one", "two"):
        run("--images", "own.npz", "--model", "mlp", "--attack", "imprint", "--batch", 3, "--save", f"{name}.npz")
    assert (here / "one.npz").read_bytes() == (here / "two.npz").read_bytes()


def test_the_terminal_says_what_the_figures_mean(here):
    output = run("--images", "own.npz", "--model", "mlp", "--attack", "imprint", "--batch", 2)
    assert "PSNR" in output
    assert "excess over the null" in output
    assert "Read the excess over the null" in output


def test_a_reconstruction_is_shown_as_it_emerges(here):
    with np.load("own.npz") as own:
        np.savez("one.npz", images=own["images"][:1], labels=own["labels"][:1])
    words = ("--images", "one.npz", "--model", "own_models_of_a_test:fitting", "--attack", "dlg")
    run(*words, "--gif", "o.gif", "--json", "o.json")
    with Image.open("o.gif") as animation:
        assert animation.n_frames > 1
    assert json.loads((here / "o.json").read_text())["psnr"] > 60


def test_an_attack_on_labels_alone_reports_their_recovery_and_no_picture(here):
    run("--images", "own.npz", "--model", "mlp", "--attack", "llg", "--batch", 3, "--json", "o.json", "--save", "o.npz")
    report = json.loads((here / "o.json").read_text())
    assert report["label_recovery"] == 1.0
    assert "psnr" not in report
    with np.load("o.npz") as found:
        assert set(found.files) == {"truth", "labels", "found_labels"}


def test_a_gallery_of_a_hundred_of_a_class_gives_a_rank(here):
    rng = np.random.default_rng(0)
    np.savez("many.npz", images=rng.random((104, 1, 12, 12), np.float32), labels=np.zeros(104, int))
    run("--images", "many.npz", "--model", "mlp", "--attack", "imprint", "--batch", 26, "--json", "o.json")
    found = json.loads((here / "o.json").read_text())["re_identification"]
    assert found["gallery"] == 100
    assert found["rank1"] > 0.9


def test_public_images_are_the_baseline_and_fill_the_gallery(here):
    rng = np.random.default_rng(1)
    np.savez("public.npz", images=rng.random((240, 1, 12, 12), np.float32), labels=np.arange(240) % 2)
    run("--images", "own.npz", "--model", "mlp", "--attack", "imprint", "--public", "public.npz", "--json", "o.json")
    report = json.loads((here / "o.json").read_text())
    assert report["baseline"] == "the mean of the public images"
    assert report["re_identification"]["rank1"] == 1.0


def test_local_steps_and_options_reach_the_site_and_the_attack(here):
    words = ("--images", "own.npz", "--model", "mlp", "--attack", "imprint", "--option", "bins=64", "--batch", 2)
    run(*words, "--local-steps", 3, "--learning-rate", 0.1, "--dtype", "float64", "--json", "o.json")
    report = json.loads((here / "o.json").read_text())
    assert report["config"]["options"]["bins"] == 64
    assert report["config"]["local_steps"] == 3
    assert report["psnr"] > 40


def test_a_folder_of_images_by_class_is_attacked(here):
    for number, name in enumerate(("ill", "well", "ill")):
        (here / "folder" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), 60 * number).save(here / "folder" / name / f"{number}.png")
    run("--images", "folder", "--model", "mlp", "--attack", "imprint", "--json", "o.json")
    assert [row["label"] for row in json.loads((here / "o.json").read_text())["per_image"]] == [0, 0, 1]


@pytest.mark.parametrize("name", ["fitting", "of_domain", "OwnClass", "ready"])
def test_a_model_of_ones_own_is_a_function_a_class_or_a_module(here, name):
    run("--images", "own.npz", "--model", f"own_models_of_a_test:{name}", "--attack", "llg", "--json", "o.json")
    assert json.loads((here / "o.json").read_text())["label_recovery"] is not None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--images", "no.npz"], "no.npz is not there"),
        (["--model", "alexnet"], "expected one of mlp"),
        (["--model", "nowhere_at_all:make"], "importing nowhere_at_all raised ModuleNotFoundError"),
        (["--model", "own_models_of_a_test:nothing"], "has no nothing"),
        (["--model", "own_models_of_a_test:number"], "number is int"),
        (["--model", "own_models_of_a_test:no_model"], "returned int, expected a torch.nn.Module"),
        (["--model", "own_models_of_a_test:breaks"], "raised RuntimeError: out of luck"),
        (["--model", "own_models_of_a_test:one_number"], "expected one logit a class"),
        (["--model", "own_models_of_a_test:untrained"], "no parameter that is trained"),
        (["--model", "own_models_of_a_test:of_nan"], "NaN or infinity"),
        (["--model", "own_models_of_a_test:detaching"], "layer 2 (Detached)"),
        (["--model", "own_models_of_a_test:rounding", "--attack", "dlg"], "layer 2 (Rounded)"),
        (["--classes", "1"], "a label is not one of the model's 1 classes"),
        (["--attack", "nonsense"], "expected one of"),
        (["--attack", "loki"], "reads a SumObservation, not one update"),
        (["--option", "bins"], "expected name=value"),
        (["--option", "depth=3"], "attack imprint"),
        (["--know", "everything"], "--know everything: expected some of labels"),
        (["--know", "nothing"], "imprint needs malicious"),
        (["--know", "malicious,public_data"], "public_data, which is not there: give --public"),
        (["--know", "malicious,local_steps"], "local_steps, which is not there: give --local-steps"),
        (["--dtype", "float16"], "--dtype is one of float32, float64"),
        (["--device", "tpu"], "--device one of auto, cpu, cuda"),
        (["--update", "u.f32"], "--update and --plan go together"),
        (["--examples", "3"], "belong to a recorded --update"),
        (["--gif", "o.gif"], "nothing to animate"),
        (["--public", "small.npz"], "--public holds images of shape (1, 5, 5), expected (1, 12, 12)"),
        (["--images", "small.npz", "--model", "own_models_of_a_test:ready"], "cannot be run on images of shape"),
        (["--save", "own.npz/o.npz"], "own.npz is not a folder"),
    ],
)
def test_what_cannot_be_attacked_is_refused_with_its_reason(here, words, reason):
    np.savez("small.npz", images=np.ones((2, 5, 5)), labels=[0, 1])
    given = {"--images": "own.npz", "--model": "mlp", "--attack": "imprint"}
    asked = given | dict(zip(words[::2], words[1::2], strict=True))
    assert reason in refused(*(word for pair in asked.items() for word in pair))


class Moody:
    """Attacks the updates with few examples alone, and finds grey there."""

    needs = Knowledge()

    def __call__(self, observation: Observation, knowledge, rng):
        if observation.num_examples > 2:
            raise AttackError("too many examples")
        return Reconstruction(torch.full((observation.num_examples, 1, 12, 12), 0.25))


def test_an_update_that_cannot_be_attacked_is_named_and_the_others_are_scored(here, monkeypatch):
    entry = SimpleNamespace(name="moody", paper="none", make=Moody)
    monkeypatch.setattr("fedveil.workspace.attack_run.listed", lambda _: entry)
    words = ("--images", "own.npz", "--model", "mlp", "--attack", "moody")
    output = run(*words, "--batch", 4, "--json", "o.json", "--save", "o.npz")
    assert "1 updates could not be attacked and are in no figure below: too many examples" in output
    report = json.loads((here / "o.json").read_text())
    assert report["errors"] == ["too many examples", None]
    assert [row["psnr"] is None for row in report["per_image"]] == [True] * 4 + [False] * 2
    with np.load("o.npz") as found:
        assert found["reconstruction"].shape == found["truth"].shape == (6, 1, 12, 12)
        assert (found["reconstruction"][:4] == 0.5).all()
        assert (found["reconstruction"][4:] == 0.25).all()
    assert "AttackError: too many examples" in refused(*words, "--batch", 3)


def test_nothing_to_attack_is_refused(here):
    assert "give --images, or --update" in refused("--attack", "imprint")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """What a federation with one site left on its disks: the site trained one step on its only training image."""
    folder = tmp_path_factory.mktemp("federation")
    rng = np.random.default_rng(0)
    arrays = {"train_images": rng.integers(0, 256, (1, 12, 12), np.uint8), "train_labels": np.array([1])}
    for word in ("val", "test"):
        arrays |= {f"{word}_images": np.zeros((1, 12, 12), np.uint8), f"{word}_labels": np.array([0])}
    np.savez(folder / "site.npz", **arrays)
    np.savez(folder / "truth.npz", images=arrays["train_images"][:, None], labels=arrays["train_labels"])
    layers = "torch.nn.Flatten(), torch.nn.Linear(144, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)"
    deeper = "torch.nn.Conv2d(1, 8, 5, 2, 2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(288, 2)"
    for name, text in (("linear", _PLAN), ("cnn", _PLAN.replace(layers, deeper))):
        (folder / f"{name}.py").write_text(text)
        home = folder / name
        fedveil.simulate(folder / f"{name}.py", {"site-a": folder / "site.npz"}, rounds=1, folder=home, device="cpu")
    return folder


@pytest.fixture
def record(federation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(federation / "linear" / "sites" / "site-a" / "work" / "update.f32", "update.f32")
    shutil.copy(federation / "linear" / "director" / "uploads" / "site-a.spool", "site-a.spool")
    shutil.copytree(federation / "linear" / "plan", "plan")
    shutil.copy(federation / "cnn" / "sites" / "site-a" / "work" / "update.f32", "cnn.f32")
    shutil.copytree(federation / "cnn" / "plan", "cnn")
    shutil.copy(federation / "truth.npz", "truth.npz")
    return tmp_path


@pytest.mark.parametrize("file", ["update.f32", "site-a.spool"])
def test_the_update_of_a_real_federation_gives_its_image_away_without_the_truth(record, file):
    """The attacker has the file, the plan's bundle and the number of examples; the truth is looked at afterwards."""
    words = ("--update", file, "--plan", "plan", "--examples", 1, "--attack", "first-layer")
    run(*words, "--json", "o.json", "--save", "o.npz")
    report = json.loads((record / "o.json").read_text())
    assert "psnr" not in report
    assert report["images"] == 0
    assert not {"model", "batch", "local_steps", "learning_rate", "classes"} & set(report["config"])
    with np.load("o.npz") as found, np.load("truth.npz") as truth:
        assert "truth" not in found.files
        np.testing.assert_allclose(found["reconstruction"], truth["images"] / np.float32(255), atol=1e-2)


def test_the_update_of_a_convolutional_network_is_matched(record):
    """Gradient matching on one step of plain SGD, whose scale the plan's settings give."""
    words = ("--update", "cnn.f32", "--plan", "cnn", "--examples", 1, "--attack", "dlg")
    run(*words, "--know", "local_steps,learning_rate", "--save", "o.npz")
    with np.load("o.npz") as found, np.load("truth.npz") as truth:
        error = np.square(found["reconstruction"] - truth["images"] / np.float32(255)).mean()
    assert -10 * np.log10(error) > 30


def test_a_recorded_update_is_scored_where_its_images_are_given(record):
    words = ("--update", "update.f32", "--plan", "plan", "--images", "truth.npz", "--attack", "first-layer")
    run(*words, "--json", "o.json", "--save", "o.npz")
    assert json.loads((record / "o.json").read_text())["psnr"] > 40
    with np.load("o.npz") as found:
        assert found["truth"].shape == found["reconstruction"].shape == (1, 1, 12, 12)


def test_labels_are_read_off_a_recorded_update(record):
    run("--update", "update.f32", "--plan", "plan", "--examples", 1, "--attack", "idlg-label", "--save", "o.npz")
    with np.load("o.npz") as found:
        assert found["found_labels"].tolist() == [1]


def test_the_model_of_a_later_round_is_taken_from_its_file(record, federation):
    weights = federation / "linear" / "sites" / "site-a" / "work" / "model.safetensors"
    words = ("--update", "update.f32", "--plan", "plan", "--examples", 1, "--attack", "idlg-label")
    run(*words, "--weights", weights)
    (record / "other.safetensors").write_bytes(weights.read_bytes()[:-4])
    assert "LayoutMismatchError" in refused(*words, "--weights", "other.safetensors")
    assert "cannot be read" in refused(*words, "--weights", "no.safetensors")


def test_an_update_that_is_not_the_plans_is_refused(record):
    words = ("--plan", "plan", "--examples", 1, "--attack", "idlg-label")
    content = (record / "update.f32").read_bytes()
    (record / "short.f32").write_bytes(content[:-4])
    assert f"an update of this plan has {len(content)}" in refused("--update", "short.f32", *words)
    (record / "nan.f32").write_bytes(np.float32("nan").tobytes() + content[4:])
    assert "nan.f32 holds NaN or infinity" in refused("--update", "nan.f32", *words)
    spool = (record / "site-a.spool").read_bytes()
    (record / "half.spool").write_bytes(spool[:32] + (8).to_bytes(8, "little") + spool[40:])
    assert f"only 8 of {len(content)} bytes" in refused("--update", "half.spool", *words)
    assert "cannot be read" in refused("--update", "no.f32", *words)
    assert "Give --examples" in refused("--update", "update.f32", "--plan", "plan", "--attack", "idlg-label")
    assert "holds 1" in refused(
        "--update", "update.f32", *words[:2], "--examples", 2, *words[4:], "--images", "truth.npz"
    )
    assert "leave --dtype out" in refused("--update", "update.f32", *words, "--dtype", "float64")


def test_a_plan_whose_updates_are_no_gradients_is_attacked_with_a_remark(record, federation):
    adam = _PLAN + "\n    def optimizer(self, model):\n        return torch.optim.Adam(model.parameters())\n"
    (record / "adam.py").write_text(adam)
    from fedveil.workspace.plan_builder import build_plan

    build_plan(record / "adam.py", record / "adam")
    words = ("--update", "update.f32", "--plan", "adam", "--examples", 1, "--attack", "idlg-label")
    assert "trains with Adam, not plain SGD" in run(*words)
    assert "learning_rate, which is not there" in refused(*words, "--know", "learning_rate")


def test_a_plan_without_a_torch_model_is_refused(record, toy_plan):
    from fedveil.workspace.plan_builder import build_plan

    build_plan(toy_plan, record / "arrays")
    words = ("--update", "update.f32", "--plan", "arrays", "--examples", 1, "--attack", "idlg-label")
    assert "trains no torch model on images" in refused(*words)


@pytest.fixture
def masked(record):
    """The same update as a director holds it of a secure sum: in fixed point, under a mask, with tallies behind it."""
    from fedveil.utils.plan_bundle import open_bundle
    from fedveil.utils.secure_sum.fixed_point import FixedPoint
    from fedveil.utils.secure_sum.masks import Masker
    from fedveil.utils.secure_sum.tallies import TallyLayout, padded

    layout = open_bundle(record / "plan").layout
    update = np.fromfile(record / "update.f32", "<f4")
    tallies = TallyLayout((), len(layout.entries))
    words, clipped = np.zeros(padded(update.size) + tallies.words, np.uint32), np.zeros(len(layout.entries), np.int64)
    scheme = FixedPoint(tuple(entry.size for entry in layout.entries), (8.0,), 4)
    scheme.encode(update, 0, 1, bytes(32), words[: update.size], clipped)
    (record / "bare").mkdir()
    (record / "bare" / "site-a.masked").write_bytes(words.tobytes())
    Masker([bytes([7]) * 32]).apply(words)
    (record / "site-a.masked").write_bytes(words.tobytes())
    header = bytes(32) + words.nbytes.to_bytes(8, "little") + bytes(24)
    (record / "masked.spool").write_bytes(header + words.tobytes() + b"left behind by another upload")
    told = {"run": "r", "round": 1, "attempt": 1, "codec": None, "contributors": 4}
    told["terms"] = {"bounds": [8.0], "max_weight": 1}
    for folder in (record, record / "bare"):
        (folder / "sum.json").write_text(json.dumps(told))
    return record


@pytest.mark.parametrize("file", ["site-a.masked", "masked.spool"])
@pytest.mark.parametrize("attack", ["first-layer", "inverting-gradients"])
def test_a_masked_vector_gives_nothing_away_and_is_called_what_it_is(masked, file, attack):
    words = ("--plan", "plan", "--images", "truth.npz", "--attack", attack, "--json", "o.json")
    said = run("--update", file, *words)
    report = json.loads((masked / "o.json").read_text())
    assert f"{file} is no update: it is a masked vector of a secure sum (run r, round 1, attempt 1)" in said
    assert any("no update" in remark for remark in report["remarks"])
    assert report["psnr"] < 12
    assert abs(report["ssim"]) < 0.2


def test_without_the_mask_the_same_words_give_the_image_away(masked):
    """It is the mask that hides it, not fixed point, nor that the words are read wrongly."""
    run(
        "--update",
        "bare/site-a.masked",
        "--plan",
        "plan",
        "--images",
        "truth.npz",
        "--attack",
        "first-layer",
        "--json",
        "o.json",
    )
    assert json.loads((masked / "o.json").read_text())["psnr"] > 30


def test_what_is_called_masked_and_cannot_be_is_refused(masked):
    words = ("--plan", "plan", "--examples", 1, "--attack", "first-layer")
    (masked / "short.masked").write_bytes((masked / "site-a.masked").read_bytes()[:-400])
    assert "a masked vector of this plan has at least" in refused("--update", "short.masked", *words)
    (masked / "sum.json").write_text("{}")
    assert "does not say how the sum was made" in refused("--update", "site-a.masked", *words)
    told = {"run": "r", "round": 1, "attempt": 1, "codec": "00", "contributors": 4}
    (masked / "sum.json").write_text(json.dumps(told | {"terms": {"bounds": [8.0], "max_weight": 1}}))
    assert "not codes" in refused("--update", "site-a.masked", *words)
    (masked / "sum.json").unlink()
    assert "is no update" in run("--update", "site-a.masked", *words)
