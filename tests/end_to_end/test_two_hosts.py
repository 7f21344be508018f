"""The README's set-up with three sites, command by command, and a cable that is pulled; hosts are network namespaces.

It needs root, `ip` (Debian: iproute2) and a kernel that lets namespaces be made; elsewhere it is skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fedveil.director.database import open_database
from fedveil.director.history import History
from fedveil.utils.messages import RunId
from safetensors.numpy import load_file

DIRECTOR = "10.87.0.1"
HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
PLAN = '''
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Brightness(ArrayPlan):
    """Logistic regression on one number: how bright an image is."""

    data = DataSpec("chest-xray", DataKind.IMAGES, (1, 8, 8), ("normal", "pneumonia"))

    def initial(self):
        return {"weight": np.zeros(2, np.float32)}

    def _probability(self, weights, data):
        brightness = data.features.mean(axis=(1, 2, 3)) - 0.5
        return brightness, 1 / (1 + np.exp(-(weights["weight"][0] * brightness + weights["weight"][1])))

    def train(self, weights, data, rng):
        brightness, probability = self._probability(weights, data)
        error = probability - data.labels
        slope = np.array([(error * brightness).mean(), error.mean()], np.float32)
        return {"weight": weights["weight"] - np.float32(10) * slope}, len(data)

    def evaluate(self, weights, data):
        _, probability = self._probability(weights, data)
        yield mean_of("accuracy", float(((probability > 0.5) == data.labels).sum()), len(data))
'''
EXPERIMENT = """
name = "brightness"
plan = "brightness.bundle"
[study]
purpose = "a test"
[rounds]
max_rounds = 3
min_participants = 3
"""


@pytest.fixture
def hosts(host_at: Callable[..., Any], tmp_path: Path) -> tuple[Any, ...]:
    """The director's, and three hospitals'."""
    made = []
    for nth, name in enumerate(("director", *HOSPITALS), start=1):
        room = {"FEDVEIL_DIRECTOR" if name == "director" else "FEDVEIL_ENVOY": str(tmp_path / name / "folder")}
        secret = {"FEDVEIL_CA_PASSPHRASE": "a long enough passphrase"} if name == "director" else {}
        made.append(host_at(name, f"10.87.0.{nth}", tmp_path / name, room | secret))
    return tuple(made)


def set_up(
    director: Any, hospitals: list[Any], wait_until: Callable[..., None], write_xrays: Callable[..., None]
) -> None:
    """As the README says it, up to the roster."""
    shown = director.types(f"director init lungs --address {DIRECTOR}")
    fingerprint = shown.partition("read out to sites: ")[2].splitlines()[0].strip()
    director.starts("director start")
    wait_until((director.home / "folder" / "director.address").exists, "the director")
    for nth, (hospital, name) in enumerate(zip(hospitals, HOSPITALS, strict=False)):
        director.types(f"director invite {name} --organization H{nth} --out {name}.join")
        shutil.move(director.home / f"{name}.join", hospital.home)  # handed over like a password
        assert fingerprint in hospital.types(f"envoy join {name}.join").replace("\n", "")
        write_xrays(hospital.home / "xrays", nth)
        with (hospital.home / "folder" / "envoy.toml").open("a") as settings:
            settings.write("\n[training]\npreload_torch = false\n")
        hospital.types("envoy data add chest-xray xrays")
        hospital.starts("envoy start")
    (director.home / "plan.py").write_text(PLAN, "utf-8")
    director.types("fedveil plan build plan.py --out brightness.bundle")


def accept_rosters(hospitals: list[Any]) -> None:
    """At each hospital; the fingerprints that it shows are the ones that the others read out."""
    fetched = [hospital.types("envoy roster fetch") for hospital in hospitals]
    digest = re.search(r"envoy roster accept ([0-9a-f]{64})", "".join(fetched[0].split("\n")))
    for hospital, said in zip(hospitals, fetched, strict=True):
        assert digest[1] in said
        assert said.count("+ hospital-") == len(hospitals)
        assert "3 envoys accepted" in hospital.types(f"envoy roster accept {digest[1]}")


def is_whole(plans: Path) -> bool:
    """Is the one plan that was proposed here, with all of its files?"""
    for manifest in plans.glob("*/manifest.json"):
        files = json.loads(manifest.read_bytes())["files"]
        return all((manifest.parent / "blobs" / file["sha256"]).exists() for file in files)
    return False


def approve(hospitals: list[Any], wait_until: Callable[..., None]) -> None:
    """At each hospital, what was proposed to it; its plan comes a moment after the proposal."""
    for hospital in hospitals:
        wait_until(lambda here=hospital: "offered" in here.types("envoy plan list"), "the proposal", 60)
        digest = re.search(r"^([0-9a-f]{12})  ", hospital.types("envoy plan list"), re.MULTILINE)[1]
        plans = hospital.home / "folder" / "plans"
        wait_until(lambda here=plans: is_whole(here), "its plan", 60)
        assert "purpose" in hospital.types(f"envoy plan show {digest}")
        assert "Approved" in hospital.types(f"envoy plan approve {digest} --yes")


@pytest.mark.slow
def test_three_hospitals_on_hosts_of_their_own_train_together_as_the_readme_says(hosts, wait_until, write_xrays):
    director, *hospitals = hosts
    set_up(director, hospitals, wait_until, write_xrays)
    accept_rosters(hospitals)
    (director.home / "experiment.toml").write_text(EXPERIMENT, "utf-8")
    assert "brightness-1 is queued" in director.types("director experiment submit experiment.toml")
    approve(hospitals, wait_until)
    wait_until(lambda: "finished" in director.types("director experiment list"), "the end of the run", 60)
    status = director.types("director status")
    assert all(name in status for name in HOSPITALS)
    shown = director.types("director experiment show brightness-1 --model model.safetensors")
    assert "max_rounds: 3 rounds are closed" in " ".join(shown.split())
    assert load_file(director.home / "model.safetensors")["weight"][0] > 0  # pneumonia is the brighter here
    assert "4, last" in " ".join(hospitals[0].types("envoy status").split())
    assert len(director.listening()) == 1  # one port at the director, none at a site
    assert [hospital.listening() for hospital in hospitals] == [[], [], []]
    left = hospitals[0].types("envoy outbox")
    assert left.count(" masked ") == 4  # three updates, and the metrics of the final model
    assert "audit" in hospitals[0].types("envoy audit verify").lower()


@pytest.mark.slow
def test_without_a_roster_that_they_accepted_hospitals_sum_with_nobody(hosts, wait_until, write_xrays):
    director, *hospitals = hosts
    set_up(director, hospitals, wait_until, write_xrays)
    (director.home / "experiment.toml").write_text(EXPERIMENT, "utf-8")
    director.types("director experiment submit experiment.toml")
    approve(hospitals, wait_until)
    wait_until(lambda: "failed" in director.types("director experiment list"), "the end of the run", 60)
    shown = " ".join(director.types("director experiment show brightness-1").split())
    assert "envoy roster" in shown
    assert "when  task" in hospitals[0].types("envoy outbox")
    assert " masked" not in hospitals[0].types("envoy outbox")


@pytest.mark.slow
def test_a_site_whose_cable_is_pulled_is_lost_in_five_seconds_and_back_when_it_is_plugged_in(
    hosts, wait_until, write_xrays
):
    director, *hospitals, _ = hosts
    set_up(director, hospitals, wait_until, write_xrays)
    for hospital in hospitals:
        file = hospital.home / "folder" / "envoy.toml"
        file.write_text(file.read_text("utf-8").replace('rule = "required"', 'rule = "allowed"'), "utf-8")
        hospital.restart()
    plain = EXPERIMENT.replace("[study]", 'secure_aggregation = "off"\n[study]')
    plain = plain.replace("max_rounds = 3", "max_rounds = 5000").replace("min_participants = 3", "min_participants = 1")
    (director.home / "experiment.toml").write_text(plain, "utf-8")
    folder = director.home / "folder"
    history = History(open_database(f"sqlite:///{folder / 'director.sqlite'}", durable=False))

    def answers() -> list[int]:
        return [len(r.round.received) for r in history.rounds(RunId("brightness-1")) if r.closed_at is not None]

    wait_until(lambda: director.types("director status").count(" yes ") == 2, "both hospitals")
    director.types("director experiment submit experiment.toml")
    approve(hospitals, wait_until)
    wait_until(lambda: 2 in answers(), "a round of two")
    hospitals[1].cable("down")
    pulled_at = time.time()
    wait_until(lambda: 1 in answers(), "a round of one", 60)
    alone = next(r for r in history.rounds(RunId("brightness-1")) if len(r.round.received) == 1)
    print(f"a round closed {alone.closed_at - pulled_at:.2f} s after the cable was pulled")  # noqa: T201
    assert alone.closed_at - pulled_at < 5.5  # silence is noticed in 5 s; and the other's part of the round
    hospitals[1].cable("up")
    wait_until(lambda: 2 in answers()[answers().index(1) :], "a round of two again")
    history._engine.dispose()
