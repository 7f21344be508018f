"""Score a model on images that no site has: exact area under the ROC curve, and accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..envoy.plan_loading import plan_of
from ..envoy.plans import TrainingPlan
from ..utils.errors import PlanError
from ..utils.plan_bundle import Bundle
from .chest_xrays import Part

_BATCH = 256


@dataclass(frozen=True, slots=True)
class Score:
    """On the test part."""

    auc: float
    accuracy: float


def score(bundle: Bundle, model: bytes, part: Part) -> Score:
    """Score a model of a two-class plan.

    Args:
        bundle: the plan.
        model: a safetensors file's content.
        part: images (count, size, size) uint8 and labels.

    Raises:
        PlanError: the plan is no ``TrainingPlan``, or keeps layers at the sites, so that one model is not all.
    """
    import torch
    from safetensors.torch import load
    from sklearn.metrics import roc_auc_score

    plan = plan_of(bundle)
    if not isinstance(plan, TrainingPlan):
        raise PlanError(f"plan {bundle.manifest.name} is no TrainingPlan; the demo scores those")
    network = plan.model()
    tensors = {name: value for name, value in load(model).items() if not name.startswith("control/")}
    missing = network.load_state_dict(tensors, strict=False).missing_keys
    if missing:
        raise PlanError(f"plan {bundle.manifest.name} keeps {len(missing)} tensors at the sites; score it there")
    network.eval()
    images = torch.from_numpy(part.images[:, None].astype(np.float32) / 255)
    with torch.inference_mode():
        scores = torch.cat([network(batch).softmax(1) for batch in torch.split(images, _BATCH)]).numpy()
    right = (scores.argmax(1) == part.labels).mean()
    return Score(float(roc_auc_score(part.labels, scores[:, 1])), float(right))
