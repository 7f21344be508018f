"""Score a model on images that no site has: exact area under the ROC curve, and accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..envoy.plan_loading import plan_of
from ..envoy.plans import TrainingPlan
from ..utils.errors import PlanError
from ..utils.plan_bundle import Bundle
from .chest_xrays import Images, Part

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
    from sklearn.metrics import roc_auc_score

    scores = class_scores(bundle, model, part.images)
    right = (scores.argmax(1) == part.labels).mean()
    return Score(float(roc_auc_score(part.labels, scores[:, 1])), float(right))


def class_scores(bundle: Bundle, model: bytes, images: Images) -> NDArray[np.float32]:
    """The probability of each class for each image, (count, classes).

    Raises:
        PlanError: as ``score``.
    """
    import torch
    from safetensors.torch import load

    plan = plan_of(bundle)
    if not isinstance(plan, TrainingPlan):
        raise PlanError(f"plan {bundle.manifest.name} is no TrainingPlan; the demo scores those")
    network = plan.model()
    tensors = {name: value for name, value in load(model).items() if not name.startswith("control/")}
    missing = network.load_state_dict(tensors, strict=False).missing_keys
    if missing:
        raise PlanError(f"plan {bundle.manifest.name} keeps {len(missing)} tensors at the sites; score it there")
    network.eval()
    pixels = torch.from_numpy(images[:, None].astype(np.float32) / 255)
    with torch.inference_mode():
        found: NDArray[np.float32] = torch.cat([network(x).softmax(1) for x in torch.split(pixels, _BATCH)]).numpy()
    return found
