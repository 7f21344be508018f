"""``fedveil codec fit``, ``show`` and ``check``, as they are typed."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.experiments import ExperimentSettings
from fedveil.gradient_leakage.vae.codec import Basis, read_codec
from fedveil.utils.config import parse_toml
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.tensors import model_pieces
from fedveil.workspace.__main__ import app
from fedveil.workspace.codec_making import energy_kept
from fedveil.workspace.plan_builder import build_plan
from typer.testing import CliRunner

PNEUMONIA = Path(__file__).parents[2] / "workspace" / "pneumonia" / "plan.py"


def typed(*words):
    return CliRunner().invoke(app, ["codec", *map(str, words)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def bundle(toy_plan, tmp_path):
    """The toy plan of 17 numbers, built."""
    build_plan(toy_plan, tmp_path / "plan")
    return tmp_path / "plan"


@pytest.fixture
def released(bundle, tmp_path):
    """Writes models of the plan: ``released(count)``."""

    def write(count, layout=None):
        layout = layout or open_bundle(bundle).layout
        rng = np.random.default_rng(5)
        paths = [tmp_path / f"released-{number}.safetensors" for number in range(count)]
        for path in paths:
            path.write_bytes(b"".join(model_pieces(layout, rng.standard_normal(layout.size, np.float32), b"")))
        return paths

    return write


def fit(bundle, out, *words):
    return typed("fit", "--plan", bundle, "--out", out, *words)


def test_a_codec_is_fitted_on_public_images_and_its_lines_are_taken_by_an_experiment(bundle, toy_site, tmp_path):
    out = tmp_path / "c.safetensors"
    public = toy_site("public", 20)
    said = fit(bundle, out, "--images", public, "--ratio", 4, "--rounds", 3, "--repeats", 2)
    assert said.exit_code == 0, said.output
    codec = read_codec(out.read_bytes())
    assert (codec.basis, codec.size, codec.layout) == (Basis.LEARNED, 4, open_bundle(bundle).layout)
    table = said.output[said.output.index("[codec]") :]
    assert tomllib.loads(table) == {"codec": {"digest": codec.digest, "file": "c.safetensors"}}
    rounds = "[rounds]\nmax_rounds = 1\nmin_participants = 1\n"
    head = f'name = "n"\nplan = "p"\nsecure_aggregation = "off"\n{rounds}{table}'
    assert parse_toml(head, ExperimentSettings, "experiment.toml").codec.digest == codec.digest
    assert (
        "18 updates of 3 virtual sites in 3 rounds, 2 times, on 20 public examples; 9 more were held out" in said.output
    )
    for word in ("energy kept", "CPU seconds", "4.2 times smaller", "parameters"):
        assert word in said.output


def test_the_same_seed_gives_the_same_codec(bundle, toy_site, tmp_path):
    words = ("--images", toy_site("public", 12), "--ratio", 4, "--rounds", 2, "--repeats", 1)
    files = []
    for number, seed in enumerate((3, 3, 4)):
        out = tmp_path / f"{number}.safetensors"
        assert fit(bundle, out, *words, "--seed", seed).exit_code == 0
        files.append(out.read_bytes())
    assert files[0] == files[1] != files[2]


def test_the_same_inputs_without_images_give_a_projection_that_learned_nothing(bundle, tmp_path):
    out = tmp_path / "c.safetensors"
    said = fit(bundle, out, "--basis", "seeded", "--ratio", 4)
    assert said.exit_code == 0, said.output
    assert "a random projection of each round, no VAE" in said.output
    assert "energy kept   not measured" in said.output
    assert read_codec(out.read_bytes()).basis is Basis.SEEDED


def test_a_history_of_released_models_spans_a_codec_and_its_last_step_is_held_out(bundle, released, tmp_path):
    out = tmp_path / "c.safetensors"
    words = [word for path in released(7) for word in ("--models", path)]
    said = fit(bundle, out, "--basis", "history", "--ratio", 4, *words)
    assert said.exit_code == 0, said.output
    assert "6 differences of released models" in said.output
    assert "of updates that were held out" in said.output
    codec = read_codec(out.read_bytes())
    assert (codec.basis, codec.size) == (Basis.HISTORY, 4)
    few = fit(bundle, out, "--basis", "history", "--ratio", 4, *words[:6])
    assert few.exit_code == 0, few.output
    assert "not measured" in few.output


def test_rehearsals_may_begin_with_a_released_model(bundle, released, toy_site, tmp_path):
    words = ("--images", toy_site("public", 12), "--ratio", 4, "--rounds", 2, "--repeats", 1)
    first, later = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    assert fit(bundle, first, *words).exit_code == 0
    said = fit(bundle, later, *words, "--start", released(1)[0])
    assert said.exit_code == 0, said.output
    assert first.read_bytes() != later.read_bytes()


def test_show_tells_what_is_in_a_codec(bundle, toy_site, tmp_path):
    out = tmp_path / "c.safetensors"
    fit(bundle, out, "--images", toy_site("public", 12), "--ratio", 4, "--rounds", 2, "--repeats", 1)
    said = typed("show", out)
    assert said.exit_code == 0, said.output
    assert read_codec(out.read_bytes()).digest in said.output
    for word in ("learned, from updates of public or proxy data", "17 numbers as 4", "image, share"):
        assert word in said.output


def test_check_says_that_a_codec_fits_its_plan_and_why_it_fits_no_other(bundle, toy_plan, tmp_path):
    out, other = tmp_path / "c.safetensors", tmp_path / "other"
    fit(bundle, out, "--basis", "seeded", "--ratio", 4)
    said = typed("check", out, "--plan", bundle)
    assert said.exit_code == 0
    assert "fits plan Toy: 17 numbers as 4" in said.output
    toy_plan.write_text(toy_plan.read_text("utf-8").replace("(1, 4, 4)", "(1, 5, 5)"), "utf-8")
    build_plan(toy_plan, other)
    said = typed("check", out, "--plan", other)
    assert said.exit_code == 1
    assert "it has image (1, 4, 4) where the plan has image (1, 5, 5)" in said.output


@pytest.mark.parametrize("harm", [b"", b"no codec at all", None])
def test_show_and_check_refuse_what_is_no_codec(harm, bundle, tmp_path):
    out = tmp_path / "c.safetensors"
    fit(bundle, out, "--basis", "seeded", "--ratio", 4)
    out.write_bytes(out.read_bytes()[:-1] if harm is None else harm)
    for words in (("show", out), ("check", out, "--plan", bundle)):
        said = typed(*words)
        assert said.exit_code == 1
        assert "MalformedMessageError: " in said.output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "ConfigError: the basis learned needs --images"),
        (("--basis", "seeded", "--images", "here"), "ConfigError: the basis seeded does not use --images"),
        (("--basis", "history"), "ConfigError: the basis history needs --models"),
        (("--basis", "history", "--models", "one"), "ConfigError: 1 released models: a history needs at least two"),
        (("--basis", "history", "--models", "one", "--models", "two"), "PlanError: one cannot be read"),
        (("--basis", "seeded", "--start", "one"), "ConfigError: --start is where rehearsals begin"),
        (("--basis", "magic"), "ConfigError: basis 'magic': expected learned, history, seeded"),
        (("--basis", "seeded", "--ratio", "1000"), "ConfigError: ratio 1000"),
        (("--images", "here", "--ratio", "nan"), "ConfigError: ratio is nan, expected at least 1"),
        (("--images", "here", "--ratio", "0.5"), "ConfigError: ratio is 0.5, expected at least 1"),
        (("--images", "here", "--seeded-share", "nan"), "ConfigError: seeded_share is nan, expected 0 to 1"),
        (("--images", "nowhere.npz"), "DatasetError: "),
        (("--images", "here", "--rounds", "0"), "ConfigError: rounds is 0, expected at least 1"),
        (("--images", "here", "--one-block", "--two-sided"), "ConfigError: --one-block is one dense code"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, complaint, bundle, tmp_path):
    said = fit(bundle, tmp_path / "c.safetensors", *words)
    assert said.exit_code == 1
    assert complaint in said.output
    assert not (tmp_path / "c.safetensors").exists()


def test_a_model_of_another_plan_is_no_history_and_no_start(bundle, toy_site, tmp_path):
    stranger = tmp_path / "stranger.safetensors"
    stranger.write_bytes(b"x" * 500)
    public = toy_site("public", 12)
    said = fit(bundle, tmp_path / "c", "--basis", "history", "--models", stranger, "--models", stranger)
    assert "LayoutMismatchError" in said.output
    assert "stranger.safetensors" in said.output
    said = fit(bundle, tmp_path / "c", "--images", public, "--start", stranger)
    assert "LayoutMismatchError: --start" in said.output


def test_no_file_is_an_error_in_words(bundle, tmp_path):
    said = typed("check", tmp_path / "nothing", "--plan", bundle)
    assert said.exit_code == 1
    assert "StorageError: the codec" in said.output


def test_energy_kept_is_one_for_what_the_codec_spans_and_zero_for_what_it_does_not(bundle, released, tmp_path):
    out = tmp_path / "c.safetensors"
    models = released(3)
    words = [word for path in models for word in ("--models", path)]
    fit(bundle, out, "--basis", "history", "--ratio", 4, "--one-block", *words)
    codec = read_codec(out.read_bytes())
    inside = codec.decode(np.ones(codec.size, np.float32))[None]
    anything = np.random.default_rng(0).standard_normal((1, codec.layout.size)).astype(np.float32)
    outside = anything - codec.decode(codec.encode(anything[0]))
    assert energy_kept(codec, inside) == pytest.approx(1, abs=1e-5)
    assert energy_kept(codec, outside) == pytest.approx(0, abs=1e-5)


def test_real_xrays_span_most_of_the_first_round_of_xrays_that_were_not_seen(real_set, tmp_path):
    build_plan(PNEUMONIA, tmp_path / "plan")
    with np.load(real_set("pneumoniamnist/pneumoniamnist.npz"), allow_pickle=False) as arrays:
        images, labels = arrays["train_images"][:120], arrays["train_labels"][:120]
    np.savez(tmp_path / "public.npz", images=images, labels=labels)
    words = ("--images", tmp_path / "public.npz", "--sites", 2, "--rounds", 1, "--repeats", 3)
    said = fit(tmp_path / "plan", tmp_path / "c.safetensors", "--ratio", 100, *words)
    assert said.exit_code == 0, said.output
    kept = float(said.output.split("energy kept")[1].split("%")[0])
    assert kept > 20  # a random projection of as many numbers keeps 0.2 %
    assert "remark" in said.output  # 6 updates span no 236 directions
    said = typed("check", tmp_path / "c.safetensors", "--plan", tmp_path / "plan")
    assert said.exit_code == 0
    assert "fits plan PneumoniaPlan" in said.output
