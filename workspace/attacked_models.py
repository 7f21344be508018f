"""The network that is attacked: one of the benchmark's by its name, or anybody's own as ``module:callable``."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..gradient_leakage.gradients import require_differentiable
from ..gradient_leakage.models import build
from ..gradient_leakage.threat_model import ImageDomain
from ..utils.errors import AttackError, ConfigError


def attacked_model(name: str, domain: ImageDomain, seed: int) -> nn.Module:
    """A model with fresh weights; the process's own generator stays as it was.

    Args:
        name: of the benchmark's models, or ``module:callable``. The module may lie in the current folder. The callable
            is given, by their names and as far as it has them, ``domain``, ``image_shape`` (channels, height, width)
            and ``num_classes``.
        domain: what it is to be made for.
        seed: of the weights.

    Raises:
        ConfigError: there is no such model, what was called did not return one, or it has no weights to train.
    """
    if ":" not in name:
        return build(name, domain, seed)
    made = _callable_named(name)
    model = made if isinstance(made, nn.Module) else _called(made, name, domain, seed)
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        raise ConfigError(f"model {name}: it is lazy and has no weights yet; run it once in your callable")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model {name}: it has no parameter that is trained, so no update tells anything")
    return copy.deepcopy(model) if model is made else model


def _called(made: Callable[..., Any], name: str, domain: ImageDomain, seed: int) -> nn.Module:
    offered = {"domain": domain, "image_shape": domain.shape, "num_classes": domain.num_classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = made(**{key: offered[key] for key in _accepted(made) if key in offered})
        except Exception as error:
            raise ConfigError(f"model {name}: calling it raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name}: it returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def num_classes_of(model: nn.Module, name: str, images: Tensor) -> int:
    """How many classes the model tells apart, found by running a copy of it on a batch.

    Args:
        model: stays as it is.
        name: for messages.
        images: (count, channels, height, width), of the size of a batch.

    Raises:
        AttackError: the model does not take such images, gives no row of finite numbers for each, or cannot be
            differentiated; then the layer is named.
    """
    tried, like = copy.deepcopy(model), next(model.parameters())
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            outputs = tried(images.to(like.device, like.dtype, copy=True))  # it may change them
    except Exception as error:
        raise AttackError(
            f"model {name} cannot be run on images of shape {tuple(images.shape)}: {type(error).__name__}: {error}"
        ) from error
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(images):
        raise AttackError(f"model {name} gives {found} for {len(images)} images; expected one logit a class for each")
    classes = int(outputs.shape[1])
    if not outputs.requires_grad:
        require_differentiable(model, ImageDomain((images.shape[1], images.shape[2], images.shape[3]), classes))
        raise AttackError(f"model {name}: no gradient comes back from its output, so no site can train it")
    if not bool(outputs.isfinite().all()):
        raise AttackError(f"model {name} gives NaN or infinity on these images, and so would its gradient be")
    return classes


def _callable_named(name: str) -> Callable[..., Any] | nn.Module:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"model {name}: expected module:callable")
    try:
        with _importing_from(Path.cwd()):
            module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(f"model {name}: importing {module_name} raised {type(error).__name__}: {error}") from error
    made = getattr(module, attribute, None)
    if made is None:
        raise ConfigError(f"model {name}: module {module_name} has no {attribute}")
    if not callable(made):
        raise ConfigError(f"model {name}: {attribute} is {type(made).__name__}; expected a callable or an nn.Module")
    found: Callable[..., Any] | nn.Module = made
    return found


def _accepted(made: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in named]


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
