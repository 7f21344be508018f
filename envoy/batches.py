"""Batches of a site's examples as torch tensors: shuffled from a seed to train, in their order to evaluate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .batch_sizes import batch_sizes

EVALUATION_ELEMENTS = 1 << 22  # features in one batch of an evaluation: 512 small images, 80 of 224x224
MAX_EVALUATION_BATCH = 512


class Batches:
    """Some examples of a dataset, batch by batch: features float32 in [0, 1], labels int64, on the device.

    Nothing is copied but the batch at hand. A last batch of one example joins the batch before it, since batch
    normalisation cannot train on one.

    Args:
        features: shape (examples, ...), uint8 (0 to 255) or float32.
        labels: shape (examples,).
        chosen: positions of the examples that are to be used.
        batch_size: examples in a batch.
        device: where the batches go.
    """

    def __init__(
        self,
        features: NDArray[Any],
        labels: NDArray[Any],
        chosen: NDArray[np.int64],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._features, self._labels = _tensor(features), _tensor(labels)
        self._chosen = torch.from_numpy(np.ascontiguousarray(chosen, np.int64))
        self._batch_size, self._device = batch_size, device

    @property
    def num_examples(self) -> int:
        """Examples in all batches."""
        return len(self._chosen)

    def __len__(self) -> int:
        """Number of batches."""
        return len(batch_sizes(self.num_examples, self._batch_size))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """In the dataset's order."""
        yield from self._batches(self._chosen)

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """In an order that the generator draws."""
        yield from self._batches(self._chosen[torch.randperm(len(self._chosen), generator=generator)])

    def _batches(self, order: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for positions in torch.split(order, batch_sizes(len(order), self._batch_size)):
            features = self._features.index_select(0, positions).to(self._device)
            features = features.float() / 255 if features.dtype is torch.uint8 else features.float()
            yield features, self._labels.index_select(0, positions).to(self._device, torch.int64)


def evaluation_batch_size(features: NDArray[Any]) -> int:
    """As many examples as are quick and fit into memory."""
    return max(1, min(MAX_EVALUATION_BATCH, EVALUATION_ELEMENTS // max(1, math.prod(features.shape[1:]))))


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """The array itself as a tensor; ours to read only, also where numpy lets us write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))
