"""One round of local training with numpy alone: the framework's half of an ``ArrayPlan``.

The plan reads the federation's model as views of its file and its update is written where it is sent from, so that
a round costs no copy that the plan does not make itself. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.data_spec import DataKind
from ..utils.errors import DatasetError, LayoutMismatchError, PlanError, TrainingError, UnsendableUpdateError
from ..utils.messages import TaskKind
from ..utils.metrics import MetricSum
from ..utils.tensors import ExactEntry, Layout, Role, Vector, exact_arrays, exact_bytes, exact_dtype, named_views
from .orders import CellsOrder, WorkResult
from .plan_calls import calling, collect_metrics, of_test_split
from .plans import ArrayPlan, Arrays
from .records import LoadedDataset
from .splits import Split


@dataclass(frozen=True, slots=True)
class ArrayRound:
    """What one round of numpy training is given."""

    kind: TaskKind
    round_seed: int
    layout: Layout
    vector: Vector  # the federation's model; only read
    exact: bytes
    data: LoadedDataset
    cells: CellsOrder | None = None  # held-out examples that are evaluated apart


def run_round(plan: ArrayPlan, given: ArrayRound, out: Vector | None) -> WorkResult:
    """Evaluate, and train if that was asked.

    Args:
        plan: the approved plan.
        given: the federation's model and the site's data.
        out: takes the update, shape (layout.size,); None for an evaluation.

    Raises:
        TrainingError: the plan raised, or gave no number of examples.
        LayoutMismatchError: the new weights have other names, shapes or dtypes.
        UnsendableUpdateError: training changed an integer or boolean array.
    """
    if plan.settings.proximal_mu or plan.settings.scaffold:
        raise PlanError("an ArrayPlan steps by itself: proximal_mu and scaffold are for a TrainingPlan")
    weights = _weights(given)
    metrics = _metrics(plan, weights, given, Split.VALIDATION)
    cells = _cells(plan, weights, given)
    if given.kind is TaskKind.EVALUATE or out is None:
        test = () if _is_dataless(plan) else _metrics(plan, weights, given, Split.TEST)
        held = int(np.count_nonzero(np.isin(given.data.split, (Split.VALIDATION, Split.TEST))))
        return WorkResult(held, metrics + of_test_split(test), cells)
    examples = _examples(given.data, Split.TRAIN)
    if not len(examples) and not _is_dataless(plan):
        raise DatasetError("the dataset has no training example; check its splits with: envoy data check")
    return WorkResult(_train(plan, weights, given, examples, out), metrics, cells)


def layout_of(arrays: Arrays) -> tuple[Layout, Vector, bytes]:
    """Lay named arrays out; their values as a model file holds them.

    Raises:
        PlanError: something else than float32, integer or boolean arrays; the message names it.
    """
    floats: dict[str, NDArray[Any]] = {}
    exact: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise PlanError(f"initial(): {name} is {type(array).__name__}, expected a numpy array")
        if array.dtype == np.float32:
            floats[name] = array
        elif exact_dtype(array.dtype) is not None:
            exact[name] = array
        else:
            raise PlanError(f"initial(): {name} is {array.dtype}; arrays are float32, or integers and booleans")
    if not any(array.size for array in floats.values()):
        raise PlanError("initial() holds no float32 array: there is nothing to learn together")
    entries = [ExactEntry(name, array.shape, exact_dtype(array.dtype) or "") for name, array in exact.items()]
    layout = Layout.of([(name, array.shape, Role.PARAMETER) for name, array in floats.items()], entries)
    vector = np.empty(layout.size, np.float32)
    for entry, view in named_views(layout, vector):
        view[...] = floats[entry.name]
    return layout, vector, exact_bytes(layout, exact)


def _train(plan: ArrayPlan, weights: Arrays, given: ArrayRound, examples: LoadedDataset, out: Vector) -> int:
    rng = np.random.default_rng(given.round_seed)
    views = {entry.name: view for entry, view in named_views(given.layout, out)}
    if type(plan).update is not ArrayPlan.update:
        with calling("update"):
            number = plan.update(weights, views, examples, rng)
    else:
        with calling("train"):
            local, number = plan.train(weights, examples, rng)
        _require_same_names(local, weights)
        for name, view in views.items():
            np.subtract(_fitting(name, local[name], weights[name]), weights[name], out=view)
        for entry in given.layout.exact:
            if not np.array_equal(_fitting(entry.name, local[entry.name], weights[entry.name]), weights[entry.name]):
                raise UnsendableUpdateError(f"training changed {entry.name}: integers and booleans are not averaged")
    if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1:
        raise TrainingError("training gave no number of examples; expected a whole number of at least 1")
    return int(number)


def _weights(given: ArrayRound) -> dict[str, NDArray[Any]]:
    vector = given.vector.view()
    vector.flags.writeable = False
    weights: dict[str, NDArray[Any]] = {entry.name: view for entry, view in named_views(given.layout, vector)}
    return weights | exact_arrays(given.layout, given.exact)


def _require_same_names(local: object, weights: Arrays) -> None:
    if not isinstance(local, Mapping):
        raise TrainingError(f"train returned {type(local).__name__}, expected named arrays and a number of examples")
    if set(local) != set(weights):
        odd = sorted(map(str, set(local) ^ set(weights)))
        raise LayoutMismatchError(f"train returned other arrays than it was given; they differ in {', '.join(odd[:5])}")


def _fitting(name: str, array: object, weight: NDArray[Any]) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.shape != weight.shape or array.dtype != weight.dtype:
        shape = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise LayoutMismatchError(f"train returned {name} as {shape}, expected {weight.dtype} {weight.shape}")
    return array


def _metrics(plan: ArrayPlan, weights: Arrays, given: ArrayRound, split: Split) -> tuple[MetricSum, ...]:
    examples = _examples(given.data, split)
    if not len(examples) and not _is_dataless(plan):
        return ()
    return _metrics_of(plan, weights, examples)


def _cells(plan: ArrayPlan, weights: Arrays, given: ArrayRound) -> dict[tuple[int, int], tuple[MetricSum, ...]]:
    """Metrics of each cell that the site may tell of."""
    asked = given.cells
    if asked is None:
        return {}
    found = {}
    for place in asked.cells:
        chosen = given.data.cell(asked.split, *place)
        if len(chosen):
            features, labels = _scaled(given.data.features[chosen]), given.data.labels[chosen]
            held = LoadedDataset(features, labels, np.full(len(chosen), asked.split, np.uint8))
            found[place] = _metrics_of(plan, weights, held)
    return found


def _metrics_of(plan: ArrayPlan, weights: Arrays, examples: LoadedDataset) -> tuple[MetricSum, ...]:
    with calling("evaluate"):
        metrics = plan.evaluate(weights, examples)
    return collect_metrics(metrics, "evaluate")


def _examples(data: LoadedDataset, split: Split) -> LoadedDataset:
    features, labels = data.part(split)
    return LoadedDataset(_scaled(features), labels, np.full(len(labels), split, np.uint8))


def _scaled(features: NDArray[Any]) -> NDArray[np.float32]:
    return features.astype(np.float32) / np.float32(255) if features.dtype == np.uint8 else features


def _is_dataless(plan: ArrayPlan) -> bool:
    return plan.data.kind is DataKind.NONE
