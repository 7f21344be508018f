"""The story of a site that keeps control, command by command as the READMEs say; each hospital is a host of its own.

Five hospitals join by invitation. A researcher submits; four approve, and one refuses. The plan is changed: one site
reads the difference, runs the leak test and approves with limits. They train in secure rounds, which the researcher
steers by signed patches; one site vetoes in the middle of a round; another is revoked. In the end the logs of both
sides are verified away from everything, and a copy that was tampered with is caught.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

ADDRESS = "10.88.0.1"
NAMES = ("hospital-a", "hospital-b", "hospital-c", "hospital-d", "hospital-e")
PLAN = '''
import torch
from fedveil import DataKind, DataSpec, TrainingPlan, mean_of
from torch import nn
from torch.nn import functional

class Brightness(TrainingPlan):
    """Which of two classes, by a linear map of 64 pixels."""

    data = DataSpec("chest-xray", DataKind.IMAGES, (1, 8, 8), ("normal", "pneumonia"))

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    def train_step(self, model, batch):
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def evaluate(self, model, loader):
        for images, labels in loader:
            yield mean_of("accuracy", float((model(images).argmax(1) == labels).sum()), len(labels))
'''
EXPERIMENT = """
name = "brightness"
plan = "{bundle}"
[study]
purpose = "tell bright images from dark ones"
legal_basis = "ethics vote 2026-041"
[rounds]
max_rounds = 900
min_participants = 3
round_timeout_seconds = 120
"""


@pytest.fixture
def hosts(host_at: Callable[..., Any], tmp_path: Path) -> tuple[Any, ...]:
    """The director's, and five hospitals'."""
    return tuple(
        host_at(
            name,
            f"10.88.0.{nth}",
            tmp_path / name,
            {"FEDVEIL_DIRECTOR": str(tmp_path / name / "folder"), "FEDVEIL_CA_PASSPHRASE": "a long enough passphrase"}
            if name == "director"
            else {"FEDVEIL_ENVOY": str(tmp_path / name / "folder")},
        )
        for nth, name in enumerate(("director", *NAMES), start=1)
    )


def words(text: str) -> str:
    return " ".join(text.split())


def digest_of_study(said: str) -> str:
    """The newest proposal's, in what `envoy plan list` says."""
    return re.findall(r"\b[0-9a-f]{12,64}\b", said)[-1]


