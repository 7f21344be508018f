"""The names that a recipe may use, with the values of each, their defaults and their ranges. No torch here.

A recipe is completed when its plan is built, so that its manifest says everything; at the site it must be complete and
within the ranges that *this* software has. What a name is not listed here under, cannot be asked for.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...utils.data_spec import DataKind, DataSpec
from ...utils.errors import PlanError
from ...utils.plan_bundle import Manifest, PlanKind
from ...utils.recipe import Choice, Recipe, Value


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number."""

    default: int
    least: int
    most: int
    multiple_of: int = 1

    def check(self, value: object) -> str:
        """What is wrong with a value; empty where nothing is."""
        is_right = type(value) is int and self.least <= value <= self.most and value % self.multiple_of == 0
        by = f", a multiple of {self.multiple_of}" if self.multiple_of > 1 else ""
        return "" if is_right else f"expected a whole number from {self.least} to {self.most}{by}"


@dataclass(frozen=True, slots=True)
class Number:
    """A number from ``least`` up to, and not including, ``below``."""

    default: float
    least: float
    below: float

    def check(self, value: object) -> str:
        """What is wrong with a value; empty where nothing is."""
        is_right = type(value) is float and self.least <= value < self.below
        return "" if is_right else f"expected a number from {self.least:g} to below {self.below:g}"


@dataclass(frozen=True, slots=True)
class Word:
    """One of some words."""

    default: str
    words: tuple[str, ...]

    def check(self, value: object) -> str:
        """What is wrong with a value; empty where nothing is."""
        return "" if value in self.words else f"expected one of {', '.join(self.words)}"


