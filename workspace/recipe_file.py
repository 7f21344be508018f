"""``recipe.toml``: a declarative plan as a researcher writes it. Every key is known, or refused by its name.

What is left out gets its default, and stands in the manifest; ``envoy/recipes/catalogue.py`` has all names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..envoy.recipes.catalogue import check_recipe, completed
from ..utils.data_spec import DataKind, DataSpec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import PlanError
from ..utils.plan_bundle import Setting
from ..utils.recipe import Choice, Recipe, Value

_TABLES = ("name", "data", "model", "loss", "optimizer", "augmentations", "metrics", "settings", "privacy")
_DATA = ("name", "kind", "shape", "classes", "columns", "modality")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """All of a recipe.toml."""

    name: str
    data: DataSpec
    recipe: Recipe
    settings: Mapping[str, Setting]
    privacy: DifferentialPrivacy | None


def read_recipe(path: Path) -> RecipeFile:
    """Read and complete a recipe.

    Raises:
        PlanError: it cannot be read, or a key, name or value is not right; the message names it.
    """
    try:
        raw = path.read_bytes()
        if len(raw) > _MAX_BYTES:
            raise PlanError(f"{path}: {len(raw)} bytes; a recipe has {_MAX_BYTES} at most")
        document = tomllib.loads(raw.decode())
    except OSError as error:
        raise PlanError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{path} is not TOML: {error}") from error
    try:
        return _recipe_of(document)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def _recipe_of(document: Mapping[str, Any]) -> RecipeFile:
    _refuse_others(document, _TABLES, "")
    data = _data_of(_table(document, "data"))
    augmentations = document.get("augmentations", [])
    metrics = document.get("metrics", ["loss", "accuracy"])
    if not isinstance(augmentations, list) or not isinstance(metrics, list):
        raise PlanError("augmentations are tables of the form [[augmentations]], metrics a list of names")
    recipe = Recipe(
        model=_choice("model", _table(document, "model")),
        loss=_choice("loss", document.get("loss", {"name": "cross-entropy"})),
        optimizer=_choice("optimizer", document.get("optimizer", {"name": "sgd"})),
        augmentations=tuple(_choice("augmentation", one) for one in augmentations),
        metrics=tuple(metrics),
    )
    check_recipe(recipe, data)
    privacy = _privacy_of(document["privacy"]) if "privacy" in document else None
    settings = document.get("settings", {})
    if not isinstance(settings, dict):
        raise PlanError("settings: expected a table")
    name = document.get("name")
    if not isinstance(name, str):
        raise PlanError("name: must be given, as text")
    return RecipeFile(name, data, recipe, settings, privacy)


def _data_of(table: Mapping[str, Any]) -> DataSpec:
    _refuse_others(table, _DATA, "data.")
    columns = table.get("columns", [])
    kinds = {kind.value: kind for kind in DataKind if kind is not DataKind.NONE}
    if table.get("kind") not in kinds:
        raise PlanError(f"data.kind: expected one of {', '.join(kinds)}")
    if not isinstance(columns, list) or not isinstance(table.get("name"), str):
        raise PlanError("data.name must be given as text, and data.columns is a list of names")
    if kinds[table["kind"]] is DataKind.TABLE and not columns:
        raise PlanError("data.columns: must be given; a plan sees the columns that it names, and no others")
    document = {
        "name": table["name"],
        "kind": table["kind"],
        "shape": table.get("shape", [len(columns)] if columns else []),
        "classes": table.get("classes", []),
        "columns": columns,
    }
    return DataSpec.from_document(document | ({"modality": table["modality"]} if table.get("modality") else {}))


def _choice(what: str, table: object) -> Choice:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise PlanError(f"{what}: expected a table with a name")
    values: dict[str, Value] = {
        key: tuple(one) if isinstance(one, list) else one for key, one in table.items() if key != "name"
    }
    return completed(what, table["name"], values)


def _privacy_of(table: object) -> DifferentialPrivacy:
    if not isinstance(table, dict):
        raise PlanError("privacy: expected a table")
    try:
        return DifferentialPrivacy(**table)
    except TypeError as error:
        fields = "unit, max_norm, noise_multiplier, sampling_rate, units, and steps and delta where they differ"
        raise PlanError(f"privacy: expected {fields}; got {', '.join(table)}") from error


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    held = document.get(name)
    if not isinstance(held, dict):
        raise PlanError(f"[{name}]: must be given, as a table")
    return held


def _refuse_others(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise PlanError(f"{where}{key} is not a key of a recipe; expected {', '.join(known)}")
