"""The main job: four hospitals train a pneumonia detector together, on this machine, as separate processes.

A real director and four real envoys over mutual TLS, whose updates leave them inside secure sums alone; then the final
model is scored on images that no site has, beside a model that each site trains alone with the same plan and as many
rounds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..director.sum_settings import SecureSumSettings
from ..envoy.approvals import Standing
from ..envoy.datasets import DatasetRegistry
from ..envoy.inspection import inspect
from ..envoy.records import DataOptions
from ..envoy.splits import SplitRule
from ..utils.command_line import in_bytes
from ..utils.errors import ConfigError, FederationError
from ..utils.messages import ExperimentView
from ..utils.plan_bundle import Bundle, open_bundle
from .chest_xrays import CLASSES, Images3, Part, find_images
from .demo_protection import PUBLIC_SHARE, DemoCodec, DemoDefense, envoy_settings, fitted_codec, given_codec
from .local_federation import LocalFederation
from .processes import cpu_seconds_in_bubblewrap
from .sites import DEMO_SITES, divide, set_aside

PLAN = Path(__file__).parent / "pneumonia" / "plan.py"
_SEED = 2026
SITE_OPTIONS = DataOptions(CLASSES, rule=SplitRule(0.9, 0.1, 0.0))
"""Training and validation parts as they were written; the test images are no site's."""
_EXPERIMENT = """
name = "pneumonia"
plan = "plan"
seed = "{seed:064x}"
secure_aggregation = "required"

[study]
purpose = "show a federation on one machine"
legal_basis = "public or made-up pictures"
min_approvals = 4

[rounds]
max_rounds = {rounds}
min_participants = 3
round_timeout_seconds = 300
"""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What may be set on the command line."""

    out: Path
    data: Path | None = None
    rounds: int = 10
    image_size: int = 28
    codec: bool = False  # fit one, from images that no site gets
    codec_file: Path | None = None  # one that was fitted before, instead
    defense: DemoDefense = DemoDefense.NONE

    def __post_init__(self) -> None:
        if self.codec and self.codec_file is not None:
            raise ConfigError("--codec fits a codec and --codec-file gives one; leave one of them out")


def run_demo(options: DemoOptions, console: Console) -> dict[str, object]:
    """Run it, and write ``summary.json``, ``model.safetensors`` and ``curves.png`` to the folder ``out``.

    Returns:
        The summary; its keys are documented in the project's ``README.md``.

    Raises:
        FederationError: the images or the codec cannot be used, or the run failed.
    """
    started = time.time()
    home = options.out / "federation"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)

    def say(folder: Path, standing: Standing) -> None:
        said = standing.proposal
        console.print(
            f"{folder.name} approves {said.study} ({said.digest[:12]}…): its plan is the demo's own. Between hospitals"
            " a data manager reads it first: `envoy plan show`, `envoy plan approve`"
        )

    with LocalFederation(home, "demo", say) as federation:
        federation.found()
        federation.start_director()
        images = find_images(options.data, options.image_size, options.out / "cache")
        _say_what_it_is(console, images, options.defense)
        images, public = set_aside(images, PUBLIC_SHARE) if options.codec else (images, None)
        paths = divide(images, DEMO_SITES, home)
        bundle = _start_sites(federation, paths, options)
        codec = _codec(options, bundle, public, console)
        federation.wait_for_envoys()  # else the first round may begin without the last of them
        settings = _EXPERIMENT.format(seed=_SEED, rounds=options.rounds) + (codec.table if codec else "")
        run = federation.submit(settings, bundle, codec.file if codec else None)
        with Live(_table(None, options.rounds), console=console, refresh_per_second=8) as live:
            view = federation.wait_for(run, lambda seen: live.update(_table(seen, options.rounds)))
        if view.state != "finished" or view.model is None:
            raise FederationError(f"the run {view.state}: {view.reason}; see {home}/*/log.txt")
        with federation.operator() as operator:
            model = operator.fetch(view.model)
        in_boxes = sum(cpu_seconds_in_bubblewrap(envoy.pid) for envoy in federation.envoys.values())
    (options.out / "model.safetensors").write_bytes(model)
    console.print("Each site alone, with the same plan and as many rounds ...")
    return _conclude(options, console, images, paths, bundle, codec, view, model, started, in_boxes)


def _start_sites(federation: LocalFederation, paths: Mapping[str, Path], options: DemoOptions) -> Bundle:
    """Join the envoys while the plan is built: both wait, the one for the director, the other for torch.

    The envoys start once it is built: they import torch too, and the first round waits for the plan, not for them.
    """
    from .plan_builder import build_plan

    def join_all() -> None:
        federation.wait_for_director()
        for share in DEMO_SITES:
            folder = federation.join(share.name, share.organization)
            (folder / "envoy.toml").write_text(envoy_settings(options.defense), "utf-8")
            found = inspect("chest-xray", paths[share.name], SITE_OPTIONS, time.time())
            DatasetRegistry(folder / "datasets").add(found.record, found.index)
            joined.append(share.name)

    joined: list[str] = []
    joining = threading.Thread(target=join_all)
    joining.start()
    plan = federation.folder / "plan"
    try:
        build_plan(PLAN, plan, {"image_size": options.image_size})
    finally:
        joining.join()
    if len(joined) != len(DEMO_SITES):
        raise FederationError(f"the envoys could not join; see {federation.director_folder / 'log.txt'}")
    for name in joined:
        federation.start_envoy(name)
    return open_bundle(plan)


def _codec(options: DemoOptions, bundle: Bundle, public: Part | None, console: Console) -> DemoCodec | None:
    """The codec that the run uses, if any."""
    if options.codec_file is not None:
        made = given_codec(options.codec_file, bundle)
    elif public is not None:
        console.print("Fitting a codec on images that no site has ...")
        made = fitted_codec(bundle, public, options.out / "codec", _SEED)
    else:
        return None
    console.print(
        f"Codec: {bundle.layout.size:,} numbers become {made.codec.size:,}; {made.description}. It saves bytes, and by"
        " itself protects nobody."
    )
    return made


def _conclude(
    options: DemoOptions,
    console: Console,
    images: Images3,
    paths: Mapping[str, Path],
    bundle: Bundle,
    codec: DemoCodec | None,
    view: ExperimentView,
    model: bytes,
    started: float,
    in_boxes: float,
) -> dict[str, object]:
    from .report import draw_curves
    from .scoring import score

    federated = score(bundle, model, images.test)
    alone = _train_alone(options, images, paths, bundle)
    draw_curves(options.out / "curves.png", view.rounds, federated.auc, alone, images.description)
    updates = sum(one.received for one in view.rounds if one.kind.value == "train")
    plain_bytes = updates * bundle.layout.num_bytes
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    summary: dict[str, object] = {
        "test_auc": round(federated.auc, 4),
        "test_accuracy": round(federated.accuracy, 4),
        "sites": {name: {"alone_auc": round(auc, 4), "num_examples": n} for name, (auc, n) in alone.items()},
        "rounds": sum(one.state == "closed" and one.kind.value == "train" for one in view.rounds),
        "stop_reason": view.reason,
        "transport": "mtls",
        "data_source": images.description,
        "first_round_open_seconds": round(_first_opened(options.out, view) - started, 2),
        "wall_seconds": round(time.time() - started, 1),
        "cpu_seconds": round(in_boxes + sum(one.ru_utime + one.ru_stime for one in used), 1),
        "bytes_up": view.bytes_up,
        "bytes_up_without_codec": plain_bytes,
        "bytes_down": view.bytes_down,
        "codec": codec.codec.digest if codec else "",
        "defense": options.defense.value,
        "secure_aggregation": _secure_aggregation(view),
    }
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    console.print(_comparison(federated.auc, alone))
    if not images.is_xrays:
        console.print("[bold yellow]These figures are of handwritten digits, not of X-rays.[/]")
    if codec:
        coded_bytes = updates * codec.codec.payload_layout.num_bytes
        console.print(
            f"Codes took {in_bytes(coded_bytes)}; without the codec {in_bytes(plain_bytes)},"
            f" {plain_bytes / coded_bytes:.0f} times as much. With what a secure sum counts beside them (metrics and"
            f" cuts, 8 bytes each) and the evaluation, {in_bytes(view.bytes_up)} went up. The codec itself went down to"
            f" each site once: {in_bytes(codec.file.stat().st_size)}."
        )
    console.print(f"{options.out}/: summary.json, model.safetensors, curves.png")
    return summary


def _secure_aggregation(view: ExperimentView) -> dict[str, object]:
    """How the updates of the last training round were summed."""
    closed = [one.sum for one in view.rounds if one.state == "closed" and one.kind.value == "train" and one.sum]
    last = closed[-1]
    return {
        "suite": SecureSumSettings().suite.value,
        "threshold": last.threshold,
        "cohort": last.cohort,
        "survivors": list(last.survivors),
        "total_weight": last.total_weight,
        "rounds": len(closed),
    }


def _train_alone(
    options: DemoOptions, images: Images3, paths: Mapping[str, Path], bundle: Bundle
) -> dict[str, tuple[float, int]]:
    """Test AUC and number of training images of each site by itself; the sites share the machine's cores."""
    from .scoring import score

    counts = {
        name: DatasetRegistry(options.out / "federation" / name / "datasets").get("chest-xray").num_train
        for name in paths
    }
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        largest_first = sorted(paths, key=lambda name: -counts[name])
        models = {name: pool.submit(_alone, bundle.folder, name, paths[name], options.rounds) for name in largest_first}
        return {name: (score(bundle, models[name].result(), images.test).auc, counts[name]) for name in paths}


