"""The main job, as it is typed: real processes, and what they leave behind."""

import io
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from fedveil.gradient_leakage.vae.codec import codec_bytes
from fedveil.gradient_leakage.vae.fitting import seeded
from fedveil.utils.errors import DatasetError, PlanError
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace import chest_xrays, demo
from fedveil.workspace.chest_xrays import DATA_VARIABLE
from fedveil.workspace.demo import DemoOptions, run_demo
from fedveil.workspace.demo_protection import DemoDefense
from fedveil.workspace.plan_builder import build_plan
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

MARK = "FEDVEIL_TEST_MARK"
SITES = ("site-a", "site-b", "site-c", "site-d")
KEYS = {
    "test_auc": float,
    "test_accuracy": float,
    "sites": dict,
    "rounds": int,
    "stop_reason": str,
    "transport": str,
    "data_source": str,
    "first_round_open_seconds": float,
    "wall_seconds": float,
    "cpu_seconds": float,
    "bytes_up": int,
    "bytes_up_without_codec": int,
    "bytes_down": int,
    "codec": str,
    "defense": str,
    "secure_aggregation": dict,
}


def marked(mark: str) -> list[str]:
    """Command lines of living processes that were started under this mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended, or is another user's
    return found


def without_images(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "empty"))
    monkeypatch.setattr(chest_xrays, "_fetch", lambda _: None)


@pytest.mark.slow
def test_the_demo_trains_and_leaves_its_results_and_no_process(tmp_path):
    mark, out = uuid.uuid4().hex, tmp_path / "out"
    command = [str(Path(sys.executable).parent / "fedveil"), "demo", "--rounds", "2", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {MARK: mark}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert not marked(mark)

    summary = json.loads((out / "summary.json").read_text())
    assert {key: type(value) for key, value in summary.items()} == KEYS
    assert summary["rounds"] == 2
    assert summary["transport"] == "mtls"
    assert summary["stop_reason"] == "max_rounds: 2 rounds are closed"
    assert tuple(summary["sites"]) == SITES
    for site in summary["sites"].values():
        assert 0 <= site["alone_auc"] <= 1
        assert site["num_examples"] > 100
    assert 0 <= summary["test_auc"] <= 1
    assert 0 <= summary["test_accuracy"] <= 1
    assert 0 < summary["first_round_open_seconds"] < summary["wall_seconds"]

    bundle = open_bundle(out / "federation" / "plan")
    model = load_file(out / "model.safetensors")
    assert {name: array.shape for name, array in model.items()} == {e.name: e.shape for e in bundle.layout.entries}
    assert all(np.isfinite(array).all() for array in model.values())
    update_bytes = sum(array.nbytes for array in model.values())
    assert summary["bytes_up_without_codec"] == 2 * len(SITES) * update_bytes
    assert 1 <= summary["bytes_up"] / (2 * len(SITES) * update_bytes) < 1.2  # tallies and the evaluation beside it
    secure = summary["secure_aggregation"]
    assert (secure["threshold"], secure["cohort"], secure["survivors"]) == (3, 4, list(SITES))
    assert (secure["suite"], secure["rounds"]) == ("mlkem768-x25519", 2)
    assert secure["total_weight"] == sum(site["num_examples"] for site in summary["sites"].values())
    assert (summary["codec"], summary["defense"]) == ("", "none")
    assert summary["bytes_down"] > 3 * len(SITES) * update_bytes  # two rounds and the evaluation, and the plan once
    with Image.open(out / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert 5_000 < (out / "curves.png").stat().st_size < 500_000
    assert summary["data_source"].split(" (")[0] in done.stdout
    assert f"{summary['test_auc']:.4f}" in done.stdout


@pytest.mark.slow
def test_with_a_codec_and_noise_sites_send_codes_of_the_very_codec_that_was_given(tmp_path, monkeypatch):
    without_images(monkeypatch, tmp_path)
    build_plan(demo.PLAN, tmp_path / "plan", {"image_size": 28})
    layout = open_bundle(tmp_path / "plan").layout
    codec, file = seeded(layout, 100.0), tmp_path / "codec.safetensors"
    file.write_bytes(codec_bytes(codec))
    said = io.StringIO()
    options = DemoOptions(tmp_path / "out", rounds=1, codec_file=file, defense=DemoDefense.CLIP_NOISE)
    summary = run_demo(options, Console(file=said, width=200))
    assert (summary["codec"], summary["defense"]) == (codec.digest, "clip-noise")
    assert 1 <= summary["bytes_up"] / (len(SITES) * 4 * codec.size) < 30  # AUC's tallies are longer than the code
    assert summary["bytes_up_without_codec"] == len(SITES) * layout.num_bytes
    text = " ".join(said.getvalue().split())
    assert "by itself protects nobody" in text
    assert "far too little for a guarantee" in text
    assert "without the codec 378.4 kB, 100 times as much" in text


@pytest.mark.slow
def test_images_that_are_no_xrays_are_said_to_be_none(tmp_path, monkeypatch):
    without_images(monkeypatch, tmp_path)
    said = io.StringIO()
    summary = run_demo(DemoOptions(tmp_path / "out", rounds=1), Console(file=said, width=200))
    text = " ".join(said.getvalue().split())
    assert "NOT X-rays" in summary["data_source"]
    assert "these are NOT X-rays, and the figures say nothing about pneumonia" in text
    assert "These figures are of handwritten digits, not of X-rays." in text
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["images", "plan"])
def test_a_demo_that_fails_says_why_and_leaves_no_process(tmp_path, monkeypatch, broken):
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    without_images(monkeypatch, tmp_path)
    options = DemoOptions(tmp_path / "out", data=tmp_path / "absent.npz" if broken == "images" else None)
    if broken == "plan":
        monkeypatch.setattr(demo, "PLAN", tmp_path / "absent.py")
    with pytest.raises(DatasetError if broken == "images" else PlanError, match="absent"):
        run_demo(options, Console(file=io.StringIO()))
    assert not marked(mark)
    assert not (tmp_path / "out" / "summary.json").exists()
