"""Performs orders: opens the plan and the dataset once, then maps a model, trains, and leaves an update in its file.

One workbench serves one plan at a time. It runs in the worker process, or in the caller's own for simulations. What it
reads and writes beside the plan comes as open files (``order_files``, ``exposed_data``). torch is imported by the first
order of a ``TrainingPlan``, or by ``preload_torch`` while nobody waits.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping

from ..gradient_leakage.vae.codec import Codec, read_codec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import PlanError, StorageError
from ..utils.plan_bundle import Bundle, Setting, open_bundle
from ..utils.tensors import Layout, Vector, read_model
from . import array_training
from .exposed_data import exposed_for
from .order_files import OrderFiles, contents, whole, write
from .orders import WorkOrder, WorkResult
from .plan_loading import plan_of
from .plans import ArrayPlan, Plan, TrainingPlan
from .records import DatasetRecord, LoadedDataset
from .update_file import UpdateFile


def preload_torch() -> None:
    """Import torch and what trains with it: seconds that need not be part of the first round."""
    importlib.import_module(".training", __package__)
    import torch

    # The first optimizer and the first backward load as much again (torch imports its compiler for them).
    layer = torch.nn.Linear(1, 1)
    layer(torch.zeros(1, 1)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


class Workbench:
    """Performs one order after the other; what does not change between them is kept."""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._plan: Plan | None = None
        self._settings: Mapping[str, Setting] = {}  # that the plan was made with, over its manifest's
        self._dataset_key: tuple[DatasetRecord | None, str] | None = None
        self._dataset: LoadedDataset | None = None
        self._update_file = UpdateFile()

    def perform(self, order: WorkOrder, files: OrderFiles, exposed: LoadedDataset | None = None) -> WorkResult:
        """Carry one order out.

        Args:
            order: what is to be done.
            files: the order's, open.
            exposed: what the plan may see of the dataset; None: it is read here, from the order's record.

        Raises:
            PlanError: the plan is not what the order names, or failed; training errors are among these.
            DatasetError: the dataset is missing, or not what the plan declares.
            UnsendableUpdateError: what came out is no update.
            StorageError: no room for it.
        """
        bundle, plan = self._open(order)
        data = self._data(order, bundle) if exposed is None else exposed
        vector, exact = read_model(bundle.layout, contents(files.model, f"the model of {order.ref}"))
        out = None if files.update is None else self._update_file.vector(files.update, bundle.layout.size)
        if isinstance(plan, ArrayPlan):
            seed = order.seed_for("training")
            given = array_training.ArrayRound(order.kind, seed, bundle.layout, vector, exact, data, order.cells)
            return array_training.run_round(plan, given, out)
        if isinstance(plan, TrainingPlan):
            privacy = bundle.manifest.privacy
            return self._train_with_torch(order, files, plan, bundle.layout, (vector, exact), data, out, privacy)
        raise PlanError(f"{type(plan).__name__} is neither a TrainingPlan nor an ArrayPlan")

    def close(self) -> None:
        """Let go of the update's file."""
        self._update_file.close()

    def _open(self, order: WorkOrder) -> tuple[Bundle, Plan]:
        if self._bundle is None or self._bundle.digest != order.ref.plan:
            self._bundle = open_bundle(order.bundle, order.ref.plan)
            self._plan = self._dataset_key = None
        if self._plan is None or self._settings != order.settings:
            self._plan, self._settings = plan_of(self._bundle, order.settings), order.settings
        return self._bundle, self._plan

    def _data(self, order: WorkOrder, bundle: Bundle) -> LoadedDataset:
        key = (order.dataset, order.dataset.digest if order.dataset else "")
        if self._dataset is None or self._dataset_key != key:
            self._dataset, self._dataset_key = None, None  # before another comes, so that not both are in memory
            self._dataset = exposed_for(order, bundle.manifest.data, bundle.manifest.privacy)
            self._dataset_key = key
        return self._dataset

    def _train_with_torch(
        self,
        order: WorkOrder,
        files: OrderFiles,
        plan: TrainingPlan,
        layout: Layout,
        model: tuple[Vector, bytes],
        data: LoadedDataset,
        out: Vector | None,
        privacy: DifferentialPrivacy | None,
    ) -> WorkResult:
        from . import training

        given = training.LocalRound(
            kind=order.kind,
            model_seed=order.model_seed,
            round_seed=order.seed_for("training"),
            layout=layout,
            vector=model[0],
            exact=model[1],
            data=data,
            state={} if files.before is None else training.read_state(whole(files.before, "the site's state")),
            device=order.device,
            privacy=privacy,
            codec=_codec_of(order, files) if privacy is not None else None,
            cells=order.cells,
        )
        with _torch_threads(order.threads):
            result, state = training.run_round(plan, given, out)
        if state and files.after is not None:
            write(files.after, training.state_bytes(state), "the site's state")
        return result


@contextlib.contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Let this thread compute with so many, wherever it runs: sums of other lengths round to other bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _codec_of(order: WorkOrder, files: OrderFiles) -> Codec | None:
    """The round's codec, from the file that the envoy fetched."""
    if order.codec is None or files.codec is None:
        return None
    codec = read_codec(whole(files.codec, f"the codec of {order.ref}"))
    if codec.digest != order.codec.digest:
        raise StorageError(f"the codec of {order.ref} was changed after it was fetched")
    return codec.for_round(order.codec.seed)
