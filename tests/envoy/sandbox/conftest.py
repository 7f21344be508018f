"""Sites whose plans try to get out, and the boxes of this machine."""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fedveil.envoy.datasets import DataOptions, DatasetRegistry, inspect
from fedveil.envoy.orders import WorkOrder
from fedveil.envoy.premises import premises_of
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.probing import probe_tiers
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.envoy.trainer import ChildTrainer
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.plan_builder import build_plan

REQUIRED = "FEDVEIL_REQUIRE_SANDBOX"
"""Set where the suite may not do without: a tier that does not work is a failure, no skipped test."""


@pytest.fixture(scope="session")
def works():
    """Skips, or fails where it is required, unless a tier works here."""
    reports = {one.tier: one for one in probe_tiers()}

    def require(tier: Tier) -> None:
        found = reports[tier]
        if found.works:
            return
        text = f"the tier {tier.value} does not work here: {found.reason}; {found.fix}"
        # Whoever may install it (.ci/system-packages does) has no reason to go without.
        if os.environ.get(REQUIRED) or (tier is Tier.BUBBLEWRAP and _may_install() and not shutil.which("bwrap")):
            pytest.fail(text)
        pytest.skip(text)

    return require


def _may_install() -> bool:
    return os.getuid() == 0 and shutil.which("apt-get") is not None and Path("/etc/debian_version").exists()


SECRET = "the-key-of-this-site"
PLAN = """
import ctypes, json, os, resource, signal, socket, subprocess, sys, time
from pathlib import Path
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

SITE = json.loads(SITE_JSON)
SCRATCH = os.environ.get("TMPDIR", SITE["root"])
LIBC = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    answer = LIBC.syscall(number, *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer

def found(secret, text):
    if secret not in text:
        raise AssertionError("it is not there")

BODY

def run_all():
    results = {}
    for name, function in list(globals().items()):
        if name.startswith("try_"):
            try:
                function()
                results[name[4:]] = "through"
            except BaseException as error:
                results[name[4:]] = f"stopped: {type(error).__name__}: {error}"
    print("RESULTS " + json.dumps(results), flush=True)

class Toy(ArrayPlan):
    data = DECLARED

    def initial(self):
        return {"w": np.zeros(4, np.float32)}

    def train(self, weights, data, rng):
        ACTION
        return {"w": weights["w"] + 1}, 1

    def evaluate(self, weights, data):
        yield mean_of("mean", weights["w"].mean(), 1)
"""


ROWS = 'DataSpec("rows", DataKind.TABLE, (2,), ("low", "high"), ("a", "b"))'
NOTHING = 'DataSpec("none", DataKind.NONE)'


def dataset(registry, name: str, folder: Path):
    """A table that is recorded at the site."""
    folder.mkdir(parents=True)
    rows = [f"{i % 7},{i % 5},{'high' if i % 7 > 3 else 'low'}" for i in range(60)]
    (folder / f"{name}.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    looked = inspect(name, folder / f"{name}.csv", DataOptions(label_column="label"), 0.0)
    registry.add(looked.record, looked.index)
    return looked.record


@dataclass
class HostileSite:
    """One envoy's folder, two datasets, and a trainer in a box of the tier."""

    root: Path
    tier: Tier
    policy: SandboxPolicy = field(
        default_factory=lambda: SandboxPolicy(memory_gb=1, processes=64, file_gb=0.02, scratch_gb=0.05)
    )
    preload_torch: bool = False

    def __post_init__(self) -> None:
        self.folder = self.root / "envoy"
        for name in ("state", "work", "plans"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "credentials.json").write_text(SECRET)
        (self.folder / "work" / "payload.f32").write_text(SECRET)
        (self.folder / "state" / "leak-test.log").write_text(SECRET)
        self.registry = DatasetRegistry(self.folder / "datasets")
        self.rows = dataset(self.registry, "rows", self.root / "data" / "rows")
        self.others = dataset(self.registry, "others", self.root / "data" / "others")
        self.number = 0
        self.trainer = ChildTrainer(
            self.folder / "state",
            Sandbox.of_tier(self.tier, self.policy, self.folder),
            preload_torch=self.preload_torch,
            premises=lambda: premises_of(self.folder),
        )

    def order(self, body: str = "", action: str = "run_all()", *, has_data: bool = True, **told: object) -> WorkOrder:
        """The plan with these attempts, as an order of a round."""
        name = f"plan{self.number}"
        self.number += 1
        site = json.dumps({"envoy": os.getpid(), "folder": str(self.folder), "root": str(self.root)} | told)
        source = PLAN.replace("SITE_JSON", repr(site)).replace("BODY", body).replace("ACTION", action)
        source = source.replace("DECLARED", ROWS if has_data else NOTHING)
        (self.root / f"{name}.py").write_text(source)
        bundle = self.folder / "plans" / name
        # Building a plan runs it; what it does to its own site is done to the researcher's machine there.
        build_plan(self.root / f"{name}.py", bundle)
        opened = open_bundle(bundle)
        return WorkOrder(
            ref=TaskRef(RunId("run-1"), 1, 1, opened.digest),
            kind=TaskKind.TRAIN,
            seed=bytes(32),
            envoy=EnvoyName("site-a"),
            bundle=bundle,
            dataset=self.rows if has_data else None,
            index_path=self.registry.index_path(self.rows) if has_data else None,
            model_path=opened.blob_path("initial.safetensors"),
            update_path=self.folder / "work" / "update.f32",
            state_folder=self.folder / "state",
            device="cpu",
        )

    def run(self, order: WorkOrder, seconds: float = 60.0):
        """Do it."""
        return self.trainer.run(order, seconds, threading.Event())

    def results(self, body: str, **told: object) -> dict[str, str]:
        """What became of each attempt."""
        self.run(self.order(body, **told))
        lines = (self.folder / "state" / "worker.log").read_text().splitlines()
        said = [line.removeprefix("RESULTS ") for line in lines if line.startswith("RESULTS ")]
        return json.loads(said[-1])

    def left_running(self) -> list[int]:
        """Processes whose command line names this site's folder, this process aside."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.root).encode() in (path / "cmdline").read_bytes() and int(path.name) != os.getpid():
                    state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                    found += [int(path.name)] if state != "Z" else []
            except OSError:
                continue
        return found


@pytest.fixture
def hostile_site():
    """``hostile_site(root, tier, policy)``: ended with the test, and nothing of it may run then."""
    made = []

    def make(*arguments: object, **named: object) -> HostileSite:
        made.append(HostileSite(*arguments, **named))
        return made[-1]

    yield make
    for site in made:
        site.trainer.close()
        assert site.left_running() == []
