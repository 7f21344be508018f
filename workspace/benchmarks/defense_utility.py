"""What a defense costs: the demo's federation on real X-rays, every site's update defended as its chain would.

The envoys' own training in a plain loop; a defense is applied to every site's update, the director's reading of it is
averaged. In-model defenses change the plan's network; they are trained on the cross-entropy alone. The public part is
set aside in every arm, for the codecs; nothing is chosen on the test images.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...envoy.datasets import load
from ...envoy.inspection import inspect
from ...envoy.layouts import tensors_of
from ...envoy.plan_randomness import deterministic
from ...envoy.records import LoadedDataset
from ...gradient_leakage.defenses.nonlinear import nonlinear_bytes, read_nonlinear
from ...gradient_leakage.defenses.registry import RATIO, Lesson, PublicSide, Registered, SiteSide, registered
from ...gradient_leakage.runners import one_thread
from ...gradient_leakage.vae.layered import fit_layered
from ...gradient_leakage.vae.nonlinear import train_nonlinear
from ...utils.errors import StorageError
from ...utils.plan_bundle import open_bundle
from ...utils.tensors import Layout, canonical_json, digest_of, named_views
from ..chest_xrays import Part, find_images
from ..codec_fitting import Rehearsal, Updates, proxy_updates
from ..demo import PLAN, SITE_OPTIONS
from ..plain_rounds import SiteModel, local_update, weighted_mean
from ..plan_builder import build_plan
from ..pneumonia.plan import PneumoniaPlan
from ..sites import THREE_SITES, divide, set_aside

PUBLIC_SHARE = 0.1
_REHEARSAL = Rehearsal(sites=3, rounds=10, repeats=8, examples=1400)  # on the public part: 240 updates to learn from
_IMAGES_OF_A_SITE = 64  # that a chain looks at (Soteria's mask)
_SCHEMA = 2
"""Raised when the same arm would give other rows."""


@dataclass(frozen=True, slots=True)
class UtilityRow:
    """One federated training under one defense."""

    key: str
    defense: str
    seed: int
    rounds: int
    scores: tuple[float, ...]  # of each test image, how likely the final model holds it for ill
    numbers_up: int  # in each update that left a site
    cpu_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """The demo's sites in memory."""

    description: str  # of the images
    sites: Mapping[str, LoadedDataset]
    public: LoadedDataset
    test: Part
    folder: Path  # of what it writes


class _Defended(PneumoniaPlan):
    """The demo's plan with a defense inside its network."""

    def __init__(self, on_model: Callable[[nn.Module, int], nn.Module], seed: int) -> None:
        super().__init__()
        self._on_model, self._seed = on_model, seed

    def model(self) -> nn.Module:
        """The plan's network, and what the defense puts into it."""
        return self._on_model(super().model(), self._seed)


def open_federation(folder: Path, data: Path | None = None) -> Federation:
    """The demo's sites, less the public part.

    Args:
        folder: takes the sites' images.
        data: as the demo's ``--data``; by default the X-rays that lie beside the checkout.

    Raises:
        DatasetError: the images cannot be used.
    """
    spec = PneumoniaPlan().data
    images = find_images(data, spec.shape[-1], folder)
    kept, public = set_aside(images, PUBLIC_SHARE)
    sites = {}
    for name, path in divide(kept, THREE_SITES, folder).items():
        found = inspect(spec.name, path, SITE_OPTIONS, now=0.0)
        sites[name] = load(found.record, found.index, spec)
    shared = LoadedDataset(public.images[:, None], public.labels, np.zeros(len(public.labels), np.uint8))
    return Federation(images.description, sites, shared, images.test, folder)


def measure(
    defenses: Sequence[str],
    federation: Federation,
    store: Path,
    *,
    rounds: int,
    seeds: Sequence[int],
    told: Callable[[UtilityRow], None] = lambda _: None,
) -> list[UtilityRow]:
    """Train what the store lacks, each arm as it ends; gives the rows of these defenses, seed by seed.

    Args:
        defenses: names of the registry.
        federation: whose images.
        store: a file of JSON lines; rows of other arms in it stay.
        rounds: of the federation.
        seeds: of first weights, order, augmentation and noise.
        told: is given each row that was trained.
    """
    kept = {row.key: row for row in read_rows(store)}
    arms = [(_key(name, federation, rounds, seed), registered(name), seed) for name in defenses for seed in seeds]
    school = _School(federation)
    with one_thread():
        for key, defense, seed in arms:
            if key in kept:
                continue
            kept[key] = _trained(key, defense, federation, school.taught(defense.learns), rounds, seed)
            _write_rows(store, kept.values())
            told(kept[key])
    return [kept[key] for key, _, _ in arms]


