"""A small real federation whose secure sums are kept: the director's side of each sum, and the truth beside it.

Four sites with one image each train one plain step a round, which is the easiest thing there is to attack: an update in
the clear gives its image away. All is as between hospitals (processes, mutual TLS, rosters, secure sums); but whoever
runs this owns all four, and only so can know what was masked. A director's own folder (``read_sums``) holds no truth.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..director.sum_log import EVENTS_FILE, SUMMARY_FILE, VECTOR_SUFFIX, Way
from ..envoy.datasets import DatasetRegistry, load
from ..envoy.inspection import inspect
from ..envoy.plan_loading import plan_of
from ..envoy.records import DataOptions
from ..gradient_leakage.cases import draw_targets, split
from ..gradient_leakage.metrics import Truth
from ..utils.errors import FederationError, StorageError
from ..utils.messages import EnvoyName, ExperimentView, RunId, TaskKind, TaskRef
from ..utils.plan_bundle import Bundle, open_bundle
from ..utils.secure_sum import encoding
from ..utils.secure_sum.cohort import Cohort
from ..utils.secure_sum.masks import Masker
from ..utils.secure_sum.shamir import combine
from ..utils.secure_sum.signed import Kind, Signed
from ..utils.secure_sum.spec import SumSpec
from ..utils.secure_sum.statements import Shares
from ..utils.secure_sum.tallies import TallyLayout
from ..utils.secure_sum.terms import NoiseTerms, Suite, SumTerms
from ..utils.tensors import Digest, Vector, read_model
from .leakage_data import available_cases, load_pool
from .local_federation import LocalFederation
from .plain_rounds import SiteModel, local_update
from .plan_builder import build_plan

SITES = ("site-a", "site-b", "site-c", "site-d")
ROUNDS = 2
LEARNING_RATE = 0.01
_WAIT_SECONDS = 240.0
_PLAN = '''
"""One plain step on a smooth network: what gradient matching is best at."""

import torch
from fedveil import DataKind, DataSpec, TrainingPlan, mean_of
from torch import nn


class OneStep(TrainingPlan):
    data = DataSpec("images", DataKind.IMAGES, {shape}, {classes})

    def model(self):
        width = 32 * {quarter} * {quarter}
        return nn.Sequential(
            nn.Conv2d({channels}, 16, 5, 2, 2), nn.Tanh(), nn.Conv2d(16, 32, 5, 2, 2), nn.Tanh(),
            nn.Conv2d(32, 32, 5, 1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(width, {count}),
        )

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr={rate})

    def train_step(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, loader):
        for images, labels in loader:
            yield mean_of("loss", float(nn.functional.cross_entropy(model(images), labels)) * len(labels), len(labels))
'''
_EXPERIMENT = """
name = "what-the-director-sees"
plan = "plan"
seed = "{seed:064x}"
secure_aggregation = "required"

[study]
purpose = "show what a secure sum says"

[rounds]
max_rounds = {rounds}
min_participants = {sites}
round_timeout_seconds = 120

[secure_sum]
max_examples = 1
clip = 0.25
"""


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that came to the director or went from it."""

    way: str  # up, down or here
    stage: str
    envoy: str
    size: int  # bytes
    seconds: float  # since the first


@dataclass(frozen=True, slots=True, eq=False)
class KeptSum:
    """What a director has of one attempt."""

    told: Mapping[str, Any]  # sum.json
    said: tuple[Said, ...]
    vectors: Mapping[str, NDArray[np.uint32]]  # as they came, with tallies, by site
    without_own: Mapping[str, NDArray[np.uint32]]  # bodies less the masks that the director could take away

    @property
    def name(self) -> str:
        """Which sum.

        >>> KeptSum({"kind": "train", "round": 1, "attempt": 2}, (), {}, {}).name
        'round 1, attempt 2'
        """
        kind = "evaluation, " if self.told["kind"] == TaskKind.EVALUATE.value else ""
        return f"{kind}round {self.told['round']}, attempt {self.told['attempt']}"

    @property
    def body_words(self) -> int:
        """Of a vector, without padding and tallies."""
        return sum(self.told["sizes"])

    @property
    def bodies(self) -> dict[str, NDArray[np.uint32]]:
        """The vectors without tallies."""
        return {name: vector[: self.body_words] for name, vector in self.vectors.items()}


