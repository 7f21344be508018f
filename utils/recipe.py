"""A recipe: what a declarative plan says instead of code. Names, and numbers for them; nothing that could be run.

The names mean something at the site alone (``envoy/recipes``): a site builds the model, loss, optimizer and metrics
that it has under these names, from its own installed software, and refuses what it does not know. Here is the form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from .errors import PlanError
from .tensors import canonical_json, digest_of

Value: TypeAlias = bool | int | float | str | tuple[float, ...]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MAX_TEXT = 200
_MAX_NUMBERS = 10_000
_MAX_CHOICES = 16
_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """Something by its name, with its values.

    >>> Choice("small-cnn", {"width": 16}).label
    'small-cnn (width 16)'

    Raises:
        PlanError: a name or value that is none.
    """

    name: str
    values: Mapping[str, Value]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise PlanError(f"recipe: {self.name!r} is no name; expected lower-case letters, digits and dashes")
        for key, value in self.values.items():
            _check(f"{self.name}: {key}", key, value)
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    @property
    def label(self) -> str:
        """In words."""
        shown = ", ".join(f"{key} {_shown(value)}" for key, value in sorted(self.values.items()))
        return f"{self.name} ({shown})" if shown else self.name

    def to_document(self) -> dict[str, Any]:
        """JSON values, as a manifest holds them."""
        values = {key: list(one) if isinstance(one, tuple) else one for key, one in self.values.items()}
        return {"name": self.name, "values": values}

    @classmethod
    def from_document(cls, document: object) -> Choice:
        """Read what ``to_document`` made, and nothing else.

        Raises:
            PlanError: it is not that.
        """
        if not isinstance(document, dict) or set(document) != {"name", "values"}:
            raise PlanError("recipe: expected a name and its values")
        if not isinstance(document["values"], dict):
            raise PlanError("recipe: values are an object")
        found = document["values"].items()
        return cls(document["name"], {key: tuple(one) if isinstance(one, list) else one for key, one in found})


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained, and how.

    Raises:
        PlanError: too many augmentations, or no metric, or one twice.
    """

    model: Choice
    loss: Choice
    optimizer: Choice
    augmentations: tuple[Choice, ...]  # of training images, one after the other
    metrics: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.augmentations) > _MAX_CHOICES:
            raise PlanError(f"recipe: {len(self.augmentations)} augmentations, at most {_MAX_CHOICES} are taken")
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in self.metrics):
            raise PlanError("recipe: metrics are named with lower-case letters, digits and dashes")
        if not self.metrics or len(set(self.metrics)) != len(self.metrics) or len(self.metrics) > _MAX_CHOICES:
            raise PlanError(f"recipe: expected 1 to {_MAX_CHOICES} metrics, each once")

    def lines(self) -> list[tuple[str, str]]:
        """What somebody who approves it reads: a word, and what stands under it."""
        return [
            ("model", self.model.label),
            ("loss", self.loss.label),
            ("optimizer", self.optimizer.label),
            ("augmentations", "; ".join(one.label for one in self.augmentations) or "none"),
            ("metrics", ", ".join(self.metrics)),
        ]

    def to_document(self) -> dict[str, Any]:
        """JSON values, as a manifest holds them."""
        return {
            "model": self.model.to_document(),
            "loss": self.loss.to_document(),
            "optimizer": self.optimizer.to_document(),
            "augmentations": [one.to_document() for one in self.augmentations],
            "metrics": list(self.metrics),
        }

    @classmethod
    def from_document(cls, document: object) -> Recipe:
        """Read what ``to_document`` made, and nothing else.

        Raises:
            PlanError: it is not that.
        """
        expected = {"model", "loss", "optimizer", "augmentations", "metrics"}
        if not isinstance(document, dict) or set(document) != expected:
            raise PlanError(f"recipe: expected {', '.join(sorted(expected))}, and nothing else")
        augmentations, metrics = document["augmentations"], document["metrics"]
        if not isinstance(augmentations, list) or not isinstance(metrics, list):
            raise PlanError("recipe: augmentations and metrics are lists")
        return cls(
            model=Choice.from_document(document["model"]),
            loss=Choice.from_document(document["loss"]),
            optimizer=Choice.from_document(document["optimizer"]),
            augmentations=tuple(map(Choice.from_document, augmentations)),
            metrics=tuple(metrics),
        )


def _check(where: str, key: object, value: object) -> None:
    if not isinstance(key, str) or not key.isidentifier() or len(key) > _MAX_TEXT:
        raise PlanError(f"recipe: {where!r} is not the name of a value")
    numbers = value if isinstance(value, tuple) else (value,)
    if len(numbers) > _MAX_NUMBERS or (isinstance(value, str) and len(value) > _MAX_TEXT):
        raise PlanError(f"recipe: {where}: too long")
    for number in numbers:
        is_text = isinstance(number, str) and number is value
        is_number = isinstance(number, int | float) and abs(number) < 1 << 53 and math.isfinite(number)
        if not (is_text or is_number) or (isinstance(value, tuple) and isinstance(number, bool)):
            raise PlanError(f"recipe: {where}: expected a finite number, true or false, text, or a list of numbers")


def _shown(value: Value) -> str:
    """So that two values that differ are shown otherwise."""
    if isinstance(value, tuple):
        if len(value) <= _MOST_SHOWN:
            return f"[{', '.join(map(repr, value))}]"
        return f"[{len(value)} numbers, {digest_of(canonical_json(list(value)))[:12]}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else repr(value)
