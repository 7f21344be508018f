"""Command lines, as they are typed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from fedveil.director.__main__ import DEFAULT_FOLDER as DIRECTORS
from fedveil.director.__main__ import app as director
from fedveil.envoy.__main__ import DEFAULT_FOLDER as ENVOYS
from fedveil.envoy.__main__ import app as envoy
from fedveil.utils.errors import UnreachableError
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.__main__ import app as fedveil
from PIL import Image
from typer.testing import CliRunner

ROOMS = {"director": director, "envoy": envoy, "fedveil": fedveil}


def typed(app, *words):
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def folder(tmp_path):
    """Nineteen images and one that is none."""
    rng = np.random.default_rng(0)
    for name in ("normal", "pneumonia"):
        (tmp_path / "xrays" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (9, 9), np.uint8)).save(tmp_path / "xrays" / name / f"{i}.png")
    (tmp_path / "xrays" / "normal" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return tmp_path / "xrays"


def test_a_plan_is_built_with_settings(toy_plan, tmp_path):
    said = typed(
        fedveil, "plan", "build", toy_plan, "--out", tmp_path / "p", "--set", "fails_at=3", "--set", "scaffold=false"
    )
    assert said.exit_code == 0, said.output
    bundle = open_bundle(tmp_path / "p")
    assert bundle.digest in said.output
    assert bundle.manifest.settings["fails_at"] == 3
    assert bundle.manifest.settings["scaffold"] is False


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("fails_at", "--set 'fails_at': expected name=value"),
        ("depth=3", "unknown setting depth"),
        ("fails_at=often", "fails_at: expected int, got 'often'"),
        ("fails_at=2.5", "fails_at: expected int, got 2.5"),
        ("fails_at=[1]", "fails_at: expected int, got '[1]'"),
        ("local_epochs=0", "local_epochs 0"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_in_one_line(toy_plan, tmp_path, word, complaint):
    said = typed(fedveil, "plan", "build", toy_plan, "--out", tmp_path / "p", "--set", word)
    assert said.exit_code == 1
    assert complaint in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert not (tmp_path / "p").exists()


def test_a_plan_whose_own_code_breaks_is_shown_with_the_line(toy_plan, tmp_path):
    toy_plan.write_text(toy_plan.read_text().replace("np.full(", "np.fill("))
    said = typed(fedveil, "plan", "build", toy_plan, "--out", tmp_path / "p")
    assert said.exit_code == 1
    assert "np.fill((1, 4, 4)" in said.stderr
    assert said.stderr.splitlines()[-1].startswith("TrainingError: the plan raised AttributeError in initial")


def test_a_demo_without_usable_images_says_so_in_one_line(tmp_path):
    said = typed(fedveil, "demo", "--out", tmp_path / "out", "--data", tmp_path / "absent.npz")
    assert said.exit_code == 1
    assert said.stderr.startswith("DatasetError: ")
    assert "absent.npz is not there" in said.stderr


def test_a_dataset_is_added_listed_and_checked(folder, tmp_path):
    site = ("--folder", tmp_path / "site")
    added = typed(envoy, "data", "add", "chest-xray", folder, "--classes", "normal,pneumonia", *site)
    assert added.exit_code == 0, added.output
    assert "4.png" in added.stdout
    assert "quarantine" in added.stdout
    listed = typed(envoy, "data", "list", *site)
    assert "chest-xray" in listed.stdout
    assert "normal" in listed.stdout
    assert typed(envoy, "data", "check", "chest-xray", *site).exit_code == 0

    (folder / "normal" / "0.png").unlink()
    (folder / "pneumonia" / "1.png").write_bytes((folder / "pneumonia" / "2.png").read_bytes())
    checked = typed(envoy, "data", "check", "chest-xray", *site)
    assert checked.exit_code == 1
    assert "0.png" in checked.stdout
    assert "1.png" in checked.stdout


def test_a_dataset_that_is_not_right_is_refused_in_one_line(folder, tmp_path):
    site = ("--folder", tmp_path / "site")
    typed(envoy, "data", "add", "chest-xray", folder, *site)
    again = typed(envoy, "data", "add", "chest-xray", folder, *site)
    assert (again.exit_code, again.stderr.splitlines()) == (1, again.stderr.splitlines()[:1])
    assert "already here" in again.stderr
    assert typed(envoy, "data", "add", "chest-xray", folder, "--replace", *site).exit_code == 0
    for words, complaint in (
        (("add", "other", tmp_path / "absent"), "is not there"),
        (("add", "other", folder, "--split", "0.5,0.5"), "expected three shares"),
        (("add", "other", folder, "--split", "0.5,0.5,0.5"), "shares that sum to 1"),
        (("check", "other"), "known: chest-xray"),
    ):
        said = typed(envoy, "data", *words, *site)
        assert said.exit_code == 1
        assert complaint in said.stderr
    assert "No dataset yet" in typed(envoy, "data", "list", "--folder", tmp_path / "elsewhere").stdout


@pytest.fixture
def federation(tmp_path, monkeypatch):
    """One that was made in the working folder with no folder named; the root's fingerprint."""
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text("a long enough passphrase")
    made = typed(director, "init", "lungs", "--address", "127.0.0.1:1", "--passphrase-file", "secret")
    assert made.exit_code == 0, made.output
    return made.stdout.partition("read out to sites: ")[2].splitlines()[0]


