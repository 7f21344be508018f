"""The gradient of one differentially private step: who is drawn, what each unit gives, and the noise on their sum.

DP-SGD (Abadi et al. 2016, arXiv:1607.00133, Algorithm 1). Everything that is done with the gradient afterwards (the
optimizer, FedProx, SCAFFOLD, the difference to the federation's model) is post-processing of it and spends nothing.

A unit's gradient is computed by itself, from its own examples alone: a layer that mixes the examples of a batch can
mix those of one patient, never two patients. Every unit of a step sees the same random numbers of torch, numpy and
``random``, which are public; were they drawn one after the other, a patient who is added would change the augmentation,
and so the gradient, of all that follow. Who is drawn, and the noise, come from ``SystemNoise`` and from no seed that a
plan or a director knows.

Measured on one thread for 64 images of 28x28 and 23,650 parameters: 56 ms of CPU so, 58 with ``torch.func.vmap``, 37
with the hooks of Opacus, which need a mean over the batch as the loss and know no patients; 16 patients of four images
25, 30 with ``vmap``. One gradient is in memory, not one for each unit.

What this does not do: hide that training failed. A plan that raises for one patient's images makes the site decline.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..gradient_leakage.defenses.gaussian import GaussianMechanism
from ..gradient_leakage.private_steps import noised_mean
from ..gradient_leakage.vae.codec import Codec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import DatasetError, TrainingError, UnsendableUpdateError
from ..utils.privacy.noise import NoiseSource
from ..utils.privacy.values import Unit
from .batches import Batches
from .plan_calls import calling
from .plan_randomness import seed_all
from .plans import TrainingPlan
from .records import LoadedDataset
from .splits import Split

_SEEDS = 1 << 63


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Units:
    """A site's training examples by the unit that they belong to. Its repr holds no number of them."""

    positions: NDArray[np.int64]  # in the dataset, those of a unit together
    starts: NDArray[np.int64]  # (units + 1,), where in ``positions`` each unit begins, and the end

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, number: int) -> NDArray[np.int64]:
        """The positions of one unit's examples."""
        return self.positions[self.starts[number] : self.starts[number + 1]]


def units_of(data: LoadedDataset, unit: Unit) -> Units:
    """Every training example in the unit that is protected.

    Raises:
        DatasetError: patients are to be protected, and the dataset names none.
    """
    positions: NDArray[np.int64] = np.flatnonzero(data.split == Split.TRAIN)
    if unit is Unit.RECORD:
        return Units(positions, np.arange(len(positions) + 1))
    if data.patients is None:
        raise DatasetError(
            "the plan protects patients, and the dataset does not say whose the examples are; remove it and add it"
            " again with: envoy data add NAME PATH --patient COLUMN_OR_PATTERN"
        )
    order = np.argsort(data.patients[positions], kind="stable")
    positions = positions[order]
    patients = data.patients[positions]
    firsts = np.flatnonzero(np.diff(patients, prepend=-1))
    return Units(positions, np.append(firsts, len(positions)))


def drawn(num_units: int, sampling_rate: float, noise: NoiseSource) -> NDArray[np.int64]:
    """The units of one step, each by its own coin (Poisson sampling), up to 2^-53 in its chance."""
    found: NDArray[np.int64] = np.flatnonzero(noise.random(num_units) < sampling_rate)
    return found


