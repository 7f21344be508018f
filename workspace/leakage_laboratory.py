"""Real images and trained models for the benchmark of attacks: what ``gradient_leakage.benchmark`` is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ..gradient_leakage import cases
from ..gradient_leakage.cases import STATES, ImagePool, draw_targets
from ..gradient_leakage.cells import DTYPES, Cell, Run
from ..gradient_leakage.defenses.registry import PublicSide, registered
from ..gradient_leakage.metrics import Embedding, Truth
from ..gradient_leakage.models import build
from ..gradient_leakage.threat_model import ImageDomain, PublicImages
from ..gradient_leakage.verification import Verifier, train_verifier
from .leakage_codecs import Codecs
from .leakage_data import load_pool
from .leakage_training import TrainedModels

_MAX_PIXELS = 20_000_000  # in one set of images: 80 MB as float32, in each worker


@dataclass(frozen=True, slots=True)
class RealLaboratory:
    """Cases of ``leakage_data``; trained models are kept in a folder."""

    folder: Path

    def domain(self, case: str) -> ImageDomain:
        """Shape and classes."""
        return _parts(case)[0].domain

    def batch(self, run: Run) -> Truth:
        """Target number ``run.index``; the same images for every cell of this case and batch."""
        return draw_targets(_parts(run.cell.case)[1], run.cell.batch, run.index + 1)[run.index].truth()

    def public(self, case: str) -> PublicImages:
        """The public half, or as much of it as memory allows."""
        return _public(case)

    def gallery(self, case: str) -> Truth:
        """One image of each patient of the other half; where memory is short, as many of each class."""
        return _gallery(case)

    def model(self, cell: Cell) -> nn.Module:
        """Fresh from the cell's seed, with the defense's layers, then trained on the public half as the cell says."""
        name, _, mode = cell.model.partition("-") if cell.model.startswith("resnet18") else (cell.model, "", "")
        public = self.public(cell.case)
        on_model = registered(cell.defense).on_model
        model = build(name, self.domain(cell.case), cell.seed)
        model = model if on_model is None else on_model(model, cell.seed)
        known_as = (cell.case, name, cell.defense if on_model else "none", cell.seed)
        TrainedModels(self.folder).trained(model, public.images, public.labels, STATES[cell.state], cell.seed, known_as)
        return model.to(DTYPES[cell.dtype]).train(mode != "eval")

    def public_side(self, cell: Cell, model: nn.Module) -> PublicSide:
        """From updates of the public part; the codec is kept in the folder."""
        return Codecs(self.folder).public_side(cell, model, self.public(cell.case), self.domain(cell.case).num_classes)

    def embedding(self, case: str) -> Embedding | None:
        """The verification network of X-rays, trained on the public half; no other images have one."""
        return _verifier(case).embed if _parts(case)[0].is_xray else None

    def train_for(self, cells: Iterable[Cell]) -> None:
        """Train and keep what these cells need, so that no two workers train the same model."""
        trained = {(c.case, c.model, c.state, c.defense, c.seed): c for c in cells if STATES[c.state]}
        for cell in trained.values():
            self.model(cell)


@lru_cache(maxsize=2)
def _parts(case: str) -> tuple[ImagePool, ImagePool]:
    """The public half and the one with the targets."""
    return cases.split(load_pool(case))


@lru_cache(maxsize=2)
def _public(case: str) -> PublicImages:
    pool = _parts(case)[0]
    return pool.at(range(min(len(pool), _MAX_PIXELS // pool.domain.pixels))).public()


@lru_cache(maxsize=2)
def _gallery(case: str) -> Truth:
    pool = _parts(case)[1]
    most = _MAX_PIXELS // (pool.domain.pixels * pool.domain.num_classes)
    taken: dict[int, set[str]] = {}
    places = []
    for place, (label, patient) in enumerate(zip(pool.labels.tolist(), pool.patients, strict=True)):
        patients = taken.setdefault(label, set())
        if patient not in patients and len(patients) < most:
            patients.add(patient)
            places.append(place)
    return pool.at(places).truth()


@lru_cache(maxsize=2)
def _verifier(case: str) -> Verifier:
    return train_verifier(_public(case), torch.Generator().manual_seed(0))