def read_rows(store: Path) -> list[UtilityRow]:
    """What was trained so far.

    Raises:
        StorageError: the file holds something else.
    """
    if not store.exists():
        return []
    try:
        return [UtilityRow(**row | {"scores": tuple(row["scores"])}) for row in json.loads(store.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{store} holds no rows of utility ({type(error).__name__}); delete it") from error


def _write_rows(store: Path, rows: Iterable[UtilityRow]) -> None:
    fresh = store.with_name(f".{store.name}.{os.getpid()}")
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps([asdict(row) for row in rows]) + "\n", "utf-8")
        fresh.replace(store)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StorageError(f"rows of utility cannot be kept in {store}: {error.strerror}") from error


def _key(defense: str, federation: Federation, rounds: int, seed: int) -> str:
    shares = {name: len(data) for name, data in federation.sites.items()}
    return digest_of(canonical_json([_SCHEMA, defense, federation.description, shares, rounds, seed]))


class _School:
    """Teaches defenses from the updates of virtual sites on the public part, each lesson once."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._taught: dict[Lesson, PublicSide] = {Lesson.NOTHING: PublicSide()}
        self._updates: Updates | None = None

    def taught(self, lesson: Lesson) -> PublicSide:
        """At least what this lesson is about."""
        if lesson not in self._taught:
            build_plan(PLAN, self._federation.folder / "plan")
            bundle = open_bundle(self._federation.folder / "plan")
            if self._updates is None:
                self._updates = proxy_updates(bundle, self._federation.public, _REHEARSAL)
            self._taught[lesson] = _lesson(lesson, bundle.layout, self._updates)
        return self._taught[lesson]


def _lesson(lesson: Lesson, layout: Layout, updates: Updates) -> PublicSide:
    length = float(np.median(np.linalg.norm(updates, axis=1)))
    if lesson is Lesson.CODEC:
        return PublicSide(fit_layered(layout, updates, RATIO), length)
    if lesson is Lesson.NONLINEAR:
        coder = train_nonlinear(layout, updates, hidden=64, steps=300)
        return PublicSide(nonlinear=read_nonlinear(nonlinear_bytes(coder), layout))
    return PublicSide(max_norm=length)


def _trained(
    key: str, defense: Registered, federation: Federation, learned: PublicSide, rounds: int, seed: int
) -> UtilityRow:
    """All rounds of one arm."""
    started, numbers = time.process_time(), 0
    plan = PneumoniaPlan() if defense.on_model is None else _Defended(defense.on_model, seed)
    model, noise = _first_model(plan, seed), np.random.default_rng([seed, 1])
    for round_ in range(rounds):
        updates, sizes = [], []
        for number, data in enumerate(federation.sites.values()):
            update = np.empty(model.layout.size, np.float32)
            sizes.append(local_update(plan, model, data, _seed(seed, round_, number), update))
            if defense.chain is not None:
                chain = defense.chain(_site_side(plan, model, data, learned, round_, seed))
                payload = chain(update, noise)
                update, numbers = chain.decoded(payload), len(payload)
            updates.append(update)
        model = replace(model, vector=model.vector + weighted_mean(updates, sizes))
    scores = _scores(plan, model, federation.test, seed)
    return UtilityRow(
        key, defense.name, seed, rounds, scores, numbers or model.layout.size, time.process_time() - started
    )


def _site_side(
    plan: PneumoniaPlan, model: SiteModel, data: LoadedDataset, learned: PublicSide, round_: int, seed: int
) -> SiteSide:
    """What a chain is built from in one round, alike at every site but for its images."""
    shown = slice(_IMAGES_OF_A_SITE)
    return SiteSide(
        layout=model.layout,
        model=_network(plan, model),
        images=torch.from_numpy(data.features[shown].astype(np.float32) / 255),
        labels=torch.from_numpy(data.labels[shown]),
        codec=learned.codec,
        max_norm=learned.max_norm,
        nonlinear=learned.nonlinear,
        round_seed=hashlib.sha256(canonical_json(["utility", seed, round_])).digest(),
        iteration=round_,
    )


def _first_model(plan: PneumoniaPlan, seed: int) -> SiteModel:
    """First weights drawn from the seed."""
    with deterministic(seed):
        tensors = tensors_of(plan.model(), plan)
    vector = np.zeros(tensors.layout.size, np.float32)
    for entry, view in named_views(tensors.layout, vector):
        view[...] = tensors.floats[entry.name].detach().numpy()
    return SiteModel(tensors.layout, vector, b"")


def _network(plan: PneumoniaPlan, model: SiteModel) -> nn.Module:
    """The plan's network with the federation's weights."""
    with deterministic(0):
        network = plan.model()
    tensors = tensors_of(network, plan)
    with torch.no_grad():
        for entry, view in named_views(model.layout, model.vector):
            tensors.floats[entry.name].copy_(torch.from_numpy(view.copy()))
    return network


def _scores(plan: PneumoniaPlan, model: SiteModel, test: Part, seed: int) -> tuple[float, ...]:
    """How likely each test image is ill; where the network draws noise, by one draw."""
    network = _network(plan, model).eval()
    images = torch.from_numpy(test.images[:, None].astype(np.float32) / 255)
    with deterministic(seed), torch.inference_mode():
        logits = torch.cat([network(batch) for batch in torch.split(images, 256)])
    return tuple(round(score, 6) for score in (logits[:, 1] - logits[:, 0]).tolist())


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
