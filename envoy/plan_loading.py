"""The plan class out of a plan's source text.

The text comes from a bundle whose hashes were checked, or from the researcher's own file when a bundle is
built. Running it is running somebody's code: the envoy does so in its worker process alone.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import sys
import types
from collections.abc import Mapping
from pathlib import PurePosixPath

from ..utils.data_spec import DataSpec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import LayoutMismatchError, PlanError, TrainingError
from ..utils.plan_bundle import Bundle, Setting
from .array_training import layout_of
from .plans import ArrayPlan, Plan, TrainingPlan
from .recipes.plans import plan_of_recipe


def plan_of(bundle: Bundle, changed: Mapping[str, Setting] | None = None) -> Plan:
    """The plan of a bundle, with the manifest's settings, and those over them that were changed since.

    Raises:
        PlanError: the source cannot be run, holds no such class, or the settings do not fit it; or a recipe that this
            software does not have.
    """
    manifest = bundle.manifest
    if manifest.recipe is not None:
        plan = plan_of_recipe(manifest.recipe, manifest.data, manifest.settings, manifest.privacy)
        if isinstance(plan, ArrayPlan):
            _require_layout(plan, bundle)
        return plan
    source, _, class_name = bundle.manifest.entry.partition(":")
    plan_class = plan_class_of(bundle.blob(source), source, class_name)
    if plan_class.kind is not bundle.manifest.kind:
        raise PlanError(f"{bundle.manifest.entry} is of kind {plan_class.kind.value}, not {bundle.manifest.kind.value}")
    plan, data = construct(plan_class, {**bundle.manifest.settings, **(changed or {})})
    if data != bundle.manifest.data:
        raise PlanError(f"{bundle.manifest.entry} declares other data than its manifest")
    if privacy_of(plan) != bundle.manifest.privacy:
        raise PlanError(f"{bundle.manifest.entry} declares other privacy than its manifest")
    return plan


def _require_layout(plan: ArrayPlan, bundle: Bundle) -> None:
    """A torch model is compared when it is trained; arrays are made here, and few."""
    if layout_of(plan.initial())[0] != bundle.layout:
        raise LayoutMismatchError(f"plan {bundle.manifest.name}: its layout is not that of its recipe's model")


def privacy_of(plan: Plan) -> DifferentialPrivacy | None:
    """What a plan says of the privacy of its training.

    Raises:
        PlanError: something else than ``DifferentialPrivacy``, or the plan raised.
    """
    if not isinstance(plan, TrainingPlan):
        return None
    try:
        privacy = plan.privacy
    except PlanError:
        raise
    except Exception as error:
        raise PlanError(f"{type(plan).__name__}.privacy raised {type(error).__name__}") from error
    if privacy is not None and not isinstance(privacy, DifferentialPrivacy):
        raise PlanError(f"{type(plan).__name__}.privacy is of type {type(privacy).__name__}, not DifferentialPrivacy")
    if privacy is not None and privacy.epsilon is not None:
        raise PlanError(
            f"{type(plan).__name__}.privacy is one release by hand; a training says unit, max_norm, noise_multiplier,"
            " sampling_rate and units, and its epsilon follows"
        )
    return privacy


def construct(plan_class: type[Plan], values: Mapping[str, Setting]) -> tuple[Plan, DataSpec]:
    """The plan with these settings, and the data that it asks for.

    Raises:
        PlanError: the settings do not fit the plan, or its constructor raised.
    """
    try:
        plan = plan_class(**values)
        return plan, plan.data
    except PlanError:
        raise
    except Exception as error:
        raise PlanError(f"{plan_class.__name__} cannot be made: it raised {type(error).__name__}") from error


def plan_class_of(source: bytes, path: str, class_name: str | None = None) -> type[Plan]:
    """Run a plan's source and return its plan class.

    Args:
        source: the text, UTF-8.
        path: shown in tracebacks.
        class_name: which class; without it the text must hold exactly one plan.

    Raises:
        PlanError: the source raises, or does not hold exactly one such class.
    """
    module = _run(source, path)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, TrainingPlan | ArrayPlan)
        and value.__module__ == module.__name__
    ]
    if class_name is not None:
        found = [value for value in found if value.__name__ == class_name]
    if len(found) != 1:
        wanted = class_name or "subclass of TrainingPlan or ArrayPlan"
        raise PlanError(f"{path}: expected exactly one {wanted}, found {len(found)}")
    if inspect.isabstract(found[0]):
        missing = ", ".join(sorted(found[0].__abstractmethods__))
        raise PlanError(f"{path}: {found[0].__name__} does not define {missing}")
    return found[0]


def _run(source: bytes, path: str) -> types.ModuleType:
    stem = PurePosixPath(path).stem
    name = f"fedveil_plan_{hashlib.sha256(source).hexdigest()[:12]}_{stem if stem.isidentifier() else 'plan'}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module  # dataclasses look their module up while they are made
    try:
        text = source.decode()
        # So that tracebacks in the site's log show the plan's lines.
        linecache.cache[f"<plan {path}>"] = (len(text), None, text.splitlines(keepends=True), f"<plan {path}>")
        exec(compile(text, f"<plan {path}>", "exec"), vars(module))  # noqa: S102 - a plan is code; its hash was checked
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise TrainingError(f"{path} cannot be run: it raised {type(error).__name__}{line}") from error
    return module