@dataclass(frozen=True, slots=True, eq=False)
class OwnRun:
    """A run of which all is known, as whoever made it owns all sites."""

    folder: Path
    bundle: Bundle
    run: RunId
    view: ExperimentView
    sums: tuple[KeptSum, ...]
    truths: tuple[Mapping[str, Vector], ...]  # the updates of each training sum, by site
    images: Mapping[str, Truth]
    images_are: str

    @property
    def training_sums(self) -> tuple[KeptSum, ...]:
        """Those of updates, in order."""
        return tuple(kept for kept in self.sums if kept.told["kind"] == TaskKind.TRAIN.value and kept.vectors)

    def sum_folder(self, kept: KeptSum) -> Path:
        """Where the director kept it."""
        return self.folder / "director" / "sums" / self.run / f"{kept.told['round']}-{kept.told['attempt']}"


def read_sums(folder: Path) -> tuple[KeptSum, ...]:
    """All sums of one run, as a director with ``keep_sums = true`` left them under ``sums/RUN``.

    Raises:
        StorageError: there is none, or one is damaged.
    """
    folders = sorted(
        (path.parent for path in folder.glob(f"*/{SUMMARY_FILE}")),
        key=lambda path: tuple(int(word) for word in path.name.split("-")),
    )
    if not folders:
        raise StorageError(
            f"{folder} holds no kept sum: expected sums/RUN of a director whose director.toml says keep_sums = true"
        )
    return tuple(_read_sum(path) for path in folders)


def run_federation(folder: Path, seed: int = 2026) -> OwnRun:
    """Found it, run it, and read what the director kept.

    Args:
        folder: takes the folders of director and sites.
        seed: of the run and of the choice of images.

    Raises:
        FederationError: it failed.
    """
    case = available_cases()[0]
    targets = draw_targets(split(load_pool(case))[1], 1, len(SITES))
    images = {site: target.truth() for site, target in zip(SITES, targets, strict=True)}
    with LocalFederation(folder, "secagg-view") as federation:
        federation.found(settings={"keep_models": "0"})
        config = federation.director_folder / "director.toml"
        config.write_text("keep_sums = true\n" + config.read_text("utf-8"), "utf-8")
        federation.start_director()
        bundle = _plan(folder, images)
        federation.wait_for_director()
        for site, truth in images.items():
            _join(federation, site, truth, bundle)
        for site in SITES:
            federation.start_envoy(site)
        federation.wait_for_envoys()
        run = federation.submit(_EXPERIMENT.format(seed=seed, rounds=ROUNDS, sites=len(SITES)), bundle)
        view = federation.wait_for(run, timeout_seconds=_WAIT_SECONDS)
        if view.state != "finished":
            raise FederationError(f"the run {view.state}: {view.reason}; see {folder}/*/log.txt")
        sums = read_sums(federation.director_folder / "sums" / run)
        truths = _truths(federation, bundle, sums)
    return OwnRun(folder, bundle, run, view, sums, truths, images, case)


def _plan(folder: Path, images: Mapping[str, Truth]) -> Bundle:
    channels, height, width = next(iter(images.values())).images.shape[1:]
    count = 1 + max(int(truth.labels.max()) for truth in images.values())
    classes = tuple(f"class-{number}" for number in range(max(2, count)))
    source = folder / "one_step.py"
    source.write_text(
        _PLAN.format(
            shape=(channels, height, width),
            classes=classes,
            quarter=-(-height // 4),
            channels=channels,
            count=len(classes),
            rate=LEARNING_RATE,
        ),
        "utf-8",
    )
    build_plan(source, folder / "plan", {"batch_size": 1, "learning_rate": LEARNING_RATE})
    return open_bundle(folder / "plan")


def _join(federation: LocalFederation, site: str, truth: Truth, bundle: Bundle) -> None:
    """One image to train on, and the same to validate with: it is the site's only one."""
    folder = federation.join(site, f"Hospital {site[-1].upper()}")
    pixels = (truth.images * 255).round().to(dtype=truth.labels.dtype).numpy().astype(np.uint8)
    pixels = pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)
    arrays: dict[str, NDArray[Any]] = {}
    for part in ("train", "val", "test"):
        arrays |= {f"{part}_images": pixels, f"{part}_labels": truth.labels.numpy()}
    path = folder / "images.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    spec = plan_of(bundle).data
    found = inspect(spec.name, path, DataOptions(spec.classes), time.time())
    DatasetRegistry(folder / "datasets").add(found.record, found.index)


