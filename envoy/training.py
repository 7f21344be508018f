"""One round of local training with torch: the framework's half of a ``TrainingPlan``.

Evaluate the federation's model, train it on the site's examples, hand out local minus global. Backward, FedProx's
and SCAFFOLD's terms and the optimizer's step are here; loss, model and metrics are the plan's. The same inputs give
the same bits: every seed is drawn from the run's, and nothing is kept but the site's own state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..gradient_leakage.vae.codec import Codec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import (
    ConfigError,
    DatasetError,
    NonFiniteUpdateError,
    StorageError,
    TrainingError,
    UnsendableUpdateError,
)
from ..utils.messages import TaskKind
from ..utils.metrics import MetricSum, mean_of
from ..utils.privacy.noise import NoiseSource, SystemNoise
from ..utils.tensors import Layout, Vector, exact_arrays, named_views
from .batches import Batches, evaluation_batch_size
from .layouts import CONTROL_PREFIX, ModelTensors, require_layout, tensors_of
from .orders import CellsOrder, WorkResult
from .plan_calls import calling, collect_metrics, of_test_split
from .plan_randomness import deterministic
from .plans import TrainingPlan
from .private_training import PrivateGradient, require_loss
from .records import LoadedDataset
from .splits import Split

LOCAL_PREFIX = "local/"
PUBLIC_WEIGHT = 1
"""What a private plan's update weighs at every site: its number of examples would tell of one patient more."""
SiteState = Mapping[str, torch.Tensor]
"""Site-local tensors as ``local/NAME``, the site's control variate as ``control/NAME``; empty at first."""


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What one round of torch training is given."""

    kind: TaskKind
    model_seed: int
    round_seed: int
    layout: Layout
    vector: Vector  # the federation's model; only read
    exact: bytes
    data: LoadedDataset
    state: SiteState = field(default_factory=dict)
    device: str = "auto"
    privacy: DifferentialPrivacy | None = None  # what the manifest says, and so the plan
    noise: NoiseSource | None = None  # of private training; None: the operating system's
    codec: Codec | None = None  # the round's; private training clips and adds noise in its code
    cells: CellsOrder | None = None  # held-out examples that are evaluated apart; never of a private plan


def run_round(plan: TrainingPlan, given: LocalRound, out: Vector | None) -> tuple[WorkResult, SiteState]:
    """Evaluate, and train if that was asked.

    Args:
        plan: the approved plan.
        given: the federation's model and the site's data and state.
        out: takes the update, shape (layout.size,); None for an evaluation.

    Returns:
        What the site tells the director, and the site's new state.

    Raises:
        TrainingError: the plan raised, or its loss is not a scalar that requires grad.
        NonFiniteUpdateError: the loss or the update is NaN or infinite.
        LayoutMismatchError: the plan's model is not that of the plan's bundle.
        UnsendableUpdateError: training changed a tensor that is carried exactly, or one that has no noise.
    """
    if plan.privacy != given.privacy:
        raise TrainingError(f"the plan says privacy {plan.privacy}, and was approved with {given.privacy}")
    device = _device_of(given.device)
    with deterministic(given.model_seed):
        with calling("model()"):
            model = plan.model().to(device)
        tensors = tensors_of(model, plan)
        require_layout(tensors.layout, given.layout, "model() gives another model than the plan's bundle holds")
        _load(tensors, given)
        cells = _cells(plan, model, given, device)
        if given.kind is TaskKind.EVALUATE or out is None:
            return replace(_evaluation(plan, model, given, device), cells=cells), given.state
        if given.privacy is not None:
            torch.manual_seed(given.round_seed)
            private = _Training(plan, model, tensors, given, device)
            private.run_privately(given.privacy)
            return WorkResult(PUBLIC_WEIGHT, ()), private.finish(out)
        metrics = _metrics(plan, model, given, Split.VALIDATION, device)
        torch.manual_seed(given.round_seed)
        trained = _Training(plan, model, tensors, given, device)
        loss = trained.run()
        state = trained.finish(out)
    return WorkResult(loss[1], _with_loss(metrics, *loss), cells), state


class _Training:
    """Local epochs from the federation's model; lives for one round."""

    def __init__(
        self, plan: TrainingPlan, model: torch.nn.Module, tensors: ModelTensors, given: LocalRound, device: torch.device
    ) -> None:
        self._plan, self._model, self._given, self._device = plan, model, given, device
        self._settings = plan.settings
        self._start = {name: tensor.detach().clone() for name, tensor in tensors.floats.items()}
        self._start_exact = {name: tensor.detach().clone() for name, tensor in tensors.exact.items()}
        self._trained = {n: t for n, t in tensors.floats.items() if isinstance(t, torch.nn.Parameter)}
        self._controlled = tensors.controlled
        with calling("optimizer()"):
            self._optimizer = plan.optimizer(model)
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise TrainingError(f"optimizer() returned {type(self._optimizer).__name__}, expected a torch Optimizer")
        self._rates = _plain_rates(self._optimizer) if self._controlled else {}
        self._global_control = _control_of_vector(given, device) if self._controlled else {}
        self._own_control = {n: _of_state(given.state, CONTROL_PREFIX + n, c) for n, c in self._global_control.items()}
        self._steps = 0

    def run(self) -> tuple[float, int]:
        """Train; the sum of the last epoch's losses over its examples, and their number."""
        batches = _batches(self._given.data, Split.TRAIN, self._settings.batch_size, self._device)
        if not batches.num_examples:
            raise DatasetError("the dataset has no training example; check its splits with: envoy data check")
        shuffle = torch.Generator().manual_seed(self._given.round_seed)
        self._model.train()
        total = 0.0
        for epoch in range(1, self._settings.local_epochs + 1):
            total = 0.0
            for features, labels in batches.shuffled(shuffle):
                self._steps += 1
                where = f"train_step (epoch {epoch}, step {self._steps})"
                total += self._step((features, labels), where) * len(labels)
        return total, batches.num_examples

    def run_privately(self, privacy: DifferentialPrivacy) -> None:
        """Train by noised steps, as many as the manifest says, whatever the site has (Abadi et al. 2016)."""
        given = self._given
        self._model.train()
        gradient = PrivateGradient(
            self._plan,
            self._model,
            given.data,
            privacy,
            given.round_seed,
            self._device,
            given.noise or SystemNoise(),
            given.codec,
        )
        for step in range(1, privacy.steps + 1):
            self._steps += 1
            gradient.put(step)
            self._apply(f"step {step}")
        gradient.require_untouched()

    def _step(self, batch: tuple[torch.Tensor, torch.Tensor], where: str) -> float:
        with calling(where):
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._plan.train_step(self._model, batch)
        require_loss(loss, where)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise NonFiniteUpdateError(f"the loss is NaN or infinite in {where}; lower learning_rate or clip the loss")
        with calling(f"backward of {where}"):
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        self._apply(where)
        return value

    def _apply(self, where: str) -> None:
        """Add what the algorithms add to a gradient, and step."""
        with torch.no_grad():
            self._add_proximal_term()
            self._add_control_term()
        with calling(f"optimizer step of {where}"):
            self._optimizer.step()

    def _add_proximal_term(self) -> None:
        """FedProx: the gradient of mu/2 * ||w - w_global||^2 (Li et al. 2020, equation 2)."""
        mu = self._settings.proximal_mu
        if mu:
            for name, tensor in self._trained.items():
                if tensor.grad is not None:
                    tensor.grad.add_(tensor - self._start[name], alpha=mu)

    def _add_control_term(self) -> None:
        """SCAFFOLD: y <- y - lr * (gradient - c_i + c) (Karimireddy et al. 2020, Algorithm 1, line 10)."""
        for name in self._controlled:
            gradient = self._trained[name].grad
            if gradient is not None:
                gradient.add_(self._global_control[name]).sub_(self._own_control[name])

    def finish(self, out: Vector) -> SiteState:
        """Write local minus global; returns the site's new state."""
        tensors = tensors_of(self._model, self._plan)
        require_layout(tensors.layout, self._given.layout, "training changed the model's tensors")
        for name, before in self._start_exact.items():
            if name not in tensors.counters and not torch.equal(before, tensors.exact[name]):
                raise UnsendableUpdateError(
                    f"training changed {name}, an integer or boolean tensor: it is carried exactly and cannot be"
                    " averaged; make it float32, or keep it at the site with site_local"
                )
        views = {entry.name: torch.from_numpy(view) for entry, view in named_views(self._given.layout, out)}
        state = {LOCAL_PREFIX + name: _kept(tensor) for name, tensor in tensors.local.items()}
        with torch.no_grad():
            for name, before in self._start.items():
                difference = tensors.floats[name].detach() - before
                if not bool(torch.isfinite(difference).all()):
                    raise NonFiniteUpdateError(f"{name} is NaN or infinite after training; lower learning_rate")
                views[name].copy_(difference)
                if name in self._global_control:
                    own = self._new_control(name, difference)
                    views[CONTROL_PREFIX + name].copy_(own - self._own_control[name])
                    state[CONTROL_PREFIX + name] = _kept(own)
        return state

    def _new_control(self, name: str, difference: torch.Tensor) -> torch.Tensor:
        """Option II: c_i+ = c_i - c + (x - y) / (K * lr) (Karimireddy et al. 2020, Algorithm 1, line 12)."""
        rate = self._rates.get(id(self._trained[name]))
        if rate is None:
            raise TrainingError(f"SCAFFOLD: the optimizer does not train {name}; give it all of model.parameters()")
        own, common = self._own_control[name], self._global_control[name]
        return own - common - difference / (self._steps * rate)