class PrivateGradient:
    """Puts one noised gradient after the other where the optimizer looks for it.

    Guarantees (each has a test):
        - a unit changes the sum before the noise by at most ``max_norm``, however many examples it has;
        - what a unit gives depends on the model, its own examples and public numbers, not on who else is drawn;
        - a gradient that is NaN or infinite counts as zero, as it would tell of its unit to refuse it;
        - all that training changes was noised: every parameter is in the clip and the noise, also those that stay at
          the site, and a buffer that changed is refused.

    Args:
        plan: whose ``train_step`` is called for each unit by itself.
        model: in train mode; its parameters' ``grad`` is written.
        data: the site's.
        privacy: what the manifest says.
        seed: of what the plan draws; public.
        device: of the model.
        noise: who is drawn, and the noise.
        codec: of the round; each unit's gradient is coded, and clip and noise are of the code (projected DP-SGD: Yu et
            al. 2021, arXiv:2102.12677). What it leaves out is not learned.

    Raises:
        DatasetError: no training example, or as ``units_of``.
        TrainingError: a codec, and a trained parameter that it does not code, since it stays at the site.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        model: torch.nn.Module,
        data: LoadedDataset,
        privacy: DifferentialPrivacy,
        seed: int,
        device: torch.device,
        noise: NoiseSource,
        codec: Codec | None = None,
    ) -> None:
        self._plan, self._model, self._data, self._privacy = plan, model, data, privacy
        self._seed, self._device, self._noise, self._codec = seed, device, noise, codec
        self._units = units_of(data, privacy.unit)
        if not len(self._units):
            raise DatasetError("the dataset has no training example; check its splits with: envoy data check")
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ids = {id(parameter) for parameter in self._trained}
        state = model.state_dict(keep_vars=True)
        self._untrained = {n: t.detach().clone() for n, t in state.items() if id(t) not in ids}
        self._mechanism = GaussianMechanism(privacy.max_norm, privacy.noise_multiplier)
        self._places, self._size = _places(model, codec)

    def put(self, step: int) -> None:
        """Draw units and noise, and write the step's gradient."""
        units = drawn(len(self._units), self._privacy.sampling_rate, self._noise)
        mean = noised_mean(
            self._rows(units, step),
            self._size,
            self._codec,
            self._mechanism,
            self._noise,
            self._privacy.expected_units,
        )
        gradient = torch.from_numpy(mean)
        for parameter, place in zip(self._trained, self._places, strict=True):
            parameter.grad = gradient[place].view(parameter.shape).to(self._device, parameter.dtype)

    def require_untouched(self) -> None:
        """Refuse a model in which training changed what no noise was added to.

        Raises:
            UnsendableUpdateError: names the tensor.
        """
        now = self._model.state_dict(keep_vars=True)
        for name, before in self._untrained.items():
            if name not in now or not torch.equal(before, now[name].detach()):
                raise UnsendableUpdateError(
                    f"training changed {name}, which is no trained parameter: its values have no noise on them and"
                    " cannot leave a plan with differential privacy; use a layer that keeps no statistics"
                )

    def _rows(self, units: NDArray[np.int64], step: int) -> Iterator[NDArray[np.float32]]:
        """One unit's gradient after the other, (1, size)."""
        for number in units:
            seed_all((self._seed + step) % _SEEDS)
            row = self._of_unit(self._units.of(int(number)))
            if np.isfinite(row).all():
                yield row[None]

    def _of_unit(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """The mean over the unit's batches, each weighted by its examples; at most ``batch_size`` at once."""
        batch_size = self._plan.settings.batch_size
        batches = Batches(self._data.features, self._data.labels, positions, batch_size, self._device)
        row = np.zeros(self._size, np.float32)
        for features, labels in batches:
            with calling("train_step"):
                loss = self._plan.train_step(self._model, (features, labels))
            require_loss(loss, "train_step")
            with calling("backward of train_step"):
                found = torch.autograd.grad(loss, self._trained, allow_unused=True)
            share = len(labels) / batches.num_examples
            for place, gradient in zip(self._places, found, strict=True):
                if gradient is not None:
                    row[place] += share * gradient.detach().float().cpu().numpy().reshape(-1)
        return row


def _places(model: torch.nn.Module, codec: Codec | None) -> tuple[list[slice], int]:
    """Where each trained parameter lies in a gradient, and how long that is: the codec's layout, or one after another.

    Raises:
        TrainingError: a trained parameter that the codec does not know.
    """
    trained = [(name, parameter.numel()) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if codec is None:
        ends = np.cumsum([0, *(count for _, count in trained)]).tolist()
        return [slice(start, end) for start, end in itertools.pairwise(ends)], ends[-1]
    known = {entry.name: slice(entry.offset, entry.offset + entry.size) for entry in codec.layout.entries}
    unknown = [name for name, _ in trained if name not in known]
    if unknown:
        raise TrainingError(
            f"{unknown[0]} is trained, stays at the site and is in no code: with privacy and a codec every trained"
            " parameter must leave; leave out the codec, or site_local"
        )
    return [known[name] for name, _ in trained], codec.layout.size


def require_loss(loss: object, where: str) -> None:
    """Refuse what is no scalar loss.

    Raises:
        TrainingError: says what came.
    """
    if not isinstance(loss, torch.Tensor):
        raise TrainingError(f"{where} returned {type(loss).__name__}, expected the loss as a scalar tensor")
    if loss.ndim or not loss.is_floating_point() or not loss.requires_grad:
        raise TrainingError(
            f"{where} returned a {str(loss.dtype).removeprefix('torch.')} tensor of shape {tuple(loss.shape)}"
            f"{'' if loss.requires_grad else ' without grad'}, expected a float scalar that requires grad"
        )