def _alone(bundle: Path, name: str, path: Path, rounds: int) -> bytes:
    """A federation of one site, in a process of its own; gives the final model."""
    from .simulation import simulate

    sites = {name: (path, SITE_OPTIONS)}
    return simulate(open_bundle(bundle), sites, rounds=rounds, seed=_SEED, device="cpu", threads=1).model


def _first_opened(out: Path, view: ExperimentView) -> float:
    """When the first round opened, as the director recorded it."""
    from ..director.database import open_database
    from ..director.history import History

    engine = open_database(f"sqlite:///{out / 'federation' / 'director' / 'director.sqlite'}", durable=False)
    try:
        return next(one.opened_at for one in History(engine).rounds(view.run) if one.opened_at is not None)
    finally:
        engine.dispose()


def _say_what_it_is(console: Console, images: Images3, defense: DemoDefense) -> None:
    console.print(f"Images: {images.description}")
    console.print(f"At each site: {defense.words}.")
    if not images.is_xrays:
        console.print(
            "[bold yellow]No X-rays were found and none could be fetched: these are NOT X-rays, and the figures say"
            " nothing about pneumonia.[/] Give some with --data."
        )


def _table(view: ExperimentView | None, rounds: int) -> Table:
    state = view.state if view else "waiting for the envoys"
    table = Table(title=f"Four hospitals, {rounds} rounds, secure sums: {state}", title_justify="left")
    for column in ("round", "state", "answers", "seconds", "AUC", "loss"):
        table.add_column(column, justify="left" if column == "state" else "right")
    for one in view.rounds if view else ():
        number = "final" if one.kind.value == "evaluate" else str(one.round)
        auc, loss = (f"{one.metrics[key]:.4f}" if key in one.metrics else "" for key in ("auc", "loss"))
        answers = f"{one.received} of {one.invited}" if one.invited else ""
        table.add_row(number, one.state, answers, f"{one.seconds:.1f}", auc, loss)
    if view and view.rounds:
        table.caption = (
            "AUC and loss: of the model that entered the round, on the sites' validation images."
            f" {in_bytes(view.bytes_up)} up, {in_bytes(view.bytes_down)} down."
        )
    return table


def _comparison(federated: float, alone: Mapping[str, tuple[float, int]]) -> Table:
    table = Table(title="On the test images, which no site has", title_justify="left")
    for column in ("model", "training images", "test AUC"):
        table.add_column(column, justify="left" if column == "model" else "right")
    table.add_row(
        "federated", f"{sum(n for _, n in alone.values()):,} at {len(alone)} sites", f"[bold]{federated:.4f}[/]"
    )
    for name, (auc, count) in alone.items():
        table.add_row(f"{name} alone", f"{count:,}", f"{auc:.4f}")
    return table
