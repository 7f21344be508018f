"""Training the model that is then attacked: plain, seeded, and kept on disk, so that a benchmark trains each once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from ..utils.errors import ConfigError, StorageError
from ..utils.tensors import canonical_json, digest_of

BATCH_SIZE = 32
LEARNING_RATE = 1e-3
_SCHEMA = 1  # raised when the same arguments would give another model


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rng: torch.Generator) -> None:
    """Train in place with Adam (Kingma and Ba 2015) on the mean cross-entropy, in the mode in which the model is.

    Args:
        model: trained where it is, in its own dtype.
        images: (count, channels, height, width) in [0, 1].
        labels: (count,) int64.
        epochs: 0 leaves the model as it is.
        rng: draws the order, and what the model itself draws.

    Raises:
        ConfigError: there is nothing to train on.
    """
    if epochs and not len(images):
        raise ConfigError("no image to train on")
    like = next(model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=rng)
            # A last batch that is not full is left out: batch normalisation cannot train on one image.
            size = min(BATCH_SIZE, len(images))
            for chosen in torch.split(order[: len(order) // size * size], size):
                optimizer.zero_grad(set_to_none=True)
                outputs = model(images[chosen].to(like.device, like.dtype))
                functional.cross_entropy(outputs, labels[chosen].to(like.device)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()


@dataclass(frozen=True, slots=True)
class TrainedModels:
    """Models by what they were trained from; a file each, written whole or not at all."""

    folder: Path

    def trained(
        self, model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, name: Sequence[object]
    ) -> None:
        """Train the model in place, or load what the same call once gave.

        Args:
            model: fresh.
            images: as in ``train``.
            labels: as in ``train``.
            epochs: as in ``train``.
            seed: of the training.
            name: whatever else the result depends on: case, network, its seed.

        Raises:
            StorageError: the model cannot be kept, or what is kept is not this one.
        """
        if not epochs:
            return
        key = digest_of(canonical_json([_SCHEMA, *name, epochs, seed, len(images), BATCH_SIZE, LEARNING_RATE]))
        path = self.folder / f"{key}.safetensors"
        if path.exists():
            _load(model, path)
            return
        train(model, images, labels, epochs, torch.Generator().manual_seed(seed))
        kept = {tensor_name: tensor.detach().cpu().contiguous() for tensor_name, tensor in model.state_dict().items()}
        fresh = path.with_name(f".{path.name}.{os.getpid()}")  # several processes may train the same model at once
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(save(kept))
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise StorageError(f"the trained model cannot be kept in {self.folder}: {error.strerror}") from error


def _load(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(load(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StorageError(f"the trained model {path} cannot be used ({type(error).__name__}); delete it") from error
