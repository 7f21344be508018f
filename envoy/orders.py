"""One order to train or to evaluate, and its outcome, as values that the worker process can be told.

The parent names files; the model and the update never go through a message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.fairness import FairnessTable
from ..utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from ..utils.metrics import MAX_METRICS, MetricKind, MetricSum
from ..utils.plan_bundle import Setting
from ..utils.tensors import Digest, canonical_json
from .records import DatasetRecord
from .subgroups import Asked


@dataclass(frozen=True, slots=True)
class CodecOrder:
    """The codec of a round, as the training process opens it again."""

    path: Path
    digest: Digest
    seed: bytes  # the round's, which draws its basis


@dataclass(frozen=True, slots=True)
class CellsOrder:
    """Which held-out examples are evaluated apart: those that may be told of, by numbers without a name."""

    split: int  # the code of a ``Split``
    cells: tuple[tuple[int, int], ...]  # column of ``LoadedDataset.groups`` and number in it; -1, 0: all


CellMetrics = Mapping[tuple[int, int], tuple[MetricSum, ...]]


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """Everything that a round of local work needs; the same order always gives the same update, a private one aside."""

    ref: TaskRef
    kind: TaskKind
    seed: bytes  # the run's
    envoy: EnvoyName
    bundle: Path  # folder of the plan, ``ref.plan``
    dataset: DatasetRecord | None  # None where the plan reads no data; not told to the child
    index_path: Path | None  # the dataset's index, beside its record; not told to the child
    model_path: Path  # safetensors; read, never written
    update_path: Path  # raw float32, local minus global; its bytes are overwritten
    state_folder: Path  # what stays at the site between rounds, and the worker's log
    device: str = "auto"  # auto, cpu or cuda
    threads: int = 1
    codec: CodecOrder | None = None  # of private training alone, which clips and adds noise in the code
    settings: Mapping[str, Setting] = field(default_factory=dict)  # that were changed since the plan was built
    fairness: Asked | None = None  # what the site tells by subgroups; not told to the child
    cells: CellsOrder | None = None  # which held-out examples are evaluated apart; added for the child

    def seed_for(self, purpose: str) -> int:
        """A seed of 63 bits: the same for each attempt of a round, another for each purpose, envoy and round."""
        text = canonical_json(["fedveil/local", purpose, self.seed.hex(), self.envoy, self.ref.round])
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1

    @property
    def model_seed(self) -> int:
        """For tensors that no model file holds (site-local layers): the same at every site and in every round."""
        text = canonical_json(["fedveil/local", "model", self.seed.hex()])
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


@dataclass(frozen=True, slots=True)
class WorkResult:
    """What a round of local work says beside the update's file."""

    num_examples: int
    metrics: tuple[MetricSum, ...]
    cells: CellMetrics = field(default_factory=dict)  # as the child measured them; never beyond the trainer
    fairness: FairnessTable | None = None  # what the site tells by subgroups: suppressed and rounded


def order_to_json(order: WorkOrder) -> dict[str, Any]:
    """The order as JSON values, for the child: of the dataset it gets the exposed file alone, never record or index."""
    return {
        "ref": [order.ref.run, order.ref.round, order.ref.attempt, order.ref.plan],
        "kind": order.kind.value,
        "seed": order.seed.hex(),
        "envoy": order.envoy,
        "bundle": str(order.bundle.absolute()),  # in its box the child is elsewhere
        "model_path": str(order.model_path),
        "update_path": str(order.update_path),
        "state_folder": str(order.state_folder),
        "device": order.device,
        "threads": order.threads,
        "codec": [str(order.codec.path), order.codec.digest, order.codec.seed.hex()] if order.codec else None,
        "settings": dict(order.settings),
        "cells": [order.cells.split, order.cells.cells] if order.cells else None,
    }


def order_from_json(document: Mapping[str, Any]) -> WorkOrder:
    """Read what ``order_to_json`` made, without the dataset; parent and child are one program: nothing is checked."""
    run, number, attempt, plan = document["ref"]
    codec, cells = document["codec"], document["cells"]
    return WorkOrder(
        ref=TaskRef(RunId(run), number, attempt, Digest(plan)),
        kind=TaskKind(document["kind"]),
        seed=bytes.fromhex(document["seed"]),
        envoy=EnvoyName(document["envoy"]),
        bundle=Path(document["bundle"]),
        dataset=None,
        index_path=None,
        model_path=Path(document["model_path"]),
        update_path=Path(document["update_path"]),
        state_folder=Path(document["state_folder"]),
        device=document["device"],
        threads=document["threads"],
        codec=CodecOrder(Path(codec[0]), Digest(codec[1]), bytes.fromhex(codec[2])) if codec else None,
        settings=document["settings"],
        cells=CellsOrder(cells[0], tuple((place, code) for place, code in cells[1])) if cells else None,
    )


def result_to_json(result: WorkResult) -> dict[str, Any]:
    """The result as JSON values."""
    said: dict[str, Any] = {"num_examples": result.num_examples, "metrics": _to_json(result.metrics)}
    if result.cells:
        said["cells"] = [[place, code, _to_json(metrics)] for (place, code), metrics in result.cells.items()]
    if result.fairness is not None:
        said["fairness"] = result.fairness.to_document()
    return said


def result_from_json(document: Mapping[str, Any]) -> WorkResult:
    """Read what ``result_to_json`` made.

    The plan's code runs in the process that wrote it, so it is read strictly.

    Raises:
        ValueError, TypeError, KeyError: not such a result.
    """
    number = document["num_examples"]
    if type(number) is not int or not 0 <= number < 1 << 53:
        raise ValueError("a number of examples is a whole number of at least 0")
    cells = {(int(place), int(code)): _metrics(rows) for place, code, rows in document.get("cells", ())}
    return WorkResult(
        number,
        _metrics(document["metrics"]),
        cells,
        FairnessTable.from_document(document["fairness"]) if "fairness" in document else None,
    )


def _to_json(metrics: tuple[MetricSum, ...]) -> list[Any]:
    return [[m.name, m.kind.value, m.values, m.weight] for m in metrics]


def _metrics(rows: Iterable[Any]) -> tuple[MetricSum, ...]:
    metrics = tuple(
        MetricSum(str(name), MetricKind(kind), tuple(float(v) for v in values), float(weight))
        for name, kind, values, weight in rows
    )
    if len(metrics) > MAX_METRICS:
        raise ValueError(f"more than {MAX_METRICS} metrics")
    return metrics
