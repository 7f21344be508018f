"""A recipe as a plan: everything behind it (worker, privacy, leak test, codec, sums) is as for plans with code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ...utils.data_spec import DataSpec
from ...utils.differential_privacy import DifferentialPrivacy
from ...utils.errors import PlanError
from ...utils.metrics import MetricSum, auc_of, mean_of
from ...utils.plan_bundle import PlanKind, Setting
from ...utils.recipe import Recipe
from ..plans import BATCH_NORM_LAYERS, ArrayPlan, Arrays, Plan, TrainingPlan
from ..records import LoadedDataset
from .catalogue import MODELS, check_recipe

if TYPE_CHECKING:
    import torch

    from ..plans import Batch


def plan_of_recipe(
    recipe: Recipe, data: DataSpec, settings: Mapping[str, Setting], privacy: DifferentialPrivacy | None = None
) -> Plan:
    """The plan that a recipe stands for.

    Raises:
        PlanError: a name or value that this software does not have, that does not fit the data, or a setting that is
            none.
    """
    check_recipe(recipe, data)
    if MODELS[recipe.model.name].engine is PlanKind.TORCH:
        return TorchRecipe(recipe, data, privacy, **settings)
    if privacy is not None:
        raise PlanError(f"recipe: model {recipe.model.name} cannot be trained privately; take linear")
    return ArrayRecipe(recipe, data, **settings)


class TorchRecipe(TrainingPlan):
    """A recipe whose model is torch's."""

    def __init__(
        self, recipe: Recipe, data: DataSpec, privacy: DifferentialPrivacy | None, **settings: Setting
    ) -> None:
        super().__init__(**settings)
        self._recipe, self._data, self._privacy = recipe, data, privacy

    @property
    def data(self) -> DataSpec:
        """As the manifest says."""
        return self._data

    @property
    def privacy(self) -> DifferentialPrivacy | None:
        """As the manifest says."""
        return self._privacy

    @property
    def site_local(self) -> tuple[str, ...]:
        """With FedBN every batch normalisation stays at the site."""
        return (BATCH_NORM_LAYERS,) if self._recipe.model.values.get("norm") == "fedbn" else ()

    def model(self) -> torch.nn.Module:
        """By its name."""
        from .networks import network

        return network(self._recipe.model, self._data)

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """By its name."""
        from .torch_steps import optimizer

        return optimizer(self._recipe.optimizer, model.parameters(), self.settings.learning_rate)

    def train_step(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The loss on images that are augmented as the recipe says."""
        from .torch_steps import augmented, loss

        features, labels = batch
        return loss(self._recipe.loss, model(augmented(self._recipe.augmentations, features)), labels)

    def evaluate(self, model: torch.nn.Module, loader: Iterable[Batch]) -> Iterator[MetricSum]:
        """The metrics that the recipe names."""
        from torch.nn import functional

        for features, labels in loader:
            scores = model(features)
            if "loss" in self._recipe.metrics:
                yield mean_of("loss", functional.cross_entropy(scores, labels, reduction="sum").item(), len(labels))
            if "accuracy" in self._recipe.metrics:
                yield mean_of("accuracy", (scores.argmax(1) == labels).sum().item(), len(labels))
            if "auc" in self._recipe.metrics:
                yield auc_of("auc", scores.softmax(1)[:, 1].cpu().numpy(), labels.cpu().numpy())


class ArrayRecipe(ArrayPlan):
    """A recipe whose model is numpy's: softmax regression."""

    def __init__(self, recipe: Recipe, data: DataSpec, **settings: Setting) -> None:
        super().__init__(**settings)
        self._recipe, self._data = recipe, data

    @property
    def data(self) -> DataSpec:
        """As the manifest says."""
        return self._data

    def initial(self) -> Arrays:
        """Zeros: the loss is convex."""
        shape = (math.prod(self._data.shape), len(self._data.classes))
        return {"weight": np.zeros(shape, np.float32), "bias": np.zeros(shape[1], np.float32)}

    def train(self, weights: Arrays, data: LoadedDataset, rng: np.random.Generator) -> tuple[Arrays, int]:
        """By gradient descent."""
        from .softmax_regression import Descent, descend, inputs

        own, optimizer = self.settings, self._recipe.optimizer.values
        how = Descent(
            epochs=own.local_epochs,
            batch_size=own.batch_size,
            learning_rate=own.learning_rate,
            momentum=float(str(optimizer["momentum"])),
            weight_decay=float(str(optimizer["weight_decay"])),
        )
        rows = inputs(data.features, self._recipe.model)
        weight, bias = descend(rows, data.labels, weights["weight"], weights["bias"], how, rng)
        return {"weight": weight, "bias": bias}, len(data)

    def evaluate(self, weights: Arrays, data: LoadedDataset) -> Iterator[MetricSum]:
        """The metrics that the recipe names."""
        from .softmax_regression import inputs, log_probabilities, logits

        scores = logits(inputs(data.features, self._recipe.model), weights["weight"], weights["bias"])
        logs = log_probabilities(scores)
        if "loss" in self._recipe.metrics:
            yield mean_of("loss", float(-logs[np.arange(len(data)), data.labels].sum(dtype=np.float64)), len(data))
        if "accuracy" in self._recipe.metrics:
            yield mean_of("accuracy", int((scores.argmax(1) == data.labels).sum()), len(data))
        if "auc" in self._recipe.metrics:
            yield auc_of("auc", np.exp(logs[:, 1]), data.labels)