def _device_of(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {name!r}: expected auto, cpu or cuda")
    has_cuda = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError("device cuda: torch finds no CUDA device here; set device to auto or cpu")
    return torch.device("cuda" if has_cuda else "cpu")


def _load(tensors: ModelTensors, given: LocalRound) -> None:
    """The federation's tensors, the site's own ones, and the first round's initial ones where there are none yet."""
    with torch.no_grad():
        for entry, view in named_views(given.layout, given.vector):
            if entry.name in tensors.floats:
                tensors.floats[entry.name].copy_(torch.from_numpy(view.copy()))
        for name, array in exact_arrays(given.layout, given.exact).items():
            tensors.exact[name].copy_(torch.from_numpy(array.copy()))
        for name, tensor in tensors.local.items():
            tensor.copy_(_of_state(given.state, LOCAL_PREFIX + name, tensor))


def _of_state(state: SiteState, name: str, default: torch.Tensor) -> torch.Tensor:
    """The site's own tensor; a site without a state starts local layers as they are made, and controls at zero."""
    if name not in state:
        if state:
            raise StorageError(f"the site's state holds no {name}: it is not this plan's")
        return torch.zeros_like(default) if name.startswith(CONTROL_PREFIX) else default
    found = state[name]
    if found.shape != default.shape or found.dtype is not default.dtype:
        raise StorageError(f"the site's state holds {name} as {tuple(found.shape)}, expected {tuple(default.shape)}")
    return found.to(default.device)


def _control_of_vector(given: LocalRound, device: torch.device) -> dict[str, torch.Tensor]:
    return {
        entry.name.removeprefix(CONTROL_PREFIX): torch.from_numpy(view.copy()).to(device)
        for entry, view in named_views(given.layout, given.vector)
        if entry.name.startswith(CONTROL_PREFIX)
    }


def _plain_rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """Learning rate by parameter: option II reads the mean gradient off the way that plain SGD went."""
    plain = type(optimizer) is torch.optim.SGD and not any(group["momentum"] for group in optimizer.param_groups)
    if not plain:
        raise TrainingError("SCAFFOLD needs plain SGD without momentum: its control variates are mean gradients")
    return {id(tensor): float(group["lr"]) for group in optimizer.param_groups for tensor in group["params"]}


def _batches(data: LoadedDataset, split: Split, batch_size: int, device: torch.device) -> Batches:
    chosen: NDArray[np.int64] = np.flatnonzero(data.split == split)
    return Batches(data.features, data.labels, chosen, batch_size, device)


def _metrics(
    plan: TrainingPlan, model: torch.nn.Module, given: LocalRound, split: Split, device: torch.device
) -> tuple[MetricSum, ...]:
    return _metrics_of(plan, model, _batches(given.data, split, evaluation_batch_size(given.data.features), device))


def _cells(
    plan: TrainingPlan, model: torch.nn.Module, given: LocalRound, device: torch.device
) -> dict[tuple[int, int], tuple[MetricSum, ...]]:
    """Metrics of each cell that the site may tell of."""
    data, asked = given.data, given.cells
    if asked is None or given.privacy is not None:
        return {}
    size = evaluation_batch_size(data.features)
    return {
        place: _metrics_of(
            plan, model, Batches(data.features, data.labels, data.cell(asked.split, *place), size, device)
        )
        for place in asked.cells
    }


def _metrics_of(plan: TrainingPlan, model: torch.nn.Module, batches: Batches) -> tuple[MetricSum, ...]:
    if not batches.num_examples:
        return ()
    model.eval()
    with torch.no_grad():
        with calling("evaluate"):
            metrics = plan.evaluate(model, batches)
        return collect_metrics(metrics, "evaluate")


def _evaluation(plan: TrainingPlan, model: torch.nn.Module, given: LocalRound, device: torch.device) -> WorkResult:
    """Validation metrics under their own names, those of the test split as ``test_NAME``; none of a private plan.

    An exact metric tells of the patients that it is of, and no noise of training is on it.
    """
    if given.privacy is not None:
        return WorkResult(0, ())
    validation = _metrics(plan, model, given, Split.VALIDATION, device)
    test = _metrics(plan, model, given, Split.TEST, device)
    held = int(np.count_nonzero(np.isin(given.data.split, (Split.VALIDATION, Split.TEST))))
    return WorkResult(held, validation + of_test_split(test))


def _with_loss(metrics: tuple[MetricSum, ...], total: float, weight: int) -> tuple[MetricSum, ...]:
    if any(metric.name == "train_loss" for metric in metrics):
        raise TrainingError("evaluate yields train_loss, which is the framework's own metric; call it something else")
    return (*metrics, mean_of("train_loss", total, weight))


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone().contiguous()


def state_bytes(state: SiteState) -> bytes:
    """The site's state as a safetensors file."""
    return save(dict(state))


def read_state(raw: bytes) -> SiteState:
    """Read what ``state_bytes`` made.

    Raises:
        StorageError: it is damaged.
    """
    try:
        return load(raw)
    except SafetensorError as error:
        raise StorageError(f"the site's state cannot be read: {type(error).__name__}") from error
