"""A plan's layout and first weights, as its bundle holds them: the same plan always gives the same bits."""

from __future__ import annotations

import numpy as np

from ..utils.errors import PlanError
from ..utils.tensors import Layout, Vector, exact_bytes, named_views
from .array_training import layout_of
from .plan_calls import calling
from .plans import ArrayPlan, Plan, TrainingPlan

INITIAL_SEED = 0


def initial_of(plan: Plan) -> tuple[Layout, Vector, bytes]:
    """Make a plan's first model; control variates start at zero.

    Raises:
        TrainingError: the plan raised.
        PlanError: a tensor that cannot travel; the message names it.
    """
    if isinstance(plan, ArrayPlan):
        with calling("initial()"):
            arrays = plan.initial()
        return layout_of(arrays)
    if isinstance(plan, TrainingPlan):
        return _of_torch(plan)
    raise PlanError(f"{type(plan).__name__} is neither a TrainingPlan nor an ArrayPlan")


def _of_torch(plan: TrainingPlan) -> tuple[Layout, Vector, bytes]:
    from .layouts import tensors_of
    from .plan_randomness import deterministic

    with deterministic(INITIAL_SEED):
        with calling("model()"):
            model = plan.model()
        tensors = tensors_of(model, plan)
    vector = np.zeros(tensors.layout.size, np.float32)
    for entry, view in named_views(tensors.layout, vector):
        if entry.name in tensors.floats:
            view[...] = tensors.floats[entry.name].detach().cpu().numpy()
    if not np.isfinite(vector).all():
        raise PlanError("the model's initial weights hold NaN or infinity; initialise them in model()")
    exact = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.exact.items()}
    return tensors.layout, vector, exact_bytes(tensors.layout, exact)
