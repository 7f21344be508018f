"""The comparison of codecs: rows that are made once, and a table that pairs what belongs together."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from fedveil.utils.errors import ConfigError, StorageError
from fedveil.workspace.__main__ import app
from fedveil.workspace.benchmarks import codec_bench, codec_utility
from fedveil.workspace.benchmarks.codec_table import as_markdown, compare
from fedveil.workspace.benchmarks.codec_utility import UtilityRow, held, measure, read_rows
from fedveil.workspace.codec_fitting import Rehearsal
from typer.testing import CliRunner

LABELS = np.array([0] * 40 + [1] * 60)


def row(arm, seed, rounds=10, shift=1.0):
    scores = np.random.default_rng(seed).standard_normal(100) + shift * LABELS
    return UtilityRow(arm, seed, rounds, 100, 2.0, 0.9, auc(scores), 1.0, "setup", tuple(scores.tolist()))


def auc(scores):
    wins = scores[LABELS == 1][:, None] > scores[LABELS == 0][None]
    return float(wins.mean())


def test_an_arm_is_compared_with_the_uncompressed_run_of_the_same_seed():
    rows = [row("none", 1, shift=2.0), row("none", 2, shift=2.0), row("coded", 1), row("coded", 2)]
    none, coded = compare(rows, LABELS)
    assert (none.lost.value, none.lost.low, none.lost.high) == (0, 0, 0)
    wanted = [rows[0].auc - rows[2].auc, rows[1].auc - rows[3].auc]
    assert coded.lost_by_seed == pytest.approx(wanted)
    assert coded.lost.value == pytest.approx(np.mean(wanted), abs=1e-6)
    assert 0 < coded.lost.low < coded.lost.value < coded.lost.high


def test_a_seed_without_an_uncompressed_run_is_left_out():
    found = compare([row("none", 1), row("coded", 1), row("coded", 2), row("coded", 1, rounds=30)], LABELS)
    assert [(one.arm, one.rounds, one.seeds) for one in found] == [("none", 10, (1,)), ("coded", 10, (1,))]


def test_the_table_says_what_was_lost_in_points():
    rows = [row("none", 1, shift=2.0), row("coded", 1)]
    lines = list(as_markdown(compare(rows, LABELS)))
    assert len({line.count("|") for line in lines}) == 1
    assert f" {100 * (rows[0].auc - rows[1].auc):.1f} |" in lines[3]
    assert lines[2].startswith("| none | 10 | 100 | 2.0 |")


def test_rows_are_read_as_they_were_written_and_damage_is_said(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text(json.dumps(vars_of(row("none", 1))) + "\n", "utf-8")
    assert read_rows(path) == [row("none", 1)]
    path.write_text('{"arm": "none"}\n', "utf-8")
    with pytest.raises(StorageError, match="is damaged"):
        read_rows(path)


def vars_of(one):
    return {name: getattr(one, name) for name in UtilityRow.__slots__}


def test_an_arm_that_is_not_there_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="arm magic: expected some of none"):
        next(measure(tmp_path / "home", ["magic"]))
    assert not (tmp_path / "home").exists()


def test_the_table_of_the_rows_that_are_there_goes_between_the_marks_of_a_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin codec -->\nold\n<!-- end codec -->\nafter\n", "utf-8")
    rows = [row("none", 1, shift=2.0), row("learned 100x", 1), row("learned 20x", 2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(vars_of(one)) + "\n" for one in rows), "utf-8")
    labels = SimpleNamespace(images=SimpleNamespace(test=SimpleNamespace(labels=LABELS)))
    monkeypatch.setattr(codec_bench, "prepare", lambda _: labels)
    words = ["--out", str(tmp_path), "--no-run", "--page", str(page), "--json", str(tmp_path / "rows.json")]
    said = CliRunner().invoke(app, ["bench", "codec", *words])
    assert said.exit_code == 0, said.output
    text = page.read_text("utf-8")
    assert text.startswith("before\n<!-- begin codec -->\n\n| upload |")
    assert "| learned 100x | 10 |" in text
    assert "learned 20x" not in text
    assert "old" not in text
    assert text.endswith("<!-- end codec -->\nafter\n")
    assert len(json.loads((tmp_path / "rows.json").read_text("utf-8"))) == 3


@pytest.mark.parametrize("words", [("--seeds", "one"), ("--rounds", "0"), ("--seeds", "1,1")])
def test_numbers_that_are_none_are_refused(words, tmp_path):
    said = CliRunner().invoke(app, ["bench", "codec", "--out", str(tmp_path), *words])
    assert said.exit_code == 1
    assert "expected" in said.output


def small_set(folder):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 120), ("val", 12), ("test", 20)):
        labels = np.arange(count) % 2
        arrays[f"{part}_images"] = (rng.integers(0, 100, (count, 28, 28)) + 100 * labels[:, None, None]).astype(
            np.uint8
        )
        arrays[f"{part}_labels"] = labels.astype(np.uint8)[:, None]
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def test_every_arm_starts_from_the_same_sites_and_a_second_time_nothing_is_run(tmp_path, monkeypatch):
    rehearsal = Rehearsal(rounds=1, repeats=2, examples=8)
    asked = {"data": small_set(tmp_path), "seeds": (1,), "rounds": (1,), "rehearsal": rehearsal}
    arms = ["none", "learned 100x", "learned 20x, two-sided", "seeded 100x + EF"]
    rows = list(measure(tmp_path / "home", arms, **asked))
    assert [one.arm for one in rows] == arms
    assert len({one.auc for one in rows}) > 1
    assert len({one.setup for one in rows}) == 1
    assert all(one.compression >= 100 for one in rows if "100x" in one.arm)
    assert all(len(one.scores) == 20 and np.isfinite(one.scores).all() for one in rows)
    assert held(tmp_path / "home", ["seeded 100x + EF", "none"], seeds=(1, 2), rounds=(1,)) == [rows[3], rows[0]]
    monkeypatch.setattr(codec_utility, "local_update", None)
    assert list(measure(tmp_path / "home", arms, **asked)) == rows
