"""Learning to invert: a network from (defended) updates to images, trained on public images.

Source: Wu et al., UAI 2023 (arXiv:2210.10880). The attacker pushes public images through the same model and the same
defense, and learns the way back by regression. Nothing is differentiated through the defense, so this is the adaptive
attack for whatever an optimiser cannot pass: signs, pruning, quantisation, noise, codes. Where the threat model grants
the site's chain of defenses, the public updates go through that chain, and what is read is the payload itself.

Three things differ from the paper, because a site's attacker here has thousands of public images and a CPU, not 50,000
and a GPU: the update is reduced to its principal components among the public updates, the network is added to a ridge
regression in closed form, and a held-out tenth of the public images chooses the penalty and the epoch. Updates that are
too long for principal components are hashed first, as in the paper.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from ...utils.errors import AttackError
from ..defenses.chain import Chain
from ..gradients import Named, trained_parameters
from ..threat_model import (
    Knowledge,
    LocalTraining,
    Observation,
    PublicImages,
    Reconstruction,
    SentKind,
    TracePoint,
    require_knowledge,
)
from .matching import without_running_statistics

Defense: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""What a site does to one vector in the layout's order before it sends it; the same length comes out."""

LARGEST_BATCH = 8  # the paper ends at 4; each further image is one more slot that averages over the others
PUBLIC_MINIMUM = 50  # fewer teach nothing but the mean image
_BASIS_FROM = 2000  # updates that the principal components come from: their Gram matrix has this width
_CHUNK_NUMBERS = 20_000_000  # of simulated updates held at once, 80 MB
_PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-4, 13))  # of the ridge regression
_MINIBATCH = 64


