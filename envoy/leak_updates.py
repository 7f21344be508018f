"""The leak test in its child, first half: what the plan's own code makes of each canary alone.

Nothing of the attacks is loaded here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..utils.errors import FederationError, PlanError, TrainingError
from ..utils.messages import TaskKind
from ..utils.plan_bundle import Bundle, open_bundle
from ..utils.tensors import Digest, Layout, exact_arrays, named_views
from .canaries import NUM_TARGETS
from .layouts import require_layout, tensors_of
from .leak_test import SEEN_FILE, Sent
from .plan_calls import calling
from .plan_loading import plan_of
from .plan_randomness import deterministic
from .plans import TrainingPlan
from .records import LoadedDataset
from .splits import Split
from .training import LocalRound, run_round

_SEED = 7
Emit = Callable[[dict[str, Any]], None]
Keep = Callable[[str, NDArray[Any]], None]


def make_updates(order: dict[str, Any], folder: Path, emit: Emit, keep: Keep) -> None:
    """Keep ``gradient.npy`` and, where the budget allows, ``training.npy``: (targets, layout.size) float32 each.

    Raises:
        PlanError: the plan is none that can be measured, or raised.
    """
    torch.set_num_threads(1)
    bundle, plan = opened(order)
    images, classes = canaries_in(folder)
    model = published_model(plan, bundle)
    labels = classes % num_classes_of(model, images)
    made = [_gradient(plan, model, bundle.layout, images[at : at + 1], labels[at]) for at in range(NUM_TARGETS)]
    keep(SEEN_FILE, np.concatenate([seen for _, seen in made]))
    keep("gradient.npy", np.stack([gradient for gradient, _ in made]))
    emit({"made": Sent.GRADIENT.value})
    if bundle.manifest.privacy is not None:
        reason = "training adds noise to every patient's gradient; the gradient alone was measured, without that noise"
        emit({"made": "", "reason": reason})
        return
    try:
        trained = [_training(plan, bundle, images[at : at + 1], labels[at : at + 1]) for at in range(NUM_TARGETS)]
    except FederationError as error:  # one image may be too few for this plan: batch normalisation
        emit({"made": "", "reason": str(error)})
        return
    keep("training.npy", np.stack(trained))
    emit({"made": Sent.TRAINING.value})


def published_model(plan: TrainingPlan, bundle: Bundle) -> torch.nn.Module:
    """The plan's model with the bundle's initial weights, in train mode."""
    with deterministic(_SEED), calling("model()"):
        model = plan.model().cpu()
    tensors, (vector, exact) = tensors_of(model, plan), bundle.initial()
    require_layout(tensors.layout, bundle.layout, "model() gives another model than the plan's bundle holds")
    with torch.no_grad():
        for entry, view in named_views(bundle.layout, vector):
            if entry.name in tensors.floats:
                tensors.floats[entry.name].copy_(torch.from_numpy(view.copy()))
        for name, array in exact_arrays(bundle.layout, exact).items():
            tensors.exact[name].copy_(torch.from_numpy(array.copy()))
    return model.train()


def num_classes_of(model: torch.nn.Module, images: NDArray[np.float32]) -> int:
    """Logits that the model gives for an image.

    Raises:
        PlanError: something else than two or more of them.
    """
    model.eval()
    with torch.no_grad(), calling("model"):
        logits = model(torch.from_numpy(images[:1]))
    model.train()
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        raise PlanError("the model gives no logits of two or more classes, which the attacks start from")
    return int(logits.shape[1])


def _gradient(
    plan: TrainingPlan, model: torch.nn.Module, layout: Layout, image: NDArray[np.float32], label: np.int64
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the plan's own loss of one image, with zeros in buffers; and the image as the model saw it.

    A plan that shifts and turns its images gives the turned ones away: these are what is sought.
    """
    model.zero_grad(set_to_none=True)
    entered: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    with deterministic(_SEED):
        with calling("train_step"):
            loss = plan.train_step(model, (torch.from_numpy(image), torch.tensor([int(label)])))
        if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
            raise TrainingError("train_step returned no scalar loss that requires grad")
        with calling("backward of train_step"):
            loss.backward()  # type: ignore[no-untyped-call]
    hook.remove()
    gradient = np.zeros(layout.size, np.float32)
    for entry, view in named_views(layout, gradient):
        own = dict(model.named_parameters()).get(entry.name)
        if own is not None and own.grad is not None:
            view[...] = own.grad.numpy()
    is_image = bool(entered) and isinstance(entered[0], torch.Tensor) and entered[0].shape == image.shape
    seen = entered[0].detach().float().clamp(0, 1).numpy() if is_image else image
    return gradient, seen


def _training(
    plan: TrainingPlan, bundle: Bundle, image: NDArray[np.float32], label: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Local minus global of the plan's own local training on one image."""
    vector, exact = bundle.initial()
    out = np.zeros(bundle.layout.size, np.float32)
    data = LoadedDataset(image, label, np.full(1, Split.TRAIN, np.uint8))
    given = LocalRound(TaskKind.TRAIN, _SEED, _SEED, bundle.layout, vector, exact, data, device="cpu")
    run_round(plan, given, out)
    return out


def opened(order: dict[str, Any]) -> tuple[Bundle, TrainingPlan]:
    """The order's plan.

    Raises:
        PlanError: it is none that the attacks read.
    """
    bundle = open_bundle(Path(order["bundle"]), Digest(order["plan"]))
    plan = plan_of(bundle)
    if not isinstance(plan, TrainingPlan):
        raise PlanError("the attacks read a torch model, and the plan has none")
    return bundle, plan


def canaries_in(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images and classes, the targets first."""
    with np.load(folder / "canaries.npz", allow_pickle=False) as arrays:
        return arrays["images"], arrays["classes"]
