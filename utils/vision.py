"""The one door to torchvision, and to what stands on it.

torchvision from the registry is a CUDA build: beside a CPU build of torch its import raises ``operator
torchvision::nms does not exist``, because its compiled operators cannot be loaded. Transforms, datasets and models
need none of them, so the two operators' schemas are declared and the import is tried again.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

__all__ = ["load", "models", "torchvision", "transforms"]

_MISSING = "torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # a library's schemas live as long as it does


def load(name: str = "torchvision") -> ModuleType:
    """Import torchvision, one of its modules, or a package that imports it (torchmetrics, lpips).

    >>> load("torchvision.models").resnet18(num_classes=2).fc.out_features
    2
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
    _forget("torchvision", name.partition(".")[0])
    if not _declared:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _declared.append(library)
    return importlib.import_module(name)


def _forget(*packages: str) -> None:
    """Drop modules whose import was cut short, so that the next one runs them whole."""
    for module in list(sys.modules):
        if module.partition(".")[0] in packages:
            del sys.modules[module]


torchvision = load()
models = load("torchvision.models")
transforms = load("torchvision.transforms")
