"""What differential privacy for every image costs in AUC: DP-SGD against the same noise in a codec's few numbers.

Three sites, as ``private_training`` trains them, from one model that public images made. A few training
images are public in every arm and no site's; the learned codec is fitted on their gradients. PneumoniaMNIST names no
patients, so **the unit is one image** here; a patient with several would spend more.

Each site's own epsilon is the one that is named: all sites sample at the same rate, and no image is at two of them.
Bounds, learning rates and ranks are chosen by the validation images, at the smallest epsilon and on a seed of its own;
that choice is *not* accounted for.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...envoy.plan_loading import plan_of
from ...envoy.plans import TrainingPlan
from ...envoy.records import LoadedDataset
from ...gradient_leakage.defenses.gaussian import GaussianMechanism
from ...gradient_leakage.vae.codec import Codec, codec_bytes, read_codec
from ...gradient_leakage.vae.fitting import fit, seeded
from ...utils.errors import PlanError
from ...utils.plan_bundle import open_bundle
from ...utils.tensors import Vector, canonical_json, digest_of
from ..chest_xrays import Part, find_images
from ..demo import PLAN
from ..plain_rounds import SiteModel, local_update
from ..plan_builder import build_plan
from ..sites import set_aside
from .codec_utility import Setting
from .private_accounting import Steps
from .private_rows import auc, rows_in
from .private_training import CodecOfRound, Gradients, Schedule, scores_of, train

SEEDS = (1, 2, 3)
EPSILONS = (2.0, 8.0)
DELTA = 1e-5
NON_PRIVATE, PUBLIC, PLAIN, LEARNED, SEEDED = "non-private", "public images alone", "DP-SGD", "learned", "seeded"
_CHOOSING_SEED = 0
_SCHEDULE = Schedule(rounds=48, sampling_rate=0.04)


@dataclass(frozen=True, slots=True)
class Choice:
    """What validation chooses of an arm."""

    code_size: int | None = None  # None: no codec
    max_norm: float | None = None  # of one image's gradient, or its code; None: not clipped
    learning_rate: float = 0.0


CANDIDATES: Mapping[str, Sequence[Choice]] = {
    PUBLIC: (Choice(),),
    NON_PRIVATE: (Choice(learning_rate=0.001), Choice(learning_rate=0.003)),
    PLAIN: (
        Choice(None, 1.0, 0.0003),
        Choice(None, 1.0, 0.001),
        Choice(None, 4.0, 0.001),
        Choice(None, 4.0, 0.003),
        Choice(None, 4.0, 0.01),
        Choice(None, 16.0, 0.001),
    ),
    LEARNED: (
        Choice(16, 4.0, 0.003),
        Choice(64, 4.0, 0.003),
        Choice(256, 4.0, 0.003),
        Choice(256, 4.0, 0.001),
        Choice(512, 4.0, 0.003),
    ),
    SEEDED: (Choice(64, 4.0, 0.001), Choice(2048, 4.0, 0.001)),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the comparison is."""

    public_share: float = 0.02  # of the training images
    public_epochs: int = 60  # of the plan's own training on them, for the model that every arm begins with
    snapshots: int = 6  # models on the way, at which the public images' gradients are what a codec is fitted on
    schedule: Schedule = _SCHEDULE


