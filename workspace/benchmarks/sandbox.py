"""What the box of a plan's code costs: starting a process that imports nothing, and a task of a plan that does nothing.

And how soon nothing of a plan runs any more that would never end by itself, after its task was withdrawn.

Tiers take turns, so that the machine's drift meets them all alike; ``none`` is the process without a box.
"""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ...envoy.orders import WorkOrder
from ...envoy.sandbox.box import Box, Program
from ...envoy.sandbox.policy import SandboxPolicy, Tier
from ...envoy.sandbox.probing import probe_tiers
from ...envoy.sandbox.sandbox import Sandbox
from ...envoy.sandbox.view import View
from ...envoy.trainer import ChildTrainer
from ...utils.errors import TrainingError
from ...utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from ...utils.plan_bundle import Bundle, open_bundle
from ..plan_builder import build_plan
from .endless_plan import BEGUN

_PLAN = Path(__file__).with_name("noop_plan.py")
_ENDLESS = Path(__file__).with_name("endless_plan.py")


@dataclass(frozen=True, slots=True)
class BoxCost:
    """Of one tier, in seconds of the clock: the quickest of all turns, so that other load counts little."""

    tier: str
    start: float  # of a process that imports nothing and ends
    first_task: float  # numpy and the plan are imported in it
    next_task: float  # by the same process
    end: float  # from the decision until nothing of it runs
    withdrawn: float  # the same, of five processes that loop and heed no signal


def measure_sandbox(turns: int) -> list[BoxCost]:
    """Every tier that works here.

    Args:
        turns: measurements of each.
    """
    tiers = [one.tier for one in probe_tiers() if one.works]
    found: dict[Tier, list[tuple[float, ...]]] = {tier: [] for tier in tiers}
    with tempfile.TemporaryDirectory(prefix="fedveil-bench-") as name:
        folder = Path(name)
        build_plan(_PLAN, folder / "plan", {"elements": 1000})
        build_plan(_ENDLESS, folder / "endless", {})
        bundle, endless = open_bundle(folder / "plan"), open_bundle(folder / "endless")
        for _ in range(turns):
            for tier in tiers:
                site = folder / "site"
                costs = (_start_seconds(tier, site), *_task_seconds(tier, site, bundle))
                found[tier].append((*costs, _withdrawal_seconds(tier, site, endless)))
    return [BoxCost(tier.value, *map(min, zip(*rows, strict=True))) for tier, rows in found.items()]


def as_markdown(costs: list[BoxCost]) -> list[str]:
    """A table, in milliseconds."""
    lines = [
        "| tier | start, ms | first task, ms | next task, ms | end, ms | withdrawn, ms |",
        "|---|---|---|---|---|---|",
    ]
    for one in costs:
        seconds = (one.start, one.first_task, one.next_task, one.end, one.withdrawn)
        cells = " | ".join(f"{1000 * value:.1f}" for value in seconds)
        lines.append(f"| {one.tier} | {cells} |")
    return lines


def _start_seconds(tier: Tier, folder: Path) -> float:
    with tempfile.TemporaryFile() as output:
        program = Program("fedveil.envoy.sandbox.trial", (), View(frozenset()), (), output.fileno(), {})
        began = time.perf_counter()
        boxed = Box(SandboxPolicy(), folder).start(tier, program)
        boxed.exit_code(60)
        took = time.perf_counter() - began
        boxed.end()
    return took


def _task_seconds(tier: Tier, folder: Path, bundle: Bundle) -> tuple[float, float, float]:
    trainer = ChildTrainer(folder / "state", Sandbox.of_tier(tier, SandboxPolicy(), folder))
    times = [time.perf_counter()]
    for number in (1, 2):
        trainer.run(_order(folder, bundle, number), 60, threading.Event())
        times.append(time.perf_counter())
    trainer.close()
    times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def _withdrawal_seconds(tier: Tier, folder: Path, bundle: Bundle) -> float:
    trainer = ChildTrainer(folder / "state", Sandbox.of_tier(tier, SandboxPolicy(), folder))
    log, withdrawn, over = folder / "state" / "worker.log", threading.Event(), threading.Event()
    log.unlink(missing_ok=True)
    began = 0.0

    def withdraw() -> None:
        nonlocal began
        while not over.wait(0.01):
            if log.exists() and BEGUN in log.read_text("utf-8"):
                began = time.perf_counter()
                withdrawn.set()
                return

    thread = threading.Thread(target=withdraw)
    thread.start()
    try:
        trainer.run(_order(folder, bundle, 1), 60, withdrawn)
    except TrainingError:
        if not withdrawn.is_set():  # it never looped
            raise
    finally:
        took = time.perf_counter() - began
        over.set()
        thread.join()
        trainer.close()
    return took


def _order(folder: Path, bundle: Bundle, number: int) -> WorkOrder:
    return WorkOrder(
        ref=TaskRef(RunId("bench"), number, 1, bundle.digest),
        kind=TaskKind.TRAIN,
        seed=bytes(32),
        envoy=EnvoyName("bench"),
        bundle=bundle.folder,
        dataset=None,
        index_path=None,
        model_path=bundle.blob_path("initial.safetensors"),
        update_path=folder / "work" / "update.f32",
        state_folder=folder / "state",
        device="cpu",
    )