@dataclass(frozen=True, slots=True)
class LearnedInversion:
    """Train on public images, then read the observed update.

    ``__call__`` does both. ``fit`` alone gives an inverter that serves every observation of the same model, batch size,
    local training and defense, which is where the cost lies.
    """

    components: int = 1024  # principal components of the public updates that the inverter sees
    hidden: int = 512  # width of the two hidden layers
    epochs: int = 30
    learning_rate: float = 1e-3  # of Adam
    redraws: int = 1  # times each public image is sent, in another group and with other noise of the defense
    hashed_to: int = 32_768  # longer updates are hashed to this many numbers
    defend: Defense | None = None  # None: the chain that is granted, or nothing

    @property
    def needs(self) -> Knowledge:
        """Public images with their labels."""
        return Knowledge(public_data=True)

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Attack; ``loss`` is the inverter's mean squared error on held-out public images.

        Raises:
            AttackError: as ``fit``.
            ConfigError: the threat model grants no public data.
        """
        require_knowledge("learned-inversion", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        return self.fit(seen, rng)(seen, knowledge, rng)

    def fit(self, observation: Observation, rng: torch.Generator) -> FittedInversion:
        """An inverter for the observation's model, batch size and local training. What was sent is not read.

        Raises:
            AttackError: too few public images, too large a batch, an update whose local steps are not granted, a model
                or a defense that cannot be simulated.
        """
        batch = observation.num_examples
        public = _require(observation)
        device = next(observation.model.parameters()).device
        order = torch.randperm(len(public.images), generator=rng)
        held_out, taught = order[: len(order) // 10], order[len(order) // 10 :]
        if batch * 2 > len(held_out):
            raise AttackError(f"learned-inversion: {len(order)} public images are too few for batches of {batch}")
        sender = _Sender.of(observation, self.defend, self.hashed_to, rng)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))  # what a stochastic model draws
            sent, images = sender.of_groups(public, taught, self.redraws, rng)
            checked, checked_images = sender.of_groups(public, held_out, 1, rng)
        scale = _Standardised.of(sent)
        inputs = scale(sent)
        basis = _principal(inputs, self.components, rng)
        inputs, checked = inputs @ basis, scale(checked) @ basis
        spread = float(inputs.std(0).mean().clamp(min=1e-12))
        inputs, checked = inputs / spread, checked / spread
        network = _Inverter.ridge(inputs, images, checked, checked_images, self.hidden, rng)
        trace = _train(network, (inputs, images), (checked, checked_images), self, rng)
        return FittedInversion(sender, scale, basis / spread, network, trace, trained_for=_marks(observation))


@dataclass(frozen=True, slots=True, eq=False)
class FittedInversion:
    """A trained inverter: an attack in its own right, on every observation it was trained for."""

    sender: _Sender
    scale: _Standardised
    basis: Tensor  # (features, components)
    network: _Inverter
    trace: tuple[TracePoint, ...]  # held-out loss after the ridge regression and after each epoch
    trained_for: tuple[object, ...]

    @property
    def needs(self) -> Knowledge:
        """Public images: the training took them."""
        return Knowledge(public_data=True)

    @property
    def held_out_loss(self) -> float:
        """Mean squared error on public images that the training did not see."""
        return min(point.loss for point in self.trace)

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:  # noqa: ARG002 - the attacks' one shape
        """Read one update.

        Raises:
            AttackError: the observation is of another model, batch size or local training.
            ConfigError: the threat model grants no public data.
        """
        require_knowledge("learned-inversion", self.needs, knowledge)
        if _marks(observation) != self.trained_for:
            raise AttackError(
                "learned-inversion: this inverter is for another model, batch size, local training or defense; "
                "fit one on this observation"
            )
        device = self.basis.device
        sent = observation.vector() if self.sender.chain is None else observation.payload_vector()
        seen = torch.from_numpy(sent.copy()).to(device, torch.float32)
        with torch.no_grad():
            images = self.network(self.scale(self.sender.features(seen)[None]) @ self.basis)[0].clamp(0, 1)
        shape = observation.domain.shape
        return Reconstruction(images.reshape(-1, *shape).cpu(), loss=self.held_out_loss, trace=self.trace)


@dataclass(frozen=True, slots=True, eq=False)
class _Hashing:
    """Feature hashing (Weinberger et al. 2009): keeps inner products in the mean, at any length."""

    places: Tensor  # (size,) int64
    signs: Tensor  # (size,)
    width: int

    @classmethod
    def drawn(cls, size: int, width: int, rng: torch.Generator) -> _Hashing | None:
        """None where the vector is short enough as it is."""
        if size <= width:
            return None
        signs = 1 - 2 * torch.randint(2, (size,), generator=rng).float()
        return cls(torch.randint(width, (size,), generator=rng), signs, width)

    def __call__(self, vector: Tensor) -> Tensor:
        places, signs = self.places.to(vector.device), self.signs.to(vector.device)
        return torch.zeros(self.width, device=vector.device).index_add(0, places, vector * signs)


@dataclass(frozen=True, slots=True, eq=False)
class _Sender:
    """What a defended site would send for given images, as the inverter's features."""

    observation: Observation  # the model, the layout, how a site trains
    defend: Defense | None
    chain: Chain | None  # where nothing else defends
    hashing: _Hashing | None

    @classmethod
    def of(cls, observation: Observation, defend: Defense | None, width: int, rng: torch.Generator) -> _Sender:
        """With the chain that is granted; more than ``width`` numbers are hashed."""
        granted = observation.granted.defense
        chain = granted if isinstance(granted, Chain) and defend is None else None
        size = observation.layout.size if chain is None else len(observation.payload_vector())
        return cls(observation, defend, chain, _Hashing.drawn(size, width, rng))

    def of_groups(
        self, public: PublicImages, chosen: Tensor, redraws: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Public images in random groups of the batch's size: features (groups, n), images (groups, batch, pixels)."""
        batch = self.observation.num_examples
        passes = redraws * batch  # so that each redraw gives about one group an image
        shuffled = [chosen[torch.randperm(len(chosen), generator=rng)] for _ in range(passes)]
        groups = torch.cat([order[: len(order) // batch * batch].reshape(-1, batch) for order in shuffled])
        weight = next(self.observation.model.parameters())
        size = max(1, _CHUNK_NUMBERS // self.observation.layout.size)
        features = []
        for part in torch.split(groups, size):
            images = public.images[part].to(weight.device, weight.dtype)
            for vector in self._sent(images, public.labels[part].to(weight.device), rng):
                if self.chain is not None:
                    features.append(self.features(self._through_chain(vector, rng)))
                    continue
                seen = vector if self.defend is None else self.defend(vector, rng)
                if seen.shape != vector.shape:
                    raise AttackError(
                        f"learned-inversion: the defense makes {tuple(seen.shape)} of {len(vector)} numbers; "
                        "give one that keeps the length (decode the code)"
                    )
                features.append(self.features(seen.float()))
        found = torch.stack(features)
        if not bool(found.isfinite().all()):
            raise AttackError("learned-inversion: a simulated update holds NaN or infinity; nothing can be learned")
        return found, public.images[groups].to(weight.device, torch.float32).flatten(2)

    def features(self, vector: Tensor) -> Tensor:
        """The trained parameters' part of one vector, hashed where it is long; buffers are not simulated."""
        if self.chain is not None and self.chain.encoder is not None:
            return vector if self.hashing is None else self.hashing(vector)
        trained = trained_parameters(self.observation.model)
        entries = self.observation.layout.entries
        kept = torch.cat([vector[e.offset : e.offset + e.size] for e in entries if e.name in trained])
        if self.hashing is None:
            return kept
        return self.hashing(functional.pad(kept, (0, len(vector) - len(kept))))

    def _through_chain(self, vector: Tensor, rng: torch.Generator) -> Tensor:
        assert self.chain is not None
        noise = np.random.default_rng(int(torch.randint(1 << 62, (), generator=rng)))
        payload = self.chain(vector.detach().cpu().numpy().astype(np.float32), noise)
        return torch.from_numpy(payload).to(vector.device)

    def _sent(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Updates (groups, layout.size) of groups of images (groups, batch, channels, height, width)."""
        model = without_running_statistics(self.observation.model)
        local, rate = self.observation.granted.local_steps, self.observation.granted.learning_rate or 0.0
        groups, batch = labels.shape
        epochs = local.epochs if local else 1
        orders = torch.stack([torch.randperm(batch, generator=rng) for _ in range(groups * epochs)])
        orders = orders.reshape(groups, epochs, batch).to(images.device)

        def value(weights: Named, inputs: Tensor, targets: Tensor) -> Tensor:
            return functional.cross_entropy(functional_call(model, weights, (inputs,)), targets)

        def of_one(weights: Named, inputs: Tensor, targets: Tensor, order: Tensor) -> Named:
            if self.observation.kind is SentKind.GRADIENT:
                gradient: Named = grad(value)(weights, inputs, targets)
                return gradient
            return _local_steps(grad(value), weights, inputs, targets, order, local or LocalTraining(1, batch), rate)

        try:
            found = vmap(of_one, in_dims=(None, 0, 0, 0), randomness="different")(
                trained_parameters(model), images, labels, orders
            )
        except (RuntimeError, ValueError) as error:
            raise AttackError(f"learned-inversion: the model's updates cannot be simulated by vmap: {error}") from error
        entries = self.observation.layout.entries
        zeros = images.new_zeros(groups, 1)
        parts = [found[e.name].flatten(1) if e.name in found else zeros.expand(-1, e.size) for e in entries]
        return torch.cat(parts, 1)


def _local_steps(
    gradient: Callable[[Named, Tensor, Tensor], Named],
    start: Named,
    images: Tensor,
    labels: Tensor,
    order: Tensor,
    local: LocalTraining,
    rate: float,
) -> Named:
    """Local minus global; ``order`` (epochs, batch) says in which order each epoch takes the examples."""
    weights = start
    for epoch in range(local.epochs):
        for chosen in torch.split(order[epoch], local.batch_size):
            step = gradient(weights, images[chosen], labels[chosen])
            weights = {name: w - rate * step[name] for name, w in weights.items()}
    return {name: weights[name] - start[name] for name in start}


@dataclass(frozen=True, slots=True, eq=False)
class _Standardised:
    """Each feature to mean 0 and about variance 1; one that hardly moves is not blown up."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> _Standardised:
        deviation = features.std(0)
        return cls(features.mean(0), deviation + 0.1 * deviation.square().mean().sqrt() + 1e-12)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


class _Inverter(nn.Module):
    """A ridge regression to the mean image of the batch, and a network that adds what each image differs by."""

    def __init__(self, linear: Tensor, mean: Tensor, batch: int, hidden: int) -> None:
        super().__init__()
        self.batch = batch
        self.linear = nn.Parameter(linear, requires_grad=False)  # (components, pixels)
        self.mean = nn.Parameter(mean, requires_grad=False)  # (pixels,)
        components, pixels = linear.shape
        self.first = nn.Linear(components, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, batch * pixels)

    @classmethod
    def ridge(
        cls, inputs: Tensor, images: Tensor, checked: Tensor, checked_images: Tensor, hidden: int, rng: torch.Generator
    ) -> _Inverter:
        """The penalty with the least error on held-out images; the network's weights drawn from ``rng``."""
        target, wanted = images.mean(1), checked_images.mean(1)
        mean = target.mean(0)
        values, vectors = torch.linalg.eigh(inputs.T @ inputs)
        turned = vectors.T @ (inputs.T @ (target - mean))
        found = [vectors @ (turned / (values.clamp(min=0) + penalty)[:, None]) for penalty in _PENALTIES]
        linear = min(found, key=lambda each: float((checked @ each + mean - wanted).square().mean()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
            made = cls(linear, mean, images.shape[1], hidden)
        with torch.no_grad():  # starts at the ridge regression, or near it: slots of a batch must differ from the first
            made.last.weight.mul_(0.0 if made.batch == 1 else 0.1)
            made.last.bias.mul_(0.0 if made.batch == 1 else 0.1)
        return made.to(inputs.device)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images (count, batch, pixels), not yet held to [0, 1]."""
        hidden = self.second(self.first(inputs).relu()).relu()
        added = self.last(hidden).reshape(len(inputs), self.batch, -1)
        images: Tensor = (inputs @ self.linear + self.mean)[:, None] + added
        return images


def _train(
    network: _Inverter,
    taught: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    options: LearnedInversion,
    rng: torch.Generator,
) -> tuple[TracePoint, ...]:
    """Adam on the matched squared error; the network ends at its best epoch by the held-out images."""
    inputs, images = taught
    moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(moving, lr=options.learning_rate)
    best, trace = copy.deepcopy(network.state_dict()), [TracePoint(0, _held_out_loss(network, held_out))]
    for epoch in range(1, options.epochs + 1):
        for chosen in torch.split(torch.randperm(len(inputs), generator=rng), _MINIBATCH):
            optimizer.zero_grad()
            _matched_error(network(inputs[chosen]), images[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        loss = _held_out_loss(network, held_out)
        if loss < min(point.loss for point in trace):
            best = copy.deepcopy(network.state_dict())
        trace.append(TracePoint(epoch, loss))
    network.load_state_dict(best)
    return tuple(trace)


def _held_out_loss(network: _Inverter, held_out: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float(_matched_error(network(held_out[0]).clamp(0, 1), held_out[1]))


def _matched_error(found: Tensor, images: Tensor) -> Tensor:
    """Mean squared error under the best order of each batch (the paper's equation 3); a batch has no order."""
    if images.shape[1] == 1:
        return (found - images).square().mean()
    costs = (found.detach()[:, :, None] - images[:, None]).square().mean(-1).cpu().numpy()
    order = torch.stack([torch.from_numpy(linear_sum_assignment(cost)[1]) for cost in costs]).to(images.device)
    return (found - images.gather(1, order[:, :, None].expand_as(images))).square().mean()


def _principal(features: Tensor, components: int, rng: torch.Generator) -> Tensor:
    """Orthonormal directions (features, components) along which the public updates vary most, most first."""
    drawn = features[torch.randperm(len(features), generator=rng)[:_BASIS_FROM]]
    values, vectors = torch.linalg.eigh(drawn @ drawn.T)
    kept = (values > values[-1] * 1e-6).nonzero().flatten().flip(0)[:components]
    if not len(kept):
        raise AttackError("learned-inversion: every public image gives the same update; there is nothing to learn")
    basis: Tensor = drawn.T @ (vectors[:, kept] / values[kept].sqrt())
    return basis


def _require(observation: Observation) -> PublicImages:
    """The public images, of a size that can be learned from."""
    public, batch = observation.granted.public_data, observation.num_examples
    if public is None:
        raise AttackError("learned-inversion: the observation holds no public images to learn from")
    if batch > LARGEST_BATCH:
        raise AttackError(f"learned-inversion: a batch of {batch}; at most {LARGEST_BATCH} can be told apart")
    if len(public.images) < PUBLIC_MINIMUM:
        raise AttackError(f"learned-inversion: {len(public.images)} public images; expected at least {PUBLIC_MINIMUM}")
    if public.images.shape[1:] != observation.domain.shape:
        raise AttackError(
            f"learned-inversion: public images of shape {tuple(public.images.shape[1:])}, "
            f"the attacked ones have {observation.domain.shape}"
        )
    granted = observation.granted
    if observation.kind is SentKind.UPDATE and (granted.local_steps is None or granted.learning_rate is None):
        raise AttackError("learned-inversion: an update needs local_steps and learning_rate to be simulated")
    return public


def _marks(observation: Observation) -> tuple[object, ...]:
    """What an inverter depends on: the model's weights, how a site trains, and what it does to its update."""
    digest = hashlib.sha256()
    for parameter in observation.model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    granted = observation.granted.defense
    return (digest.hexdigest(), observation.num_examples, observation.kind, observation.layout, granted)
