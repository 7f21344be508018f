"""Which tensors of a torch model travel, and in which role.

    float32 parameter       PARAMETER, or site-local
    float32 buffer          BUFFER (running statistics), or site-local
    integer, boolean        carried exactly, never averaged; training may not change it, save BatchNorm's counter
    any other dtype         refused by name: nothing is cast silently
    SCAFFOLD                one CONTROL entry "control/NAME" for each trained parameter that travels

One tensor under two names (tied weights) travels once, under its first name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]  # it has no stub

from ..utils.errors import LayoutMismatchError, PlanError
from ..utils.tensors import ExactEntry, Layout, Role, exact_dtype
from .plans import BATCH_NORM_LAYERS, TrainingPlan

CONTROL_PREFIX = "control/"


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """A model's own tensors by name, sorted by what happens to them. They are the model's: writing writes to it."""

    floats: dict[str, torch.Tensor]  # in the layout's vector
    exact: dict[str, torch.Tensor]  # carried bit by bit
    local: dict[str, torch.Tensor]  # stay at the site
    controlled: tuple[str, ...]  # parameters with a control variate
    counters: frozenset[str]  # BatchNorm's num_batches_tracked: training changes it, nothing is averaged
    layout: Layout


def tensors_of(model: torch.nn.Module, plan: TrainingPlan) -> ModelTensors:
    """Sort a model's tensors and lay them out.

    Raises:
        PlanError: a tensor that cannot travel; the message names it and says why.
    """
    local_names = _local_names(model, plan.site_local)
    floats: dict[str, torch.Tensor] = {}
    exact: dict[str, torch.Tensor] = {}
    local: dict[str, torch.Tensor] = {}
    for name, tensor in _untied(model).items():
        if name in local_names:
            local[name] = tensor
        elif tensor.dtype is torch.float32:
            floats[name] = tensor
        elif _exact_code(tensor) is not None:
            exact[name] = tensor
        else:
            raise PlanError(
                f"{name} is {_dtype_name(tensor)}: a model's tensors are float32, or integers and booleans that do not"
                " change; convert the model with .float(), or keep the tensor at the site with site_local"
            )
    if not floats:
        raise PlanError("the model has no float32 tensor that leaves the site: there is nothing to learn together")
    controlled = tuple(n for n, t in floats.items() if plan.settings.scaffold and _is_trained(t))
    placed = [(n, tuple(t.shape), _role(t)) for n, t in floats.items()]
    placed += [(CONTROL_PREFIX + n, tuple(floats[n].shape), Role.CONTROL) for n in controlled]
    carried = [ExactEntry(n, tuple(t.shape), _exact_code(t) or "") for n, t in exact.items()]
    counters = _counters(model, frozenset(local))
    return ModelTensors(floats, exact, local, controlled, counters, Layout.of(placed, carried))


def require_layout(found: Layout, expected: Layout, what: str) -> None:
    """Refuse a model that is not the plan's.

    Raises:
        LayoutMismatchError: says where the two first differ.
    """
    if found == expected:
        return
    ours: list[object] = [*expected.entries, *expected.exact]
    theirs: list[object] = [*found.entries, *found.exact]
    for want, got in zip(ours, theirs, strict=False):
        if want != got:
            raise LayoutMismatchError(f"{what}: expected {want}, found {got}")
    raise LayoutMismatchError(f"{what}: expected {len(ours)} tensors, found {len(theirs)}")


def _untied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    seen: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise PlanError(f"{name} is extra state of a module, not a tensor; it cannot travel")
        if isinstance(tensor, UninitializedTensorMixin):
            raise PlanError(f"{name} has no shape yet: run a lazy module once in model()")
        if id(tensor) not in seen:
            seen[id(tensor)] = name
            tensors[name] = tensor
    _refuse_overlaps(tensors)
    return tensors


def _refuse_overlaps(tensors: dict[str, torch.Tensor]) -> None:
    """Two different tensors in one piece of memory would be trained as one and averaged as two."""
    spans = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), n) for n, t in tensors.items())
    end, owner = 0, ""
    for start, stop, name in spans:
        if start < end and stop > start:
            raise PlanError(f"{name} shares memory with {owner}; tie weights by using one Parameter twice")
        if stop > end:
            end, owner = stop, name


def _local_names(model: torch.nn.Module, patterns: Iterable[str]) -> set[str]:
    names: set[str] = set()
    everything = list(model.state_dict())
    for pattern in patterns:
        if pattern == BATCH_NORM_LAYERS:
            found = {f"{p}.{n}" if p else n for p, norm in _norms(model) for n in norm.state_dict()}
        else:
            found = set(fnmatch.filter(everything, pattern))
        if not found:
            raise PlanError(
                f"site_local: no tensor matches {pattern!r}; the model has {', '.join(everything[:8])}, ..."
            )
        names |= found
    return names


def _norms(model: torch.nn.Module) -> list[tuple[str, _NormBase]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _NormBase)]


def _counters(model: torch.nn.Module, local: frozenset[str]) -> frozenset[str]:
    names = set()
    for prefix, norm in _norms(model):
        name = f"{prefix}.num_batches_tracked" if prefix else "num_batches_tracked"
        if norm.num_batches_tracked is None or name in local:
            continue
        if norm.momentum is None:
            raise PlanError(
                f"{prefix or 'the model'}: BatchNorm with momentum=None weighs by its counter, which is not averaged;"
                " give it a momentum, or keep the layer at the site with site_local"
            )
        names.add(name)
    return frozenset(names)


def _is_trained(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad


def _role(tensor: torch.Tensor) -> Role:
    return Role.PARAMETER if isinstance(tensor, torch.nn.Parameter) else Role.BUFFER


def _exact_code(tensor: torch.Tensor) -> str | None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized:
        return None
    try:
        return exact_dtype(np.dtype(_dtype_name(tensor)))
    except TypeError:
        return None


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
