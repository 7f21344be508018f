"""``fedveil attack bench --defenses``, as it is typed: rows with utility, a figure, a gallery and a table."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fedveil.gradient_leakage import defense_suites
from fedveil.gradient_leakage.cells import Cell
from fedveil.gradient_leakage.defenses.registry import Adaptive, registered
from fedveil.workspace.__main__ import app
from fedveil.workspace.benchmarks import defense_utility
from fedveil.workspace.codec_fitting import Rehearsal
from PIL import Image
from typer.testing import CliRunner

TINY = (Cell("digits", "mlp", "dlg", ("labels",), targets=2),)
NAMES = ("none", "topk-10", "precode")


def typed(*words):
    return CliRunner().invoke(app, ["attack", "bench", *map(str, words)], env={"COLUMNS": "240", "NO_COLOR": "1"})


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """An attack in closed form, and a few made-up X-rays for the federation; the defenses are the registry's."""

    def attacked_quickly(name):
        return replace(registered(name), adaptive=(Adaptive("first-layer"),))

    monkeypatch.setattr(defense_suites, "_SUITES", {"tiny": TINY})
    monkeypatch.setattr(defense_suites, "NAIVE", ("first-layer",))
    monkeypatch.setattr(defense_suites, "registered", attacked_quickly)
    monkeypatch.setattr(defense_utility, "_REHEARSAL", Rehearsal(sites=2, rounds=2, repeats=2, examples=16))
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 120), ("val", 30), ("test", 30)):
        labels = np.arange(count) % 2
        arrays[f"{part}_images"] = (rng.integers(0, 100, (count, 28, 28)) + 100 * labels[:, None, None]).astype(
            np.uint8
        )
        arrays[f"{part}_labels"] = labels[:, None].astype(np.uint8)
    folder = tmp_path / "data" / "pneumoniamnist"
    folder.mkdir(parents=True)
    np.savez(folder / "pneumoniamnist.npz", **arrays)
    monkeypatch.setenv("FEDVEIL_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.slow
def test_defenses_leave_rows_with_their_utility_a_figure_a_gallery_and_a_table_in_a_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- begin defenses -->\n<!-- end defenses -->\n", "utf-8")
    out, file = tmp_path / "out", tmp_path / "rows.json"
    words = (
        "--defenses",
        ",".join(NAMES),
        "--suite",
        "tiny",
        "--out",
        out,
        "--workers",
        0,
        "--utility-rounds",
        1,
        "--utility-seeds",
        2,
    )
    said = typed(*words, "--json", file, "--readme", readme)
    assert said.exit_code == 0, said.output
    rows = json.loads(file.read_text("utf-8"))
    assert {row["defense"] for row in rows} == set(NAMES)
    assert {row["adaptive"] for row in rows if row["defense"] == "topk-10"} == {False, True}
    assert all(0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1 for row in rows)
    table = readme.read_text("utf-8")
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| ") and "`" in line] == [*NAMES]
    assert (out / "defenses.md").read_text("utf-8").strip() in table
    for picture in ("defenses.png", "defenses-gallery.png"):
        with Image.open(out / picture) as drawn:
            assert min(drawn.size) > 100
        assert str(out / picture) in said.output
    # A second time nothing is trained or attacked, and all is the same.
    trained = (out / "utility.json").read_bytes()
    again = typed(*words, "--json", tmp_path / "again.json")
    assert again.exit_code == 0, again.output
    assert (out / "utility.json").read_bytes() == trained
    assert json.loads((tmp_path / "again.json").read_text("utf-8")) == rows


def test_without_utility_there_is_a_table_and_no_figure(tmp_path):
    said = typed("--defenses", "topk-10", "--suite", "tiny", "--out", tmp_path, "--workers", 0, "--no-utility")
    assert said.exit_code == 0, said.output
    assert "first-layer" in (tmp_path / "defenses.md").read_text("utf-8")
    assert not (tmp_path / "defenses.png").exists()
    assert not (tmp_path / "utility.json").exists()


def test_a_list_shows_the_cells_and_runs_nothing(tmp_path):
    said = typed("--defenses", "topk-10,clip", "--suite", "tiny", "--out", tmp_path / "out", "--list")
    assert said.exit_code == 0, said.output
    assert "suite tiny: 4 cells, 8 attacked updates" in said.output
    assert not (tmp_path / "out").exists()


def test_an_unknown_defense_or_a_readme_without_a_place_is_refused_in_words(tmp_path):
    unknown = typed("--defenses", "hope", "--suite", "tiny")
    assert unknown.exit_code == 1
    assert "none, clip" in unknown.output
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n", "utf-8")
    words = ("--defenses", "none", "--suite", "tiny", "--out", tmp_path / "out", "--no-utility", "--workers", 0)
    refused = typed(*words, "--readme", readme)
    assert refused.exit_code == 1
    assert "<!-- begin defenses -->" in refused.output
    assert readme.read_text("utf-8") == "nothing\n"


def test_rows_of_utility_that_are_none_are_refused(tmp_path):
    store = tmp_path / "utility.json"
    store.write_text('[{"defense": "none"}]', "utf-8")
    with pytest.raises(defense_utility.StorageError, match="delete it"):
        defense_utility.read_rows(store)
