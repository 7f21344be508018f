"""Pneumonia or not, with a ResNet-18 on X-rays of 224x224 (He et al. 2016, arXiv:1512.03385).

Its batch normalisation is replaced by group normalisation, which has no running statistics that sites with
different patients would pull apart (Hsieh et al. 2020, arXiv:1910.00189). Set ``norm`` to ``fedbn`` to keep batch
normalisation and leave it at each site instead (FedBN: Li et al. 2021, arXiv:2102.07623).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from fedveil import (
    BATCH_NORM_LAYERS,
    DataKind,
    DataSpec,
    MetricSum,
    PlanSettings,
    TrainingPlan,
    auc_of,
    mean_of,
    steerable,
    vision,
)
from torch import nn
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Settings(PlanSettings):
    """What may be set when the plan is built."""

    batch_size: int = steerable(32)
    learning_rate: float = steerable(0.01)
    momentum: float = steerable(0.9)
    weight_decay: float = steerable(0.0001)
    image_size: int = 224
    norm: str = "group"  # group or fedbn


class ResNet18Plan(TrainingPlan):
    """11.2 million parameters, trained with SGD; it looks at images and labels alone."""

    Settings = Settings

    @property
    def data(self) -> DataSpec:
        """Grey images."""
        size = self.settings.image_size
        return DataSpec("chest-xray", DataKind.IMAGES, (1, size, size), ("normal", "pneumonia"))

    @property
    def site_local(self) -> tuple[str, ...]:
        """With FedBN every batch normalisation stays at the site."""
        return (BATCH_NORM_LAYERS,) if self.settings.norm == "fedbn" else ()

    def model(self) -> nn.Module:
        """Torchvision's network, with one channel in and two classes out."""
        norms = {"group": lambda channels: nn.GroupNorm(32, channels), "fedbn": nn.BatchNorm2d}
        network: nn.Module = vision.models.resnet18(num_classes=2, norm_layer=norms[self.settings.norm])
        network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        return network

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD, new in every round."""
        own = self.settings
        return torch.optim.SGD(
            model.parameters(), lr=own.learning_rate, momentum=own.momentum, weight_decay=own.weight_decay
        )

    def train_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy on images of which half the batches are mirrored."""
        images, labels = batch
        images = images.flip(3) if torch.rand(()) < 0.5 else images
        return functional.cross_entropy(model(images), labels)

    def evaluate(self, model: nn.Module, loader: Iterable[Batch]) -> Iterator[MetricSum]:
        """Loss, accuracy and area under the ROC curve."""
        for images, labels in loader:
            scores = model(images)
            yield mean_of("loss", functional.cross_entropy(scores, labels, reduction="sum").item(), len(labels))
            yield mean_of("accuracy", (scores.argmax(1) == labels).sum().item(), len(labels))
            yield auc_of("auc", scores.softmax(1)[:, 1].cpu().numpy(), labels.cpu().numpy())
