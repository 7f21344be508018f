"""Federated training with a private step at each site: what ``private_codec`` measures. A plain loop, one thread.

A round is one step: each site sends one (clipped, noised) sum of gradients, and the director steps by FedAdam, which is
post-processing. Every arm has the same first model and the same sites; only what becomes of the images' gradients
differs. The plan's own optimizer and its random augmentation are not used: each step must be one clipped sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from ...director.server_optimizer import OptimizerName, ServerOptimizer, initial_state, step
from ...envoy.records import LoadedDataset
from ...gradient_leakage.defenses.gaussian import GaussianMechanism
from ...gradient_leakage.private_steps import private_gradient
from ...gradient_leakage.vae.codec import Codec
from ...utils.tensors import Layout, Vector
from ..plain_rounds import weighted_mean

_AT_ONCE = 64  # images whose gradients are computed together

Features: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
"""(count, channels, height, width), as ``LoadedDataset`` has them."""
CodecOfRound: TypeAlias = Callable[[int, Vector], Codec | None]
"""(round, its model): the codec of the round; from public images, or from none."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What all arms share, and the accountant must know."""

    rounds: int  # each is one step of every site
    sampling_rate: float  # of each image in each round


class Gradients:
    """Per-image and mean gradients of a model, flat and in the layout's order."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.layout, self._model = layout, model.eval()
        self._each = vmap(grad(self._loss), in_dims=(None, 0, 0))

    def of_each(self, vector: Vector, features: Features, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """(images, layout.size), one gradient an image; (0, layout.size) for none."""
        weights, rows = self._weights(vector), np.empty((len(labels), self.layout.size), np.float32)
        for start in range(0, len(labels), _AT_ONCE):
            images, wanted = _tensors(features[start : start + _AT_ONCE], labels[start : start + _AT_ONCE])
            found = self._each(weights, images, wanted)
            for entry in self.layout.entries:
                place = slice(entry.offset, entry.offset + entry.size)
                rows[start : start + _AT_ONCE, place] = found[entry.name].reshape(len(wanted), -1).numpy()
        return rows

    def of_sum(self, vector: Vector, features: Features, labels: NDArray[np.int64]) -> Vector:
        """(layout.size,): the sum over the images, without any one's own."""
        images, wanted = _tensors(features, labels)
        weights = {name: value.requires_grad_() for name, value in self._weights(vector).items()}
        loss = functional.cross_entropy(functional_call(self._model, weights, (images,)), wanted, reduction="sum")
        found = torch.autograd.grad(loss, [weights[entry.name] for entry in self.layout.entries])
        return torch.cat([one.reshape(-1) for one in found]).numpy()

    def _loss(self, weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(self._model, weights, (image[None],)), label[None])

    def _weights(self, vector: Vector) -> dict[str, Tensor]:
        flat = torch.from_numpy(vector)
        return {e.name: flat[e.offset : e.offset + e.size].reshape(e.shape) for e in self.layout.entries}


def train(
    gradients: Gradients,
    first: Vector,
    sites: Sequence[LoadedDataset],
    schedule: Schedule,
    learning_rate: float,
    mechanism: GaussianMechanism | None,
    codec_of_round: CodecOfRound,
    seed: int,
) -> Iterator[Vector]:
    """The model after each round.

    Args:
        gradients: of the plan's model.
        first: the model to begin with.
        sites: whose sizes count as public: they are the weights of the mean, and the denominators of the steps.
        schedule: of the rounds.
        learning_rate: of the director's FedAdam, whose update is the negative gradient.
        mechanism: of one image in one site's sum; None: not private, neither clipped nor noised.
        codec_of_round: what images' gradients are coded with.
        seed: of sampling and noise.
    """
    rng, vector, sizes = np.random.default_rng(seed), np.array(first), [len(site.labels) for site in sites]
    optimizer = ServerOptimizer(OptimizerName.FEDADAM, learning_rate)
    state = initial_state(optimizer, gradients.layout)
    for number in range(schedule.rounds):
        codec, updates = codec_of_round(number, vector), []
        for site in sites:
            taken = np.flatnonzero(rng.random(len(site.labels)) < schedule.sampling_rate)
            expected = schedule.sampling_rate * len(site.labels)
            images, labels = site.features[taken], site.labels[taken]
            if mechanism is None:
                updates.append(-gradients.of_sum(vector, images, labels) / np.float32(expected))
            else:
                each = gradients.of_each(vector, images, labels)
                updates.append(-private_gradient(each, codec, mechanism, rng, expected))
        vector, state = step(optimizer, gradients.layout, vector, weighted_mean(updates, sizes), state)
        yield vector


def scores_of(model: nn.Module, layout: Layout, vector: Vector, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How likely each image, (count, size, size), is ill."""
    flat = torch.from_numpy(vector)
    weights = {e.name: flat[e.offset : e.offset + e.size].reshape(e.shape) for e in layout.entries}
    with torch.inference_mode():
        pixels = torch.from_numpy(images[:, None].astype(np.float32) / 255)
        parts = [functional_call(model, weights, (part,)).softmax(1)[:, 1] for part in torch.split(pixels, 256)]
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def _tensors(features: Features, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1], as a plan gets them."""
    pixels = features.astype(np.float32) / 255 if features.dtype == np.uint8 else features
    return torch.from_numpy(pixels), torch.from_numpy(labels)