def _truths(federation: LocalFederation, bundle: Bundle, sums: tuple[KeptSum, ...]) -> tuple[Mapping[str, Vector], ...]:
    """Every site's update, trained again from the model of its round: the same bits as at the site."""
    plan, found = plan_of(bundle), []
    for kept in sums:
        if kept.told["kind"] != TaskKind.TRAIN.value or not kept.vectors:
            continue
        with federation.operator() as operator:
            layout = bundle.layout
            vector, exact = read_model(layout, operator.fetch(Digest(str(kept.told["model"]))))
        updates = {}
        for site in SITES:
            registry = DatasetRegistry(federation.folder / site / "datasets")
            updates[site] = np.empty(layout.size, np.float32)
            data = load(registry.get(plan.data.name), registry.index(plan.data.name), plan.data)
            local_update(plan, SiteModel(layout, vector, exact), data, 0, updates[site])
        found.append(updates)
    return tuple(found)


def _read_sum(folder: Path) -> KeptSum:
    try:
        told = json.loads((folder / SUMMARY_FILE).read_text("utf-8"))
        lines = [json.loads(line) for line in (folder / EVENTS_FILE).read_bytes().splitlines()]
        vectors = {path.stem: np.fromfile(path, "<u4") for path in sorted(folder.glob(f"*{VECTOR_SUFFIX}"))}
        start = lines[0]["time"] if lines else 0.0
        said = tuple(
            Said(one["way"], one["stage"], one["envoy"], int(one["bytes"]), one["time"] - start) for one in lines
        )
        ref = TaskRef(RunId(told["run"]), told["round"], told["attempt"], Digest(told["plan"]))
        ups = [(one["envoy"], base64.b64decode(one["content"])) for one in lines if one["way"] == Way.UP.value]
        return KeptSum(told, said, vectors, _without_own_masks(_spec(told, ref), told, ups, vectors))
    except (OSError, ValueError, KeyError, TypeError, FederationError) as error:
        raise StorageError(f"{folder} is no kept sum: {type(error).__name__}: {error}") from error


def _spec(told: Mapping[str, Any], ref: TaskRef) -> SumSpec:
    terms = told["terms"]
    return SumSpec(
        federation=told["federation"],
        ref=ref,
        kind=TaskKind(told["kind"]),
        model=Digest(told["model"]),
        layout=Digest(told["layout"]),
        codec=told["codec"],
        sizes=tuple(told["sizes"]),
        contributors=told["contributors"],
        terms=SumTerms(
            Suite(terms["suite"]),
            tuple(terms["bounds"]),
            terms["max_weight"],
            terms["equal_weights"],
            terms["aggregator"],
            terms["histogram"],
            terms.get("group", 0),
            NoiseTerms.from_json(terms.get("noise")),
        ),
        orders=told["orders"],
    )


def _without_own_masks(
    spec: SumSpec, told: Mapping[str, Any], ups: list[tuple[str, bytes]], vectors: Mapping[str, NDArray[np.uint32]]
) -> dict[str, NDArray[np.uint32]]:
    """The bodies without the masks of single sites, whose keys the revealed shares gave to the director.

    That is the most that it can take away from one vector: what remains are masks of pairs.
    """
    if spec.terms.aggregator:
        return {}  # vectors and shares are sealed to the envoy that sums; the director holds boxes
    dealt: dict[str, Shares] = {}
    revealed: dict[str, tuple[bytes, ...]] = {}
    for envoy, content in ups:
        said = encoding.decode(content)
        if isinstance(said, Shares):
            dealt[envoy] = said
        elif isinstance(said, Signed) and said.kind is Kind.UNMASKING:
            revealed[envoy] = encoding.read_unmasking(said.body).shares
    names, threshold = tuple(EnvoyName(name) for name in told["cohort"]), int(told["threshold"])
    if not names or len(revealed) < threshold:
        return {}
    places = {name: place for place, name in enumerate(names)}
    layout = TallyLayout((), len(spec.sizes))
    cohort = Cohort(spec, names, (), threshold, bytes.fromhex(told["transcript"]), layout, places)
    sharers = [name for name in names if name in dealt]
    size, found = sum(spec.sizes), {}
    for name in told["survivors"]:
        if name not in vectors:
            continue
        points = {places[EnvoyName(by)] + 1: shares[sharers.index(name)] for by, shares in revealed.items()}
        secret = combine(dict(sorted(points.items())[:threshold]), threshold)
        found[name] = vectors[name][:size].copy()
        Masker((), (cohort.self_mask(secret, name),)).apply(found[name])
    return found