@dataclass(frozen=True, slots=True)
class Numbers:
    """A list of numbers, empty or one for each feature."""

    default: tuple[float, ...] = ()
    least: float = -math.inf

    def check(self, value: object) -> str:
        """What is wrong with a value; empty where nothing is."""
        is_right = isinstance(value, tuple) and all(type(one) is float and one >= self.least for one in value)
        return "" if is_right else f"expected a list of numbers of at least {self.least:g}"


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands under a name."""

    about: str
    fields: Mapping[str, Whole | Number | Word | Numbers]


@dataclass(frozen=True, slots=True)
class Model(Entry):
    """A model: also what it reads, and with what it is trained."""

    kinds: tuple[DataKind, ...] = (DataKind.IMAGES,)
    engine: PlanKind = PlanKind.TORCH
    channels: tuple[int, ...] = (1, 3)
    least_side: int = 1  # of images, in pixels


_EITHER = (DataKind.IMAGES, DataKind.TABLE)
_TINIEST = 1e-12

MODELS: Mapping[str, Model] = {
    "small-cnn": Model(
        "three blocks of convolution, group normalisation and pooling",
        {"width": Whole(16, 4, 256, multiple_of=4)},
        least_side=8,
    ),
    "resnet18": Model(
        "torchvision's ResNet-18, untrained; group normalisation, or batch normalisation that stays at the site",
        {"norm": Word("group", ("group", "fedbn"))},
        least_side=16,
    ),
    "edge-histograms": Model(
        "fixed histograms of edges' directions, and a linear layer on them; for differential privacy",
        {},
        channels=(1,),
        least_side=9,
    ),
    "linear": Model("a linear layer on the features", {}, _EITHER),
    "mlp": Model(
        "linear layers with ReLU between them",
        {"hidden": Whole(32, 1, 4096), "layers": Whole(1, 1, 8)},
        _EITHER,
    ),
    "logistic-regression": Model(
        "softmax regression in numpy, on (feature - mean) / scale",
        {"mean": Numbers(), "scale": Numbers(least=_TINIEST)},
        _EITHER,
        engine=PlanKind.ARRAY,
    ),
}
LOSSES: Mapping[str, Entry] = {
    "cross-entropy": Entry("of the classes", {"label_smoothing": Number(0.0, 0.0, 1.0)}),
}
OPTIMIZERS: Mapping[str, Entry] = {
    "sgd": Entry("gradient descent", {"momentum": Number(0.0, 0.0, 1.0), "weight_decay": Number(0.0, 0.0, 1.0)}),
    "adamw": Entry("Adam with decoupled weight decay", {"weight_decay": Number(0.01, 0.0, 1.0)}),
}
AUGMENTATIONS: Mapping[str, Entry] = {
    "affine": Entry(
        "each image turned (radians), scaled and shifted (share of half its sides) by up to so much",
        {"rotation": Number(0.15, 0.0, 3.15), "scale": Number(0.1, 0.0, 0.9), "shift": Number(0.12, 0.0, 1.0)},
    ),
    "mirror": Entry("this share of the batches is mirrored", {"share": Number(0.5, 0.0, 1.0)}),
}
METRICS: Mapping[str, str] = {
    "loss": "cross-entropy",
    "accuracy": "share of right classes",
    "auc": "area under the ROC curve, of two classes",
}
_TABLES: Mapping[str, Mapping[str, Entry]] = {
    "model": MODELS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "augmentation": AUGMENTATIONS,
}


def completed(what: str, name: str, values: Mapping[str, Value]) -> Choice:
    """A choice with all of its values, those that are not given by their defaults.

    >>> completed("model", "small-cnn", {}).label
    'small-cnn (width 16)'

    Raises:
        PlanError: an unknown name or value, or one out of range.
    """
    entry = _entry(what, name)
    _refuse_unknown(what, name, values, entry)
    whole = {
        key: _as_asked(values[key], field) if key in values else field.default for key, field in entry.fields.items()
    }
    choice = Choice(name, whole)
    _check_choice(what, choice)
    return choice


def check_recipe(recipe: Recipe, data: DataSpec) -> None:
    """Is every name and value one that this software has, and do they fit the data?

    Raises:
        PlanError: no; the message names what, and what is expected.
    """
    for what, choice in (("model", recipe.model), ("loss", recipe.loss), ("optimizer", recipe.optimizer)):
        _check_choice(what, choice)
    for choice in recipe.augmentations:
        _check_choice("augmentation", choice)
    _check_model(recipe, data)
    for name in recipe.metrics:
        if name not in METRICS:
            raise PlanError(f"recipe: unknown metric {name}{_hint(name, METRICS)}; known are {', '.join(METRICS)}")
    num_classes = len(data.classes)
    if num_classes < 2:
        raise PlanError(f"recipe: data {data.name} names {num_classes} classes; expected at least two")
    if "auc" in recipe.metrics and num_classes != 2:
        raise PlanError(f"recipe: auc is of two classes, and data {data.name} has {num_classes}")


def engine_of(manifest: Manifest) -> PlanKind:
    """What trains a plan: torch, or numpy alone.

    Raises:
        PlanError: a recipe whose model is not known here.
    """
    if manifest.recipe is None:
        return manifest.kind
    _entry("model", manifest.recipe.model.name)
    return MODELS[manifest.recipe.model.name].engine


def _check_model(recipe: Recipe, data: DataSpec) -> None:
    name, model = recipe.model.name, MODELS[recipe.model.name]
    if data.kind not in model.kinds:
        raise PlanError(
            f"recipe: model {name} is for {', '.join(one.value for one in model.kinds)}; not {data.kind.value}"
        )
    if data.kind is DataKind.IMAGES:
        channels, *sides = data.shape
        if channels not in model.channels or min(sides) < model.least_side:
            raise PlanError(
                f"recipe: model {name} reads images of {' or '.join(map(str, model.channels))} channels and at least"
                f" {model.least_side} pixels a side, not {data.shape}"
            )
    elif recipe.augmentations:
        raise PlanError("recipe: augmentations are for images")
    if model.engine is PlanKind.ARRAY and (
        recipe.augmentations or recipe.optimizer.name != "sgd" or recipe.loss.values["label_smoothing"] != 0.0
    ):
        raise PlanError(f"recipe: model {name} is trained by sgd, with plain cross-entropy and no augmentation")
    for key, value in recipe.model.values.items():
        if isinstance(value, tuple) and len(value) not in (0, math.prod(data.shape)):
            raise PlanError(f"recipe: {name}: {key} has {len(value)} numbers, expected none or {math.prod(data.shape)}")


def _check_choice(what: str, choice: Choice) -> None:
    entry = _entry(what, choice.name)
    _refuse_unknown(what, choice.name, choice.values, entry)
    for key, field in entry.fields.items():
        if key not in choice.values:
            raise PlanError(f"recipe: {what} {choice.name} says no {key}; build the plan again")
        wrong = field.check(choice.values[key])
        if wrong:
            raise PlanError(f"recipe: {what} {choice.name}: {key} is {choice.values[key]!r}; {wrong}")


def _entry(what: str, name: str) -> Entry:
    table = _TABLES[what]
    if name not in table:
        raise PlanError(f"recipe: unknown {what} {name}{_hint(name, table)}; known are {', '.join(table)}")
    return table[name]


def _refuse_unknown(what: str, name: str, values: Mapping[str, Value], entry: Entry) -> None:
    for key in values:
        if key not in entry.fields:
            known = ", ".join(entry.fields) or "none"
            raise PlanError(f"recipe: {what} {name} has no value {key}{_hint(key, entry.fields)}; it has {known}")


def _as_asked(value: Value, field: Whole | Number | Word | Numbers) -> Value:
    """Whole numbers stand for fractions where those are asked for, as everywhere in settings."""
    if isinstance(field, Number) and type(value) is int:
        return float(value)
    if isinstance(field, Numbers) and isinstance(value, tuple):
        return tuple(float(one) if type(one) is int else one for one in value)
    return value


def _hint(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
