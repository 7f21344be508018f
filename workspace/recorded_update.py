"""An update as a real federation left it on disk, made into what an attacker observes.

Two files hold one: ``work/update.f32`` in an envoy's folder (raw float32) and ``uploads/NAME.spool`` in a director's
(a header, then the same bytes). Neither says what the numbers mean: the plan's bundle does, with its layout, its model
and its settings. Opening a bundle runs the plan's own code on this machine. What a director holds of a secure sum is no
update but a masked vector (``masked_update``), and is remarked on as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..director.spool import HEADER_BYTES
from ..envoy.initial_weights import INITIAL_SEED
from ..envoy.layouts import tensors_of
from ..envoy.plan_calls import calling
from ..envoy.plan_loading import plan_of
from ..envoy.plan_randomness import deterministic
from ..envoy.plans import TrainingPlan
from ..gradient_leakage.threat_model import Granted, ImageDomain, LocalTraining, Observation, SentKind
from ..utils.data_spec import DataKind
from ..utils.errors import AttackError, LengthMismatchError, NonFiniteUpdateError, StorageError
from ..utils.plan_bundle import Bundle, open_bundle
from ..utils.tensors import Layout, Role, Vector, exact_arrays, named_views, read_model
from .attacked_models import num_classes_of
from .masked_update import masked_update


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """One recorded update with what the plan says of it."""

    observation: Observation
    remarks: tuple[str, ...]  # where the site's training was another than the attacks assume


def read_update(path: Path, layout: Layout) -> bytes:
    """The bytes that the envoy sent.

    Raises:
        StorageError: the file cannot be read, or the upload never became whole.
        LengthMismatchError: it is an update of another layout.
        NonFiniteUpdateError: it holds NaN or infinity.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"the update {path} cannot be read: {error.strerror}") from error
    sent = content if len(content) == layout.num_bytes else _of_spool(path, content, layout)
    if not np.isfinite(np.frombuffer(sent, "<f4")).all():
        raise NonFiniteUpdateError(f"{path} holds NaN or infinity: there is nothing to match")
    return sent


def _of_spool(path: Path, content: bytes, layout: Layout) -> bytes:
    if len(content) != HEADER_BYTES + layout.num_bytes:
        raise LengthMismatchError(
            f"{path} has {len(content)} bytes; an update of this plan has {layout.num_bytes} ({layout.size} float32), "
            f"a director's spool of one {HEADER_BYTES} more"
        )
    arrived = int.from_bytes(content[32:40], "little")
    if arrived != layout.num_bytes:
        raise StorageError(f"{path}: only {arrived} of {layout.num_bytes} bytes of this upload had arrived")
    return content[HEADER_BYTES:]


def recorded(update: Path, plan: Path, weights: Path | None, num_examples: int, device: torch.device) -> Recorded:
    """What a director that keeps to the protocol knows of one update.

    Args:
        update: the file.
        plan: the bundle's folder.
        weights: the model that the site began with; None for the bundle's initial one.
        num_examples: that made the update.
        device: of the model.

    Raises:
        AttackError: the plan trains no torch model on images.
        FederationError: a file is missing, damaged, or of another layout; or the plan's code raised.
    """
    bundle = open_bundle(plan)
    training = plan_of(bundle)
    if not isinstance(training, TrainingPlan) or training.data.kind is not DataKind.IMAGES:
        raise AttackError(f"plan {bundle.manifest.name} trains no torch model on images; the attacks need one")
    masked = masked_update(update, bundle.layout)
    sent = read_update(update, bundle.layout) if masked is None else masked.as_update(num_examples).tobytes()
    model = _model_of(training, bundle, weights).to(device)
    kept = _without_controls(bundle.layout)
    channels, height, width = training.data.shape
    classes = num_classes_of(model, bundle.manifest.name, torch.zeros(2, channels, height, width))
    settings = training.settings
    rate, remarks = _plain_rate(training, model)
    remarks += [] if masked is None else [masked.remark]
    if settings.proximal_mu:
        remarks.append(f"the plan adds a proximal term (mu {settings.proximal_mu:g})")
    if settings.scaffold:
        remarks.append("the plan corrects by control variates (SCAFFOLD); they are left out of what is matched")
    return Recorded(
        Observation(
            sent=sent[: kept.num_bytes],
            layout=kept,
            kind=SentKind.UPDATE,
            model=model,
            domain=ImageDomain((channels, height, width), classes),
            num_examples=num_examples,
            granted=Granted(local_steps=LocalTraining(settings.local_epochs, settings.batch_size), learning_rate=rate),
        ),
        tuple(remarks),
    )


def _model_of(plan: TrainingPlan, bundle: Bundle, weights: Path | None) -> nn.Module:
    """The plan's model with the federation's weights, in the mode in which sites train it."""
    with deterministic(INITIAL_SEED), calling("model()"):
        model = plan.model()
    tensors = tensors_of(model, plan)
    vector, exact = bundle.initial() if weights is None else _weights_of(weights, bundle.layout)
    with torch.no_grad():
        for entry, view in named_views(bundle.layout, vector):
            if entry.name in tensors.floats:
                tensors.floats[entry.name].copy_(torch.from_numpy(np.array(view)))
        for name, array in exact_arrays(bundle.layout, exact).items():
            tensors.exact[name].copy_(torch.from_numpy(np.array(array)))
    return model.train()


def _weights_of(path: Path, layout: Layout) -> tuple[Vector, bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"the model {path} cannot be read: {error.strerror}") from error
    return read_model(layout, content)


def _without_controls(layout: Layout) -> Layout:
    """Parameters and buffers; SCAFFOLD's control variates come after them."""
    entries = [entry for entry in layout.entries if entry.role is not Role.CONTROL]
    return Layout.of((entry.name, entry.shape, entry.role) for entry in entries)


def _plain_rate(plan: TrainingPlan, model: nn.Module) -> tuple[float | None, list[str]]:
    """The learning rate where the site takes plain steps; else none, and a remark."""
    with calling("optimizer()"):
        optimizer = plan.optimizer(model)
    groups: Sequence[dict[str, object]] = optimizer.param_groups
    rates = {group["lr"] for group in groups}
    dressed = [name for name in ("momentum", "weight_decay") if any(group.get(name) for group in groups)]
    if type(optimizer) is torch.optim.SGD and len(rates) == 1 and not dressed:
        return float(str(rates.pop())), []
    words = type(optimizer).__name__ + (f" with {' and '.join(dressed)}" if dressed else "")
    remark = f"the plan trains with {words}, not plain SGD: its updates are no gradients, and matching them finds less"
    return None, [remark]
