"""What the benchmark's defenses learn from public updates: a codec, fitted once and kept, and a usual length."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..gradient_leakage.benchmark import site_training
from ..gradient_leakage.cells import Cell
from ..gradient_leakage.defenses.registry import RATIO, PublicSide
from ..gradient_leakage.threat_model import PublicImages
from ..gradient_leakage.vae.codec import Codec, codec_bytes, read_codec
from ..gradient_leakage.vae.fitting import DENSE, fit
from ..gradient_leakage.victim import layout_of, observe
from ..utils.errors import MalformedMessageError, StorageError
from ..utils.tensors import Digest, canonical_json, digest_of

_SCHEMA = 1  # raised when the same cell would give another codec
_FOR_LENGTH = 32  # updates whose median length bounds a clip
_MOST_NUMBERS = 100_000_000  # of public updates held at once: 400 MB


@dataclass(frozen=True, slots=True)
class Codecs:
    """One codec for each model, as far as it is trained and as the site trains it; a file each."""

    folder: Path

    def public_side(self, cell: Cell, model: nn.Module, public: PublicImages, num_classes: int) -> PublicSide:
        """Codec and usual length for one cell.

        Args:
            cell: says how the site trains, and names the model.
            model: the cell's, as published.
            public: the attacker's images too.
            num_classes: of the case.

        Raises:
            StorageError: the codec cannot be kept, or what is kept is not one.
        """
        key = _key(cell, model, len(public.images))
        known = _Known(key, cell, model, public, num_classes)
        return _public_side(known, self.folder)


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What a codec is fitted on, known by its key alone."""

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
def _public_side(known: _Known, folder: Path) -> PublicSide:
    lengths = np.linalg.norm(known.updates(_FOR_LENGTH).astype(np.float64), axis=1)
    return PublicSide(_kept(known, folder), float(np.median(lengths)))


def _kept(known: _Known, folder: Path) -> Codec:
    path = folder / f"{known.key}.codec"
    try:
        if path.exists():
            return read_codec(path.read_bytes())
        layout = layout_of(known.model)
        directions = int(layout.size / RATIO) if layout.size <= DENSE else 128
        count = min(directions + directions // 8 + 32, max(_FOR_LENGTH, _MOST_NUMBERS // layout.size))
        codec = fit(layout, known.updates(count), RATIO)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(codec_bytes(codec))
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"the codec {path.name} cannot be kept in {folder}: {error.strerror}") from error
    except MalformedMessageError as error:
        raise StorageError(f"{path} is no codec: {error}; delete it, and it is fitted again") from error
    return codec


def _key(cell: Cell, model: nn.Module, count: int) -> Digest:
    """Of all that the codec depends on: the weights themselves, since a malicious director may have chosen them."""
    weights = [tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in model.state_dict().values()]
    trained = [cell.case, cell.model, cell.seed, cell.batch, cell.local_steps, cell.learning_rate]
    return digest_of(canonical_json([_SCHEMA, *trained, RATIO, count]), *weights)
