"""What the benchmark's defenses learn from public updates: a usual length, a codec, a VAE; the last two are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..gradient_leakage.benchmark import site_training
from ..gradient_leakage.cells import Cell
from ..gradient_leakage.defenses.nonlinear import nonlinear_bytes, read_nonlinear
from ..gradient_leakage.defenses.registry import RATIO, Lesson, PublicSide, registered
from ..gradient_leakage.threat_model import PublicImages
from ..gradient_leakage.vae.codec import codec_bytes, read_codec
from ..gradient_leakage.vae.fitting import DENSE, fit
from ..gradient_leakage.vae.layered import fit_layered, is_for_layers
from ..gradient_leakage.vae.nonlinear import train_nonlinear
from ..gradient_leakage.victim import layout_of, observe
from ..utils.errors import MalformedMessageError, StorageError
from ..utils.tensors import Digest, canonical_json, digest_of

_SCHEMA = 2  # raised when the same cell would give another codec
_FOR_LENGTH = 32  # updates whose median length bounds a clip
_FOR_NETWORK = 200  # updates that train the nonlinear VAE
_MOST_NUMBERS = 100_000_000  # of public updates held at once: 400 MB


@dataclass(frozen=True, slots=True)
class Codecs:
    """What was learned for each model, as far as it is trained and as the site trains it; a file each."""

    folder: Path

    def public_side(self, cell: Cell, model: nn.Module, public: PublicImages, num_classes: int) -> PublicSide:
        """What the cell's defense wants to be taught.

        Args:
            cell: says how the site trains, and names model and defense.
            model: the cell's, as published.
            public: the attacker's images too.
            num_classes: of the case.

        Raises:
            ConfigError: the model is too large for the nonlinear VAE.
            StorageError: what was learned cannot be kept, or what is kept is not right.
        """
        known = _Known(_key(cell, model, len(public.images)), cell, model, public, num_classes)
        return _taught(known, self.folder, registered(cell.defense).learns)


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What can be learned from; known by its key alone."""

    key: Digest
    cell: Cell
    model: nn.Module
    public: PublicImages
    num_classes: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def updates(self, count: int) -> NDArray[np.float32]:
        """(count, layout.size): of public batches, drawn with replacement, each trained on as the site does."""
        rng = torch.Generator().manual_seed(self.cell.seed)
        rows = np.empty((count, layout_of(self.model).size), np.float32)
        site, images, labels = site_training(self.cell), self.public.images, self.public.labels
        for row in rows:
            chosen = torch.randint(len(images), (self.cell.batch,), generator=rng)
            row[:] = observe(self.model, images[chosen], labels[chosen], site, rng, self.num_classes).vector()
        return rows


@lru_cache(maxsize=4)
def _taught(known: _Known, folder: Path, lesson: Lesson) -> PublicSide:
    path = folder / f"{known.key}.{lesson.value}"
    try:
        if lesson is Lesson.CODEC:
            return PublicSide(read_codec(_kept(path, lambda: _codec(known))), _length(known))
        if lesson is Lesson.NONLINEAR:
            raw = _kept(path, lambda: _network(known))
            return PublicSide(nonlinear=read_nonlinear(raw, layout_of(known.model)))
    except MalformedMessageError as error:
        raise StorageError(f"{path} cannot be used: {error}; delete it, and it is made again") from error
    return PublicSide(max_norm=_length(known))


def _length(known: _Known) -> float:
    return float(np.median(np.linalg.norm(known.updates(_FOR_LENGTH).astype(np.float64), axis=1)))


def _codec(known: _Known) -> bytes:
    layout = layout_of(known.model)
    directions = int(layout.size / RATIO) if layout.size <= DENSE else 128
    count = min(directions + directions // 8 + 32, max(_FOR_LENGTH, _MOST_NUMBERS // layout.size))
    fitted = fit_layered if is_for_layers(layout) else fit
    return codec_bytes(fitted(layout, known.updates(count), RATIO))


def _network(known: _Known) -> bytes:
    layout, updates = layout_of(known.model), known.updates(_FOR_NETWORK)
    return nonlinear_bytes(train_nonlinear(layout, updates, hidden=64, steps=300))


def _kept(path: Path, made: Callable[[], bytes]) -> bytes:
    """What lies there, or what is made and then lies there, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")  # several processes may learn the same at once
    try:
        if path.exists():
            return path.read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = made()
        partial.write_bytes(raw)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(f"{path.name} cannot be kept in {path.parent}: {error.strerror}") from error
    return raw


def _key(cell: Cell, model: nn.Module, count: int) -> Digest:
    """Of all that the codec depends on: the weights themselves, since a malicious director may have chosen them."""
    weights = [tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in model.state_dict().values()]
    trained = [cell.case, cell.model, cell.seed, cell.batch, cell.local_steps, cell.learning_rate]
    return digest_of(canonical_json([_SCHEMA, *trained, RATIO, count]), *weights)
