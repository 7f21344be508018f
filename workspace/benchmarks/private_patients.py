"""What differential privacy for every *patient* costs in AUC, on the chest X-rays whose file names tell the patients.

Three hospitals train ``pneumonia/private_plan.py`` by the envoy's own private step; the director steps by FedAdam. Each
hospital adds the whole noise itself and trusts nobody; no patient is at two of them, so each hospital's epsilon is the
one that is named. The arm without privacy takes the same steps, and neither clips nor adds noise.

Bound and learning rate are chosen by the validation patients, once for all private arms at the smallest epsilon, and on
a seed of its own; that choice is *not* accounted for. The test part is the published one, of other patients.
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

from ... import __path__ as _package_path
from ...director.server_optimizer import OptimizerName, ServerOptimizer, initial_state, step
from ...envoy.initial_weights import initial_of
from ...envoy.plan_loading import construct, plan_class_of
from ...envoy.plans import TrainingPlan
from ...envoy.records import LoadedDataset
from ...utils.errors import PlanError
from ...utils.plan_bundle import Setting
from ...utils.privacy.noise import NoiseSource
from ...utils.tensors import Vector, canonical_json, digest_of
from ..chest_xrays import Images3, Part, find_images
from ..plain_rounds import SiteModel, local_update, weighted_mean
from ..sites import SiteShare, assign
from .private_accounting import Steps
from .private_rows import auc, rows_in
from .private_training import scores_of

PLAN = Path(next(iter(_package_path))) / "workspace" / "pneumonia" / "private_plan.py"
EPSILONS = (1.0, 3.0, 8.0)
SEEDS = (1, 2, 3)
DELTA = 1e-5
HOSPITALS = (  # of different size, and with different shares of ill patients
    SiteShare("hospital-a", "", 0.35, 0.60),
    SiteShare("hospital-b", "", 0.25, 0.30),
    SiteShare("hospital-c", "", 0.40, 0.10),
)
_CHOOSING_SEED = 0
_NO_BOUND = 1e6
_IMAGE_SIZE = 28


@dataclass(frozen=True, slots=True)
class Choice:
    """What validation chooses."""

    max_norm: float | None  # of one patient's gradient; None: not clipped
    learning_rate: float  # of FedAdam


def candidates(model: str, *, is_private: bool) -> Sequence[Choice]:
    """What is tried."""
    rates = {"histogram": (0.01, 0.03, 0.1), "network": (0.003, 0.01)}[model]
    return [Choice(1.0 if is_private else None, rate) for rate in rates]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the comparison is."""

    rounds: int = 60  # each is one step of every hospital
    sampling_rate: float = 0.1  # of each patient in each round
    units: int = 800  # public: patients that a hospital is taken to have


SCALES: Mapping[str, Scale] = {"histogram": Scale(), "network": Scale(rounds=40, sampling_rate=0.04)}
"""A gradient of the network costs eight times as much."""


@dataclass(frozen=True, slots=True)
class PatientRow:
    """One model, epsilon and seed at the end of its run."""

    model: str
    epsilon: float | None  # at most, of each patient of one hospital, by privacy loss distributions; None: not private
    delta: float
    unit: str
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
        return self.setup, self.model, self.epsilon, self.max_norm, self.learning_rate, self.seed


