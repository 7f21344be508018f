"""Pneumonia or not, from a small grey chest X-ray: the plan that the demo trains.

Group normalisation instead of batch normalisation: it has no running statistics, which sites with different
patients would pull apart (Hsieh et al. 2020, arXiv:1910.00189).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from fedveil import DataKind, DataSpec, MetricSum, PlanSettings, TrainingPlan, auc_of, mean_of, steerable
from torch import nn
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Settings(PlanSettings):
    """What may be set when the plan is built."""

    batch_size: int = steerable(32)
    learning_rate: float = steerable(0.003)
    weight_decay: float = steerable(0.0001)
    image_size: int = 28
    width: int = 16


class PneumoniaPlan(TrainingPlan):
    """A convolutional network of 23,650 parameters, trained with Adam; it looks at images and labels alone."""

    Settings = Settings

    @property
    def data(self) -> DataSpec:
        """Grey images."""
        size = self.settings.image_size
        return DataSpec("chest-xray", DataKind.IMAGES, (1, size, size), ("normal", "pneumonia"))

    def model(self) -> nn.Module:
        """Three blocks, each of which halves the image, then the mean of what they found."""
        width = self.settings.width
        blocks = [*block(1, width), *block(width, 2 * width), *block(2 * width, 4 * width)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 2))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam, new in every round."""
        own = self.settings
        return torch.optim.AdamW(model.parameters(), lr=own.learning_rate, weight_decay=own.weight_decay)

    def train_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy on images that are moved a little at random."""
        images, labels = batch
        return functional.cross_entropy(model(moved(images)), labels)

    def evaluate(self, model: nn.Module, loader: Iterable[Batch]) -> Iterator[MetricSum]:
        """Loss, accuracy and area under the ROC curve."""
        for images, labels in loader:
            scores = model(images)
            yield mean_of("loss", functional.cross_entropy(scores, labels, reduction="sum").item(), len(labels))
            yield mean_of("accuracy", (scores.argmax(1) == labels).sum().item(), len(labels))
            yield auc_of("auc", scores.softmax(1)[:, 1].cpu().numpy(), labels.cpu().numpy())


def block(before: int, after: int) -> list[nn.Module]:
    """Convolve, normalise, halve."""
    return [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool2d(2)]


def moved(images: torch.Tensor) -> torch.Tensor:
    """Each image turned by up to 9 degrees, scaled by up to 10 % and shifted by up to two pixels of 28."""
    most = torch.tensor([0.15, 0.1, 0.12, 0.12])  # radians, share of the size, shares of half the width and height
    angle, scale, across, down = ((2 * torch.rand(len(images), 4) - 1) * most).unbind(1)
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    rows = [torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