@pytest.fixture
def asked(monkeypatch):
    """The addresses that were called to join; nobody answers."""
    called = []

    def call(invitation, address, way):
        called.append(address)
        raise UnreachableError("nobody answers")

    monkeypatch.setattr("fedveil.envoy.client.bootstrap_client", call)
    return called


def test_the_folders_that_are_made_by_default_are_no_room_and_git_leaves_out_what_is_secret(federation):
    checkout = Path(__file__).parents[2]
    assert (DIRECTORS / "ca" / "root.key.pem").exists()
    ignored = (checkout / ".gitignore").read_text("utf-8").splitlines()
    for folder in (DIRECTORS, ENVOYS):
        assert not (checkout / folder / "__init__.py").exists()
        assert f"{folder}/" in ignored
    assert {"*.join", "*.key.pem", "*.bundle/"} <= set(ignored)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--role", "operator"), "made by `director init`; further operators come with the hub"),
        (("--role", "join"), "only envoys are invited"),
        (("--out", "a.txt"), "a join file ends with .join"),
    ],
)
def test_an_invitation_that_nobody_could_use_is_not_written(federation, words, complaint):
    said = typed(director, "invite", "hospital-a", "--organization", "A", *words)
    assert said.exit_code == 1
    assert complaint in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert not list(Path().glob("*.join"))


def joining(*words):
    invited = typed(director, "invite", "hospital-a", "--organization", "A", "--role", "envoy")
    assert invited.exit_code == 0, invited.output
    return typed(envoy, "join", "hospital-a.join", *words)


def test_a_root_of_another_fingerprint_is_sent_nothing(federation, asked):
    said = joining("--fingerprint", "00" * 32)
    assert (said.exit_code, asked) == (1, [])
    assert "nothing was sent" in said.stderr
    assert not ENVOYS.exists()


def test_the_right_fingerprint_however_it_is_grouped_joins_without_a_question(federation, asked):
    said = joining("--fingerprint", federation.replace(" ", ":").upper())
    assert asked == ["127.0.0.1:1"]
    assert "not compared" not in said.stderr


def test_without_a_terminal_a_join_says_that_nothing_was_compared(federation, asked):
    said = joining()
    assert federation in said.stdout.replace("\n", " ")
    assert "was not compared" in said.stderr
    assert asked


@pytest.mark.parametrize(("answer", "words", "joins"), [("y", (), True), ("n", (), False), ("", ("--yes",), True)])
def test_at_a_terminal_the_fingerprint_is_asked_about_unless_yes_was_said(
    federation, asked, monkeypatch, answer, words, joins
):
    monkeypatch.setattr("fedveil.envoy.join_commands._somebody_is_there", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda question, abort: answer == "y" or _raise_abort())
    said = joining(*words)
    assert (said.exit_code, bool(asked)) == (1, joins)
    assert ENVOYS.exists() is joins


def _raise_abort():
    raise typer.Abort


@pytest.mark.parametrize("room", ROOMS)
def test_help_names_every_command(room):
    said = typed(ROOMS[room], "--help")
    assert said.exit_code == 0
    named = {one.name or one.callback.__name__.replace("_", "-") for one in ROOMS[room].registered_commands}
    named |= {one.name for one in ROOMS[room].registered_groups}
    assert named
    assert {name for name in named if name not in said.stdout} == set()


@pytest.mark.parametrize(("room", "module"), [("director", "director"), ("envoy", "envoy"), ("fedveil", "workspace")])
def test_help_comes_without_torch_and_whatever_else_takes_long_to_import(room, module):
    script = (
        "import json, sys\n"
        f"sys.argv = [{room!r}, '--help']\n"
        f"from fedveil.{module}.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = json.loads(done.stderr)
    assert "Usage" in done.stdout
    assert not {"torch", "torchvision", "grpc", "sqlalchemy", "matplotlib", "sklearn"} & set(loaded)
