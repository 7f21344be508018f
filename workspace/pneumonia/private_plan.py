"""Pneumonia or not, with differential privacy for every patient of a hospital.

The noise of DP-SGD grows with the number of parameters and the signal does not, so few parameters on fixed features
beat a network that learns its own (Tramer and Boneh 2021, arXiv:2011.11660): ``histogram`` has 786 on histograms of
gradients' directions (Dalal and Triggs 2005), ``network`` is a small convolutional one.

A round is one noised step, which the director takes further (``[server_optimizer] name = "fedadam"``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from fedveil import DataKind, DataSpec, DifferentialPrivacy, MetricSum, PlanSettings, TrainingPlan, mean_of
from torch import nn
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]
CELLS, DIRECTIONS = 7, 8


@dataclass(frozen=True)
class Settings(PlanSettings):
    """What may be set when the plan is built."""

    learning_rate: float = 1.0  # of the one local step: the update is the negative gradient
    model: str = "histogram"  # or network
    image_size: int = 28
    max_norm: float = 1.0
    noise_multiplier: float = 3.2
    sampling_rate: float = 0.1
    units: int = 800
    delta: float = 1e-5


class PrivatePneumoniaPlan(TrainingPlan):
    """One step of DP-SGD a round, by the patient."""

    Settings = Settings

    @property
    def data(self) -> DataSpec:
        """Grey images; the site says how to tell patients (``envoy data add --patient``)."""
        size = self.settings.image_size
        return DataSpec("chest-xray", DataKind.IMAGES, (1, size, size), ("normal", "pneumonia"))

    @property
    def privacy(self) -> DifferentialPrivacy:
        """Of each patient of one site."""
        own = self.settings
        return DifferentialPrivacy(
            "patient", own.max_norm, own.noise_multiplier, own.sampling_rate, own.units, delta=own.delta
        )

    def model(self) -> nn.Module:
        """Two logits."""
        if self.settings.model == "network":
            blocks = [*block(1, 8), *block(8, 16), *block(16, 32)]
            return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
        linear = nn.Linear(CELLS * CELLS * DIRECTIONS, 2)
        nn.init.zeros_(linear.weight)
        return nn.Sequential(Histograms(), linear)

    def train_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def evaluate(self, model: nn.Module, loader: Iterable[Batch]) -> Iterator[MetricSum]:
        """For a federation that judges the model elsewhere: no metric of a private plan leaves a site."""
        for images, labels in loader:
            yield mean_of("accuracy", (model(images).argmax(1) == labels).sum().item(), len(labels))


class Histograms(nn.Module):
    """How strong the edges of each direction are in each of 7 x 7 cells; of mean 0 and of length 4."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From (count, 1, size, size) to (count, 7 * 7 * 8)."""
        across = images[..., 1:-1, 2:] - images[..., 1:-1, :-2]
        down = images[..., 2:, 1:-1] - images[..., :-2, 1:-1]
        strength, angle = (across.square() + down.square() + 1e-8).sqrt(), torch.atan2(down, across)
        turns = torch.arange(DIRECTIONS, device=images.device) * (2 * torch.pi / DIRECTIONS)
        edges = strength * functional.relu(torch.cos(angle - turns[:, None, None])).pow(4)
        cells = functional.adaptive_avg_pool2d(edges, CELLS).flatten(1)
        return 4 * functional.normalize(cells - cells.mean(1, keepdim=True), dim=1)


def block(before: int, after: int) -> list[nn.Module]:
    """Convolve, normalise, halve."""
    return [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool2d(2)]
