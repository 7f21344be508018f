"""Which plans may train with differential privacy: checked when a plan is built, before any hospital hears of it.

Layers are judged by the validator of Opacus (the extra ``dp``), and one private step is rehearsed on made-up examples,
since what a layer does inside is not in its name. Sites need no extra for that: they take the manifest's word and
refuse, after training, what changed without noise.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase

from ..utils.data_spec import DataKind, DataSpec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import FederationError, PlanError
from ..utils.privacy.noise import SystemNoise
from .plan_calls import calling
from .plan_randomness import deterministic
from .plans import TrainingPlan
from .private_training import PrivateGradient
from .records import LoadedDataset
from .splits import Split

_SEED = 0
_PATIENTS, _IMAGES_EACH = 2, 2
_BY_OTHER_MEANS = ("LSTM", "GRU", "RNN", "MultiheadAttention")
"""The validator refuses them for its hooks' sake; here each unit's gradient is autograd's own."""


def require_private(plan: TrainingPlan, data: DataSpec, privacy: DifferentialPrivacy) -> None:
    """Refuse a plan whose training cannot be what ``privacy`` says.

    Raises:
        PlanError: a layer that mixes patients or keeps statistics of them, a model that trains nothing, settings that
            contradict each other, or training that fails on made-up examples; the message names the layer. Also where
            the extra ``dp`` is not installed.
    """
    if plan.settings.local_epochs != 1:
        raise PlanError(
            f"local_epochs is {plan.settings.local_epochs}, and with privacy it counts nothing: leave it at 1, and say"
            " in privacy how many steps a round has"
        )
    if data.kind is DataKind.NONE:
        raise PlanError("the plan declares privacy and reads no data: there is nobody to protect")
    with deterministic(_SEED):
        with calling("model()"):
            model = plan.model()
        model.train()
        _require_layers(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise PlanError("the plan declares privacy, and its model has no parameter that is trained")
        _rehearse(plan, model, data, privacy)


def _require_layers(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and (
            module.track_running_stats or "InstanceNorm" not in type(module).__name__
        ):
            raise PlanError(
                f"{name or 'the model'} is {type(module).__name__}: it mixes the examples of a batch, or keeps"
                " statistics of them without noise, which differential privacy forbids, also with site_local; use"
                " GroupNorm or LayerNorm"
            )
    errors = [error for error in _validator().validate(model, strict=False) if not _is_trainable_here(error)]
    if errors:
        raise PlanError(f"Opacus refuses the model for private training: {str(errors[0])[:300]}")


def _is_trainable_here(error: Exception) -> bool:
    return any(name in str(error) for name in _BY_OTHER_MEANS)


def _validator() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.validators import ModuleValidator
    except ImportError as error:
        raise PlanError(
            "a plan with differential privacy is checked with Opacus, which is not installed here;"
            " `pip install 'fedveil[dp]'` brings it"
        ) from error
    return ModuleValidator


def _rehearse(plan: TrainingPlan, model: torch.nn.Module, data: DataSpec, privacy: DifferentialPrivacy) -> None:
    """One noised step of two made-up patients with two examples each."""
    count = _PATIENTS * _IMAGES_EACH
    features = np.linspace(0, 1, count * math.prod(data.shape), dtype=np.float32).reshape(count, *data.shape)
    labels = np.arange(count, dtype=np.int64) % max(1, len(data.classes))
    split = np.full(count, Split.TRAIN, np.uint8)
    made_up = LoadedDataset(features, labels, split, np.repeat(np.arange(_PATIENTS), _IMAGES_EACH))
    with _as_plan_error():
        gradient = PrivateGradient(plan, model, made_up, privacy, _SEED, torch.device("cpu"), _Everybody())
        gradient.put(1)
        gradient.require_untouched()


class _Everybody(SystemNoise):
    """Draws every unit, so that the rehearsal sees each."""

    def random(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """(size,): zeros, below any rate."""
        return np.zeros(size)


@contextlib.contextmanager
def _as_plan_error() -> Iterator[None]:
    try:
        yield
    except FederationError as error:
        raise PlanError(f"the plan cannot be trained privately: a step on made-up examples failed: {error}") from error
