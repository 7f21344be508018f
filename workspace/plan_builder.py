"""``fedveil plan build``: from a researcher's file to the bundle that is submitted and approved.

The plan's own code runs here, on the researcher's machine, to make the layout and the first weights, so that the
director never needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import __version__
from ..envoy.initial_weights import initial_of
from ..envoy.plan_loading import construct, plan_class_of, privacy_of
from ..envoy.plan_scan import ScanReport, scan_texts
from ..envoy.plans import ArrayPlan, Plan, TrainingPlan, values_of
from ..envoy.recipes.plans import plan_of_recipe
from ..utils.data_spec import DataSpec
from ..utils.errors import PlanError
from ..utils.plan_bundle import Manifest, PlanKind, Setting, write_bundle
from ..utils.recipe import Recipe
from .recipe_file import RecipeFile, read_recipe


def build_plan(source: Path, out: Path, overrides: Mapping[str, Setting] | None = None) -> Manifest:
    """Build a plan's bundle.

    Args:
        source: a Python file that holds exactly one subclass of ``TrainingPlan`` or ``ArrayPlan``; or a recipe.toml.
        out: the bundle's folder; made, or written over.
        overrides: settings that differ from the plan's own defaults.

    Returns:
        The manifest; its digest names the plan from now on. The same file and settings give the same digest.

    Raises:
        PlanError: the file cannot be read or run, a setting does not fit, a tensor of the model cannot travel, or the
            plan declares differential privacy that its training cannot have.
    """
    if source.suffix.lower() == ".toml":
        return write_recipe(read_recipe(source), out, overrides)
    try:
        text = source.read_bytes()
    except OSError as error:
        raise PlanError(f"the plan {source} cannot be read: {error.strerror}") from error
    return write_plan(plan_class_of(text, source.name), text, source.name, out, overrides)


def scan_source(source: Path, also_allowed: Iterable[str] = ()) -> ScanReport:
    """What sites will say of a plan's imports; a recipe has none.

    Raises:
        PlanError: the file cannot be read.
    """
    if source.suffix.lower() == ".toml":
        return scan_texts({})
    try:
        return scan_texts({source.name: source.read_bytes()}, also_allowed)
    except OSError as error:
        raise PlanError(f"the plan {source} cannot be read: {error.strerror}") from error


def write_plan(
    plan_class: type[Plan], text: bytes, file_name: str, out: Path, overrides: Mapping[str, Setting] | None = None
) -> Manifest:
    """The bundle of a plan class whose source is ``text``.

    Raises:
        PlanError: as ``build_plan``.
    """
    plan, data = construct(plan_class, overrides or {})
    kind, entry = plan.kind, f"{file_name}:{plan_class.__name__}"
    return _write(plan, data, out, name=plan_class.__name__, kind=kind, entry=entry, sources={file_name: text})


def write_recipe(file: RecipeFile, out: Path, overrides: Mapping[str, Setting] | None = None) -> Manifest:
    """The bundle of a declarative plan: it holds no source.

    Raises:
        PlanError: as ``build_plan``.
    """
    plan = plan_of_recipe(file.recipe, file.data, {**file.settings, **(overrides or {})}, file.privacy)
    return _write(
        plan, file.data, out, name=file.name, kind=PlanKind.DECLARATIVE, entry="", sources={}, recipe=file.recipe
    )


def _write(
    plan: Plan,
    data: DataSpec,
    out: Path,
    *,
    name: str,
    kind: PlanKind,
    entry: str,
    sources: Mapping[str, bytes],
    recipe: Recipe | None = None,
) -> Manifest:
    if isinstance(plan, ArrayPlan) and (plan.settings.proximal_mu or plan.settings.scaffold):
        raise PlanError("an ArrayPlan steps by itself: proximal_mu and scaffold are for a TrainingPlan")
    layout, vector, exact = initial_of(plan)
    privacy = privacy_of(plan)
    if privacy is not None and isinstance(plan, TrainingPlan):
        from ..envoy.private_models import require_private

        require_private(plan, data, privacy)
    return write_bundle(
        out,
        name=name,
        kind=kind,
        entry=entry,
        sources=sources,
        settings=values_of(plan.settings),
        layout=layout,
        initial=(vector, exact),
        data=data,
        software=__version__,
        privacy=privacy,
        recipe=recipe,
    )
