"""What a researcher writes and a hospital reads: a plan is one small class.

A ``TrainingPlan`` says which model, which optimizer, what the loss of one batch is and how the model is
judged. It does not say how training runs: epochs, shuffling, backward, proximal terms, control variates and
the optimizer's step are the framework's (``training.py``), so that the same text works with FedAvg, FedProx,
SCAFFOLD and layers that stay at the site. Plans import from ``fedveil`` and ``torch`` alone. This module itself
imports no torch.
"""

from __future__ import annotations

import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..utils.data_spec import DataSpec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import PlanError
from ..utils.metrics import MetricSum
from ..utils.plan_bundle import PlanKind, Setting
from ..utils.tensors import Vector
from .records import LoadedDataset

if TYPE_CHECKING:
    import torch

    Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""A model as named arrays: float32 is averaged, integers and booleans are carried exactly."""

BATCH_NORM_LAYERS = "@batchnorm"
"""For ``site_local``: every tensor of every batch normalisation. FedBN: Li et al. 2021 (arXiv:2102.07623)."""


def steerable(default: Any) -> Any:
    """A setting that may be changed between rounds: it changes neither the model nor what leaves the site."""
    return field(default=default, metadata={"steerable": True})


@dataclass(frozen=True)
class PlanSettings:
    """What the framework itself reads; a plan adds its own settings in a frozen subclass.

    Raises:
        PlanError: a value out of range.
    """

    local_epochs: int = steerable(1)
    batch_size: int = steerable(32)
    learning_rate: float = steerable(0.01)
    proximal_mu: float = steerable(0.0)  # FedProx's mu: Li et al. 2020 (arXiv:1812.06127); 0 is FedAvg
    scaffold: bool = False  # control variates: Karimireddy et al. 2020 (arXiv:1910.06378); doubles an update

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.local_epochs < 1 or self.batch_size < 1:
            raise PlanError(f"local_epochs {self.local_epochs} and batch_size {self.batch_size} are at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise PlanError(f"learning_rate {self.learning_rate}: expected a positive number")
        if not (math.isfinite(self.proximal_mu) and self.proximal_mu >= 0):
            raise PlanError(f"proximal_mu {self.proximal_mu}: expected a number of at least 0")


class Plan(ABC):
    """What both sorts of plan have: settings, and the data they ask for.

    Args:
        values: settings that differ from their defaults.

    Raises:
        PlanError: a setting that the plan does not have, or a value of another type.
    """

    kind: ClassVar[PlanKind]
    Settings: ClassVar[type[PlanSettings]] = PlanSettings

    def __init__(self, **values: Setting) -> None:
        self.settings: Any = settings_of(self.Settings, values)

    @property
    def data(self) -> DataSpec:
        """The dataset that the plan asks each site for; write it as ``data = DataSpec(...)`` in the class."""
        raise PlanError(f"{type(self).__name__} declares no data: add data = DataSpec(name, kind, shape, classes)")


class TrainingPlan(Plan):
    """A model trained with torch. A batch is ``(features, labels)``: float32 in [0, 1] and int64.

    >>> class Plan(TrainingPlan):  # doctest: +SKIP
    ...     data = DataSpec("chest-xray", DataKind.IMAGES, (1, 28, 28), ("normal", "pneumonia"))
    ...     def model(self):
    ...         return nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    ...     def train_step(self, model, batch):
    ...         features, labels = batch
    ...         return nn.functional.cross_entropy(model(features), labels)
    ...     def evaluate(self, model, loader):
    ...         for features, labels in loader:
    ...             yield mean_of("accuracy", (model(features).argmax(1) == labels).sum().item(), len(labels))
    """

    kind = PlanKind.TORCH

    @property
    def site_local(self) -> tuple[str, ...]:
        """Names of tensors that never leave the site, as patterns (``"head.*"``) or ``BATCH_NORM_LAYERS``.

        Write it as ``site_local = (...)`` in the class.
        """
        return ()

    @property
    def privacy(self) -> DifferentialPrivacy | None:
        """How training is made differentially private; None: it is not.

        Write it as ``privacy = DifferentialPrivacy(...)`` in the class, or as a property that reads the settings. It
        stands in the manifest. ``train_step`` is then called with the examples of one unit at a time, as often as
        ``steps`` says; ``local_epochs`` counts nothing. No metric leaves, nor the number of examples.
        """
        return None

    @abstractmethod
    def model(self) -> torch.nn.Module:
        """A new model; its weights are replaced by the federation's."""

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """A new optimizer for one round of local training; plain SGD unless the plan says otherwise."""
        import torch

        return torch.optim.SGD(model.parameters(), lr=self.settings.learning_rate)

    @abstractmethod
    def train_step(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of one batch, a scalar that requires grad. Backward and the step are the framework's."""

    @abstractmethod
    def evaluate(self, model: torch.nn.Module, loader: Iterable[Batch]) -> Iterable[MetricSum]:
        """Summable metrics over the batches; metrics of one name are added up. Runs without gradients."""


class ArrayPlan(Plan):
    """A model trained with numpy alone; the optimizer is the plan's own."""

    kind = PlanKind.ARRAY

    @abstractmethod
    def initial(self) -> Arrays:
        """The initial weights."""

    @abstractmethod
    def train(self, weights: Arrays, data: LoadedDataset, rng: np.random.Generator) -> tuple[Arrays, int]:
        """New local weights, of the same names and shapes, and the number of examples they were trained on.

        Args:
            weights: read-only views of the global model.
            data: the site's training examples, ``features`` as float32 (images in [0, 1]) and ``labels``; empty where
                the plan asks for none.
            rng: seeded by run, envoy and round; use no other randomness.
        """

    def update(self, weights: Arrays, out: Mapping[str, Vector], data: LoadedDataset, rng: np.random.Generator) -> int:
        """For plans that mind a copy: write local minus global into ``out``; returns the number of examples.

        Every element of ``out`` must be written: it holds an earlier round's values. A plan that has no such
        method of its own is trained through ``train``.
        """
        raise NotImplementedError

    @abstractmethod
    def evaluate(self, weights: Arrays, data: LoadedDataset) -> Iterable[MetricSum]:
        """Summable metrics of the weights on the examples given; metrics of one name are added up."""


def settings_of(settings: type[PlanSettings], values: Mapping[str, object]) -> PlanSettings:
    """A plan's settings with some values replaced.

    >>> settings_of(PlanSettings, {"local_epochs": 3}).local_epochs
    3

    Raises:
        PlanError: a name that the plan does not have, or a value of another type.
    """
    types = _types_of(settings)
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise PlanError(f"unknown setting {', '.join(unknown)}; the plan has {', '.join(types)}")
    return settings(**{name: _checked(name, types[name], value) for name, value in values.items()})


def values_of(settings: PlanSettings) -> dict[str, Setting]:
    """All settings by name, as a manifest holds them."""
    return asdict(settings)


def _types_of(settings: type[PlanSettings]) -> dict[str, type]:
    hints = typing.get_type_hints(settings)
    types = {}
    for entry in fields(settings):
        hint = hints[entry.name]
        if hint not in (int, float, bool, str):
            raise PlanError(f"setting {entry.name} is declared as {hint}; expected int, float, bool or str")
        if entry.default is MISSING:
            raise PlanError(f"setting {entry.name} has no default; give it one")
        _checked(entry.name, hint, entry.default)
        types[entry.name] = hint
    return types


def _checked(name: str, kind: type, value: object) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise PlanError(f"setting {name}: expected {kind.__name__}, got {value!r} ({type(value).__name__})")
    return value