@dataclass(frozen=True, slots=True)
class PrivateRow:
    """One arm, setting and seed at the end of its run."""

    arm: str
    epsilon: float | None  # at most, of each site, by privacy loss distributions; None: not private, or nothing is sent
    code_size: int | None
    max_norm: float | None
    learning_rate: float
    seed: int
    noise_multiplier: float
    auc_validation: float  # the only one that anything was chosen by
    auc: float  # on the test part
    cpu_seconds: float
    setup: str  # digest of everything else that determines the row
    scores: tuple[float, ...]  # of the test images, in their order

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it the same measurement."""
        return self.setup, self.arm, self.epsilon, self.code_size, self.max_norm, self.learning_rate, self.seed


class Comparison:
    """The setting, its codecs and its rows, kept in a folder; what is there is never made twice."""

    def __init__(self, home: Path, data: Path | None = None, scale: Scale | None = None) -> None:
        self._scale, self._home = scale or Scale(), home
        home.mkdir(parents=True, exist_ok=True)
        images, public = set_aside(find_images(data, 28, home / "cache"), self._scale.public_share)
        build_plan(PLAN, home / "plan")
        self._setting = Setting(open_bundle(home / "plan"), images, public, home)
        self._model, self._layout = _model_of(self._setting), self._setting.bundle.layout
        self._gradients = Gradients(self._model, self._layout)
        shown = [part.images.tobytes() for part in (images.train, images.test, public)]
        said = [self._setting.bundle.digest, digest_of(*shown), asdict(self._scale), DELTA]
        self._setup = digest_of(canonical_json(said))[:12]
        self._known = {row.key: row for row in rows_in(home / "rows.jsonl", PrivateRow) if row.setup == self._setup}
        self._path = self._public_path()
        self._noises: dict[float, float] = {}

    @property
    def test_labels(self) -> NDArray[np.int64]:
        """Of the test images, in the order of the rows' scores."""
        return self._setting.images.test.labels

    @property
    def steps(self) -> Steps:
        """What the accountant is told of each site."""
        schedule = self._scale.schedule
        return Steps(schedule.sampling_rate, schedule.rounds, DELTA)

    def rows(self, seeds: Sequence[int] = SEEDS, epsilons: Sequence[float] = EPSILONS) -> Iterator[PrivateRow]:
        """Every arm with the setting that validation chose for it, on every seed.

        Raises:
            ConfigError: an epsilon that no noise gives, or no accountant.
        """
        asked: list[tuple[str, float | None]] = [(PUBLIC, None), (NON_PRIVATE, None)]
        asked += itertools.product((PLAIN, LEARNED, SEEDED), epsilons)
        for arm, epsilon in asked:
            trial = None if epsilon is None else min(epsilons)
            tried = {one: self._row(arm, trial, one, _CHOOSING_SEED).auc_validation for one in CANDIDATES[arm]}
            best = max(tried, key=tried.__getitem__)
            for seed in seeds:
                yield self._row(arm, epsilon, best, seed)

    def _row(self, arm: str, epsilon: float | None, choice: Choice, seed: int) -> PrivateRow:
        key = (self._setup, arm, epsilon, choice.code_size, choice.max_norm, choice.learning_rate, seed)
        if key not in self._known:
            began = time.process_time()
            noise = 0.0 if epsilon is None else self._noise(epsilon)
            vector = self._path[-1] if arm == PUBLIC else self._trained(arm, noise, choice, seed)
            images = self._setting.images
            validation, scores = (self._scores(vector, part) for part in (images.validation, images.test))
            row = PrivateRow(
                arm,
                epsilon,
                choice.code_size,
                choice.max_norm,
                choice.learning_rate,
                seed,
                round(noise, 4),
                auc(images.validation, validation),
                auc(images.test, scores),
                round(time.process_time() - began, 1),
                self._setup,
                tuple(round(float(one), 7) for one in scores),
            )
            with (self._home / "rows.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            self._known[key] = row
        return self._known[key]

    def _trained(self, arm: str, noise: float, choice: Choice, seed: int) -> Vector:
        mechanism = None if choice.max_norm is None else GaussianMechanism(choice.max_norm, noise)
        models = train(
            self._gradients,
            self._path[-1],
            self._setting.sites(seed),
            self._scale.schedule,
            choice.learning_rate,
            mechanism,
            self._coding(arm, choice.code_size, seed),
            seed,
        )
        *_, last = models
        return last

    def _coding(self, arm: str, code_size: int | None, seed: int) -> CodecOfRound:
        if arm not in {LEARNED, SEEDED} or code_size is None:
            return lambda _number, _model: None
        if arm == LEARNED:
            fixed = self._learned(code_size)
            return lambda _number, _model: fixed
        drawn = seeded(self._layout, self._layout.size / code_size)
        return lambda number, _model: drawn.for_round(canonical_json([seed, number]))

    def _learned(self, code_size: int) -> Codec:
        """Principal directions of the public images' gradients, each gradient of length 1."""
        file = self._home / f"learned-{code_size}-{self._setup}.safetensors"
        if not file.exists():
            shown = self._public()
            rows = np.concatenate(
                [self._gradients.of_each(model, shown.features, shown.labels) for model in self._path]
            )
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            file.write_bytes(codec_bytes(fit(self._layout, rows, self._layout.size / code_size)))
        return read_codec(file.read_bytes())

    def _public_path(self) -> NDArray[np.float32]:
        """Models of the plan's own training on the public images, (snapshots, layout.size); the last ends it."""
        file = self._home / f"public-{self._setup}.npy"
        if file.exists():
            path: NDArray[np.float32] = np.load(file, allow_pickle=False)
            return path
        scale, shown, plan = self._scale, self._public(), plan_of(self._setting.bundle)
        initial, exact = self._setting.bundle.initial()
        vector, out, kept = np.array(initial), np.empty(self._layout.size, np.float32), []
        for epoch in range(1, scale.public_epochs + 1):
            local_update(plan, SiteModel(self._layout, vector, exact), shown, epoch, out)
            vector = vector + out
            if (scale.public_epochs - epoch) % max(1, scale.public_epochs // scale.snapshots) == 0:
                kept.append(vector)
        np.save(file, np.stack(kept))
        return np.stack(kept)

    def _public(self) -> LoadedDataset:
        public = self._setting.public
        return LoadedDataset(public.images[:, None], public.labels, np.zeros(len(public.labels), np.uint8))

    def _noise(self, epsilon: float) -> float:
        if epsilon not in self._noises:
            self._noises[epsilon] = self.steps.noise_multiplier(epsilon)
        return self._noises[epsilon]

    def _scores(self, vector: Vector, part: Part) -> NDArray[np.float32]:
        return scores_of(self._model, self._layout, vector, part.images)


def _model_of(setting: Setting) -> nn.Module:
    plan = plan_of(setting.bundle)
    if not isinstance(plan, TrainingPlan):
        raise PlanError(f"{type(plan).__name__} is no TrainingPlan; per-image gradients need its model")
    return plan.model()