@pytest.mark.slow
@pytest.mark.story
def test_site_control_from_invitation_to_a_log_that_nobody_can_rewrite(hosts, wait_until, write_xrays, tmp_path):
    director, *hospitals = hosts
    a, b, c, d, e = hospitals

    # ---- two hospitals and three more join by invitation, outbound alone
    fingerprint = director.types(f"director init lungs --address {ADDRESS}").partition("read out to sites: ")[2]
    fingerprint = fingerprint.splitlines()[0].strip()
    director.starts("director start")
    wait_until((director.home / "folder" / "director.address").exists, "the director")
    for nth, (hospital, name) in enumerate(zip(hospitals, NAMES, strict=True)):
        director.types(f"director invite {name} --organization H{nth} --out {name}.join")
        shutil.move(director.home / f"{name}.join", hospital.home)
        hospital.types(f"envoy join {name}.join --fingerprint '{fingerprint}'")
        # The names are a patient's, and must stay at the site.
        write_xrays(hospital.home / "xrays", nth, f"PATIENT-Doe-{nth}-")
        hospital.types("envoy data add chest-xray xrays")
        with (hospital.home / "folder" / "envoy.toml").open("a") as settings:
            settings.write("\n[training]\npreload_torch = false\nthreads = 1\n")
        hospital.starts("envoy start")
    for hospital in hospitals:
        fetched = "".join(hospital.types("envoy roster fetch").split("\n"))
        roster = re.search(r"envoy roster accept ([0-9a-f]{64})", fetched)[1]
        hospital.types(f"envoy roster accept {roster}")
    assert [hospital.listening() for hospital in hospitals] == [[]] * 5
    examined = a.types("envoy doctor")
    assert "FAIL" not in examined, examined

    # ---- a researcher submits; nothing runs that nobody approved; one site refuses
    (director.home / "plan.py").write_text(PLAN, "utf-8")
    director.types("fedveil plan build plan.py --out v1.bundle")
    (director.home / "v1.toml").write_text(EXPERIMENT.format(bundle="v1.bundle"), "utf-8")
    director.types("director experiment submit v1.toml")
    wait_until(lambda: "offered" in a.types("envoy plan list"), "the offer")
    assert "waits for approval: 0 of 3" in words(director.types("director experiment list"))
    first = digest_of_study(a.types("envoy plan list"))
    shown = a.types(f"envoy plan show {first} --source")
    assert "ethics vote 2026-041" in shown
    assert "class Brightness" in shown
    for hospital in (a, c, d):
        wait_until(lambda hospital=hospital: "offered" in hospital.types("envoy plan list"), "the offer")
        hospital.types(f"envoy plan approve {first} --yes")
    wait_until(lambda: "offered" in b.types("envoy plan list"), "the offer")
    b.types(f"envoy plan reject {first} --reason 'our ethics board has not met'")
    wait_until(lambda: _closed(director, "brightness-1") >= 1, "a round of those who approved", 90)
    director.types("director experiment stop brightness-1 --reason 'the plan changes'")
    assert " masked" not in b.types("envoy outbox")

    # ---- any changed byte asks again: the difference, the leak test, limits
    changed = PLAN.replace("nn.Linear(64, 2))", "nn.Linear(64, 2, bias=False))")
    (director.home / "plan.py").write_text(changed, "utf-8")
    director.types("fedveil plan build plan.py --out v2.bundle")
    (director.home / "v2.toml").write_text(EXPERIMENT.format(bundle="v2.bundle"), "utf-8")
    director.types("director experiment submit v2.toml")
    wait_until(lambda: digest_of_study(a.types("envoy plan list")) != first, "the second offer")
    second = digest_of_study(a.types("envoy plan list"))
    difference = a.types(f"envoy plan diff {second}")
    assert "+        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))" in difference
    assert "-        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))" in difference
    _set_seconds(a)
    measured = a.types(f"envoy plan leak-test {second}")
    assert "score" in measured, measured
    assert list((a.home / "folder" / "leak-tests").rglob("*.png"))
    a.types(f"envoy plan approve {second} --rounds 800 --yes")
    assert "waits for approval: 1 of 3" in words(director.types("director experiment list"))
    for hospital in (c, d, e):
        wait_until(lambda hospital=hospital: second in hospital.types("envoy plan list"), "the second offer")
        hospital.types(f"envoy plan approve {second} --yes")
    b.types(f"envoy plan reject {second} --reason 'our ethics board has not met'")

    # ---- secure rounds, steered by signed patches
    run = "brightness-2"
    wait_until(lambda: _closed(director, run) >= 2, "two secure rounds", 90)
    director.types(f"director experiment pause {run} --reason 'let me look'")
    wait_until(lambda: "paused" in director.types("director experiment list"), "the pause")
    shown = words(director.types(f"director experiment show {run}"))
    assert "hospital-a" in shown
    assert "hospital-b" not in shown
    earlier = _closed(director, run) - 2
    director.types(f"director experiment rollback {run} --to {earlier} --reason 'that one was better'")
    director.types(f"director experiment set {run} --learning-rate 0.05 --local-epochs 12000 --reason 'longer rounds'")

    # ---- a veto in mid-round: nothing of it runs when the command has answered, and the round goes on without the site
    director.types(f"director experiment resume {run}")
    wait_until(lambda: "round" in _task(e), "the long round at hospital-e", 60)
    wait_until(lambda: _workers(e) > 0, "the training at hospital-e", 60)
    assert "ended:" in e.types("envoy veto --reason 'the lights went out'")
    # How soon that is: `fedveil bench sandbox`, in its last column.
    wait_until(lambda: not _workers(e), "silence at hospital-e", 60)
    assert not _task(e)
    enough = _closed(director, run) + 3
    director.types(f"director experiment set {run} --local-epochs 1 --max-rounds {enough} --reason 'enough'")
    wait_until(lambda: "finished" in director.types("director experiment list"), "the end of the run", 120)
    shown = words(director.types(f"director experiment show {run} --model model.safetensors"))
    assert "hospital-a, hospital-c, hospital-d (" in shown
    weight = next(iter(load_file(director.home / "model.safetensors").values()))
    assert weight[1].sum() > weight[0].sum()  # pneumonia is the brighter here

    # ---- a revoked site is refused on its next call
    director.types("director revoke hospital-d --reason 'the laptop was stolen'")
    wait_until(lambda: "revoked" in d.types("envoy status").lower(), "the refusal", 60)
    d.types("envoy roster fetch", expected=1)

    # ---- logs of both sides, verified far from both, and a copy that was tampered with
    away = tmp_path / "auditor"
    away.mkdir()
    shutil.copy(director.home / "folder" / "audit.jsonl", away / "director.jsonl")
    for hospital, name in zip(hospitals, NAMES, strict=True):
        shutil.copy(hospital.home / "folder" / "audit.jsonl", away / f"{name}.jsonl")
    for name in NAMES:
        said = director.types(f"fedveil audit verify {away}/director.jsonl --against {away}/{name}.jsonl")
        assert "entries" in said
    events = [json.loads(line)["event"]["what"] for line in (away / "hospital-e.jsonl").read_text().splitlines()]
    assert any("veto" in event for event in events)
    for log in away.iterdir():
        assert "Doe" not in log.read_text("utf-8")
    lines = (away / "director.jsonl").read_text("utf-8").splitlines(keepends=True)
    (away / "tampered.jsonl").write_text("".join(lines).replace("hospital-d", "hospital-b", 1), "utf-8")
    (away / "reordered.jsonl").write_text("".join([*lines[:3], lines[4], lines[3], *lines[5:]]), "utf-8")
    (away / "cut.jsonl").write_text("".join([*lines[:5], *lines[6:]]), "utf-8")
    for copy in ("tampered", "reordered", "cut"):
        assert "entry" in director.types(f"fedveil audit verify {away}/{copy}.jsonl", expected=1)
    director.types(f"director audit export {away}/evidence.zip")
    assert "entries" in director.types(f"fedveil audit verify {away}/evidence.zip")


def _closed(director, run: str) -> int:
    """Training rounds of a run that gave a model."""
    return len(re.findall(r"│ \d+ +│ closed", director.types(f"director experiment show {run}")))


def _task(hospital) -> str:
    found = re.search(r"works on\W+(round [^│\n]*)", hospital.types("envoy status"))
    return found[1].strip() if found else ""


def _workers(hospital) -> int:
    return hospital.children("fedveil.envoy.worker")


def _set_seconds(hospital) -> None:
    """A short leak test, which reads its settings anew."""
    file = hospital.home / "folder" / "envoy.toml"
    file.write_text(
        file.read_text("utf-8").replace("\n[protection]\n", "\n[protection]\naudit_cpu_seconds = 20\n", 1), "utf-8"
    )
