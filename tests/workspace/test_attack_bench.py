"""``fedveil attack bench`` and ``report`` on the bundled digits, as they are typed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from fedveil.gradient_leakage import suites
from fedveil.gradient_leakage.cells import Cell, Run
from fedveil.gradient_leakage.report import PAGE
from fedveil.gradient_leakage.rows import FILE_NAME, RunStore
from fedveil.utils.errors import DatasetError
from fedveil.workspace import leakage_laboratory
from fedveil.workspace.__main__ import app
from fedveil.workspace.attack_bench import verdicts_of
from fedveil.workspace.leakage_data import available_cases
from fedveil.workspace.leakage_laboratory import RealLaboratory
from typer.testing import CliRunner

TINY = (
    Cell("digits", "lenet", "idlg-label", targets=2),
    Cell("digits", "mlp", "imprint", ("malicious",), batch=2, targets=2),
)
PROMISED = ["case", "model", "state", "batch", "local_steps", "defense", "attack", "adaptive"]
PROMISED += ["psnr", "ssim", "null_ssim", "reid_rank1", "cpu_seconds"]


def typed(*words):
    return CliRunner().invoke(app, ["attack", *map(str, words)], env={"COLUMNS": "240", "NO_COLOR": "1"})


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(suites, "SUITES", {"tiny": TINY})


@pytest.mark.usefixtures("tiny")
def test_a_suite_is_run_and_leaves_rows_pictures_and_a_page(tmp_path):
    said = typed(
        "bench", "--suite", "tiny", "--out", tmp_path / "out", "--workers", 0, "--json", tmp_path / "rows.json"
    )
    assert said.exit_code == 0, said.output
    rows = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert [row["attack"] for row in rows] == ["idlg-label"] * 2 + ["imprint"] * 2
    assert all(name in row for row in rows for name in PROMISED)
    assert all(row["psnr"] > 100 for row in rows[2:])
    assert all(row["reid_rank1"] is None for row in rows)  # half of the digits are fewer than 100 of a class
    assert all(row["psnr"] is None and row["label_recovery"] == 1 for row in rows[:2])
    assert (tmp_path / "out" / PAGE).exists()
    assert list((tmp_path / "out" / "pictures").glob("*.png"))
    assert "imprint" in said.output
    assert PAGE in said.output


@pytest.mark.usefixtures("tiny")
def test_a_second_time_nothing_is_run_and_the_rows_are_the_same(tmp_path):
    first = typed("bench", "--suite", "tiny", "--out", tmp_path, "--workers", 0, "--json", tmp_path / "1.json")
    again = typed("bench", "--suite", "tiny", "--out", tmp_path, "--workers", 0, "--json", tmp_path / "2.json")
    assert first.exit_code == again.exit_code == 0
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()  # times too: no run was made again


@pytest.mark.usefixtures("tiny")
def test_list_shows_the_cells_and_runs_nothing(tmp_path):
    said = typed("bench", "--suite", "tiny", "--out", tmp_path / "out", "--list")
    assert said.exit_code == 0
    assert "2 cells, 4 attacked updates" in said.output
    assert "idlg-label" in said.output
    assert not (tmp_path / "out").exists()
    more = typed("bench", "--suite", "tiny", "--targets", 30, "--out", tmp_path / "out", "--list")
    assert "2 cells, 60 attacked updates" in more.output


@pytest.mark.usefixtures("tiny")
def test_the_report_can_be_drawn_again_from_the_store_alone(tmp_path):
    assert typed("bench", "--suite", "tiny", "--out", tmp_path, "--workers", 0, "--gif").exit_code == 0
    before = (tmp_path / PAGE).read_bytes()
    (tmp_path / PAGE).unlink()
    said = typed("report", "--out", tmp_path)
    assert said.exit_code == 0, said.output
    assert (tmp_path / PAGE).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("bench", "--suite", "tinier"), "ConfigError: suite 'tinier': expected one of smoke, full, claim"),
        (("report", "--out", "nowhere"), "StorageError: there is no nowhere/leakage.sqlite"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, complaint):
    said = typed(*words)
    assert said.exit_code == 1
    assert complaint in said.output


def test_ctrl_c_keeps_what_had_ended_and_says_how_it_goes_on(tmp_path):
    words = [sys.executable, "-m", "fedveil.workspace", "attack", "bench", "--out", str(tmp_path), "--workers", "0"]
    if set(available_cases()) <= {"digits"}:
        pytest.skip("the real sets are not here; set FEDVEIL_DATA_DIR to the folder that holds them")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / FILE_NAME).exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint.strip().splitlines() == [
        f"Interrupted. What had ended is in {tmp_path}; the same command goes on from there."
    ]


def test_a_chain_is_told_by_its_worst_attack_and_only_where_enough_was_attacked(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "SUITES", {"tiny": TINY[1:]})
    typed("bench", "--suite", "tiny", "--out", tmp_path, "--workers", 0)
    with RunStore(tmp_path, writing=False) as store:
        one = store.rows()[0]
    quiet = [
        replace(one, key=f"q{i}", target=i, patients=f"p{i}", ssim=0.4, null_ssim=0.4, reid_rank1=0.0, gallery=500)
        for i in range(500)
    ]
    assert list(verdicts_of(quiet[:499])) == []
    assert list(verdicts_of(quiet)) == ["digits mlp fresh 2 0 none, worst of 1 attacks: no measurable leakage"]
    loud = [replace(row, key=f"l{row.target}", attack="dlg", ssim=1.0) for row in quiet]
    (verdict,) = verdicts_of([*quiet, *loud])
    assert verdict.startswith("digits mlp fresh 2 0 none, worst of 2 attacks: no such claim: the SSIM gain")


def test_targets_are_the_same_for_every_attack_and_share_no_patient_with_what_is_public(tmp_path):
    laboratory = RealLaboratory(tmp_path)
    one, two = (laboratory.batch(Run(Cell("digits", "mlp", name, batch=4), 1)) for name in ("dlg", "imprint"))
    assert one.patients == two.patients
    other = laboratory.batch(Run(Cell("digits", "mlp", "dlg", batch=4), 0))
    assert not set(one.patients) & set(other.patients)
    public = {image.numpy().tobytes() for image in laboratory.public("digits").images}
    assert not public & {image.numpy().tobytes() for image in one.images}
    gallery = laboratory.gallery("digits")
    assert len(set(gallery.patients)) == len(gallery.patients)
    assert not public & {image.numpy().tobytes() for image in gallery.images}


def test_a_case_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetError, match="case 'lungs'"):
        RealLaboratory(tmp_path).domain("lungs")


def test_a_trained_model_is_another_one_than_the_fresh_and_is_trained_once(tmp_path, monkeypatch):
    laboratory = RealLaboratory(tmp_path)
    fresh, trained = (Cell("digits", "mlp", "dlg", state=state) for state in ("fresh", "one-epoch"))
    weights = [laboratory.model(cell).state_dict()["1.weight"] for cell in (fresh, trained)]
    assert not weights[0].equal(weights[1])
    monkeypatch.setattr("fedveil.workspace.leakage_training.train", None)
    again = laboratory.model(trained).state_dict()["1.weight"]
    assert again.equal(weights[1])
    assert laboratory.model(Cell("digits", "resnet18-eval", "dlg")).training is False
    assert laboratory.model(Cell("digits", "resnet18-train", "dlg", dtype="float64")).training is True


def test_where_memory_is_short_a_gallery_still_has_as_many_of_each_class(tmp_path, monkeypatch):
    leakage_laboratory._gallery.cache_clear()
    monkeypatch.setattr(leakage_laboratory, "_MAX_PIXELS", 576 * 10 * 7)
    labels = RealLaboratory(tmp_path).gallery("digits").labels
    leakage_laboratory._gallery.cache_clear()
    assert labels.bincount().tolist() == [7] * 10