class PatientComparison:
    """The rows, kept in a folder; what is there is never made twice.

    Raises:
        DatasetError: no images, or none that name their patients.
    """

    def __init__(self, home: Path, data: Path, scales: Mapping[str, Scale] = SCALES) -> None:
        self._scales, self._home = scales, home
        home.mkdir(parents=True, exist_ok=True)
        self.images = find_images(data, _IMAGE_SIZE, home / "cache")
        text = PLAN.read_bytes()
        self._plan_class = plan_class_of(text, PLAN.name)
        shown = [part.images.tobytes() for part in (self.images.train, self.images.validation, self.images.test)]
        hospitals = [asdict(one) for one in HOSPITALS]
        said = {
            model: [digest_of(text), digest_of(*shown), asdict(scale), hospitals, DELTA]
            for model, scale in scales.items()
        }
        self._setups = {model: digest_of(canonical_json(words))[:12] for model, words in said.items()}
        self._known = {row.key: row for row in rows_in(home / "rows.jsonl", PatientRow)}
        self._noises: dict[tuple[str, float], float] = {}

    def steps(self, model: str) -> Steps:
        """What the accountant is told of each hospital."""
        return Steps(self._scales[model].sampling_rate, self._scales[model].rounds, DELTA)

    def rows(self, seeds: Sequence[int] = SEEDS, epsilons: Sequence[float] = EPSILONS) -> Iterator[PatientRow]:
        """Every model without privacy and at every epsilon, with what validation chose, on every seed.

        Raises:
            ConfigError: an epsilon that no noise gives, or no accountant.
        """
        for model in self._scales:
            for is_private, asked in ((False, [None]), (True, list(epsilons))):
                trial = min(epsilons) if is_private else None
                choices = candidates(model, is_private=is_private)
                tried = {one: self._row(model, trial, one, _CHOOSING_SEED).auc_validation for one in choices}
                best = max(tried, key=tried.__getitem__)
                for epsilon, seed in itertools.product(asked, seeds):
                    yield self._row(model, epsilon, best, seed)

    def _row(self, model: str, epsilon: float | None, choice: Choice, seed: int) -> PatientRow:
        key = (self._setups[model], model, epsilon, choice.max_norm, choice.learning_rate, seed)
        if key not in self._known:
            began = time.process_time()
            noise = 0.0 if epsilon is None else self._noise(model, epsilon)
            plan, vector = self._trained(model, noise, choice, seed)
            validation, scores = (scores_with(plan, vector, p) for p in (self.images.validation, self.images.test))
            row = PatientRow(
                model,
                epsilon,
                DELTA,
                "patient",
                choice.max_norm,
                choice.learning_rate,
                seed,
                round(noise, 4),
                auc(self.images.validation, validation),
                auc(self.images.test, scores),
                round(time.process_time() - began, 1),
                self._setups[model],
                tuple(round(float(one), 7) for one in scores),
            )
            with (self._home / "rows.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            self._known[key] = row
        return self._known[key]

    def _trained(self, model: str, noise: float, choice: Choice, seed: int) -> tuple[TrainingPlan, Vector]:
        plan = self._plan(model, noise, choice)
        layout, vector, exact = initial_of(plan)
        hospitals = divided(self.images, seed)
        rng = np.random.default_rng(seed)  # so that a row can be made again; an envoy asks the operating system
        source: NoiseSource = rng if noise else _NoNoise(rng)
        optimizer = ServerOptimizer(OptimizerName.FEDADAM, choice.learning_rate)
        state = initial_state(optimizer, layout)
        updates = [np.empty(layout.size, np.float32) for _ in hospitals]
        for number in range(self._scales[model].rounds):
            given = SiteModel(layout, vector, exact)
            sizes = [
                local_update(plan, given, data, number, out, source)
                for data, out in zip(hospitals, updates, strict=True)
            ]
            vector, state = step(optimizer, layout, vector, weighted_mean(updates, sizes), state)
        return plan, vector

    def _plan(self, model: str, noise: float, choice: Choice) -> TrainingPlan:
        values: Mapping[str, Setting] = {
            "model": model,
            "image_size": _IMAGE_SIZE,
            "max_norm": choice.max_norm or _NO_BOUND,
            "noise_multiplier": noise or 1.0,  # without privacy nothing is drawn of it
            "sampling_rate": self._scales[model].sampling_rate,
            "units": self._scales[model].units,
            "delta": DELTA,
        }
        plan, _ = construct(self._plan_class, values)
        if not isinstance(plan, TrainingPlan):
            raise PlanError(f"{PLAN.name} holds no TrainingPlan")
        return plan

    def _noise(self, model: str, epsilon: float) -> float:
        key = model, epsilon
        if key not in self._noises:
            self._noises[key] = self.steps(model).noise_multiplier(epsilon)
        return self._noises[key]


class _NoNoise:
    """Draws patients as the others do, and zeros for noise."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        return np.zeros(size)

    def random(self, size: int) -> NDArray[np.float64]:
        return self._rng.random(size)


def divided(images: Images3, seed: int) -> list[LoadedDataset]:
    """Each hospital's training images, with the patients numbered; all images of a patient are at one."""
    owner, part = assign(images.train, HOSPITALS, np.random.default_rng(seed)), images.train
    patients = np.unique(np.array(part.groups), return_inverse=True)[1].astype(np.int64)
    chosen = [owner == number for number in range(len(HOSPITALS))]
    return [
        LoadedDataset(part.images[own][:, None], part.labels[own], np.zeros(int(own.sum()), np.uint8), patients[own])
        for own in chosen
    ]


def scores_with(plan: TrainingPlan, vector: Vector, part: Part) -> NDArray[np.float32]:
    """How likely each image is ill, by the plan's model with these weights; (count,)."""
    return scores_of(plan.model().eval(), initial_of(plan)[0], vector, part.images)
