"""What a site would send for given images: the other side of every measurement, never seen by an attack.

Plain SGD on the mean cross-entropy, from the published model, and the bytes that an envoy would put on the wire
(a test holds them equal to the envoy's own). The model that is given stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..utils.errors import ConfigError
from ..utils.privacy.noise import NoiseSource
from ..utils.tensors import Layout, Role
from .defenses.chain import Chain
from .threat_model import BatchStatistics, Granted, ImageDomain, LocalTraining, Observation, SentKind


@dataclass(frozen=True, slots=True)
class SiteTraining:
    """How the site trains; None for ``local``: it sends one gradient."""

    local: LocalTraining | None = None
    learning_rate: float = 0.01


def layout_of(model: nn.Module) -> Layout:
    """Parameters and floating-point buffers in the model's order: what travels unless a plan says otherwise."""
    parameters = {name for name, _ in model.named_parameters()}
    placed = [
        (name, tuple(tensor.shape), Role.PARAMETER if name in parameters else Role.BUFFER)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_floating_point()
    ]
    return Layout.of(placed)


def observe(
    model: nn.Module, images: Tensor, labels: Tensor, site: SiteTraining, rng: torch.Generator, num_classes: int
) -> Observation:
    """Train at the site as told and hand over what leaves it, with every grant that a threat model may name.

    Args:
        model: published; float32 or float64, in the mode in which the site trains it.
        images: (count, channels, height, width) in [0, 1].
        labels: (count,) int64.
        site: one gradient, or local steps.
        rng: draws the order of the examples, and what the model itself draws (a bottleneck's noise).
        num_classes: of the plan.

    Raises:
        ConfigError: images or labels out of range, of another shape or number.
        NonFiniteUpdateError: training gave NaN or infinity.
    """
    require_batch(images, labels, num_classes)
    dtype = next(model.parameters()).dtype
    local, layout = copy.deepcopy(model), layout_of(model)
    images = images.to(next(model.parameters()).device, dtype)
    statistics: dict[str, BatchStatistics] = {}
    hooks = [m.register_forward_hook(_recorder(statistics, n)) for n, m in _norms(local)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
        if site.local is None:
            functional.cross_entropy(local(images), labels.to(images.device)).backward()  # type: ignore[no-untyped-call]
            sent = {n: _zero_or(p.grad, p) for n, p in local.named_parameters()}
            sent |= {n: _moved(b, model.get_buffer(n)) for n, b in local.named_buffers()}
        else:
            _train(local, images, labels.to(images.device), site, rng)
            before = dict(model.named_parameters()) | dict(model.named_buffers())
            sent = {n: _moved(t, before[n]) for n, t in [*local.named_parameters(), *local.named_buffers()]}
    for hook in hooks:
        hook.remove()
    flat = torch.cat([sent[entry.name].reshape(-1) for entry in layout.entries]).cpu()
    return Observation(
        sent=flat.numpy().tobytes(),
        layout=layout,
        kind=SentKind.GRADIENT if site.local is None else SentKind.UPDATE,
        model=model,
        domain=ImageDomain((images.shape[1], images.shape[2], images.shape[3]), num_classes),
        num_examples=len(images),
        granted=Granted(
            labels=labels.clone(),
            batch_norm_statistics=statistics or None,
            local_steps=site.local,
            learning_rate=site.learning_rate if site.local else None,
        ),
        dtype=dtype,
    )


def granting(observation: Observation, **values: object) -> Observation:
    """The observation with further grants, such as ``public_data`` or ``defense``."""
    return replace(observation, granted=replace(observation.granted, **values))  # type: ignore[arg-type]


def sent_through(observation: Observation, chain: Chain, rng: NoiseSource) -> Observation:
    """The observation of a site whose chain stands before the door; the chain is granted to who may know the defense.

    What comes in is brought to float32, as an envoy sends it, wherever the chain does anything at all.

    Raises:
        UnsendableUpdateError: as the chain does.
    """
    known = granting(observation, defense=chain)
    if not chain.steps:
        return known
    payload = chain(observation.vector().astype(np.float32), rng)
    read = chain.decoded(payload).astype(observation.vector().dtype)
    return replace(known, sent=read.tobytes(), payload=payload.tobytes() if chain.encoder else None)


def require_batch(images: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse images and labels that no plan could have trained on.

    Raises:
        ConfigError: says which and what was expected.
    """
    if images.ndim != 4 or not len(images):
        raise ConfigError(f"images of shape {tuple(images.shape)}; expected (count, channels, height, width)")
    if labels.shape != (len(images),):
        raise ConfigError(f"labels of shape {tuple(labels.shape)} for {len(images)} images; expected one each")
    if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        raise ConfigError("images are not in [0, 1]: give uint8, or floats that were divided by 255")
    if labels.is_floating_point() or bool(((labels < 0) | (labels >= num_classes)).any()):
        raise ConfigError(f"a label is not one of the model's {num_classes} classes, 0 to {num_classes - 1}")


def _train(model: nn.Module, images: Tensor, labels: Tensor, site: SiteTraining, rng: torch.Generator) -> None:
    assert site.local is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=site.learning_rate)
    for _ in range(site.local.epochs):
        order = torch.randperm(len(images), generator=rng)
        for chosen in torch.split(order, site.local.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def _recorder(
    statistics: dict[str, BatchStatistics], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Keeps the statistics of the first forward pass, before any local step has moved the weights."""

    def record(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        if name not in statistics:
            seen = inputs[0].detach()
            axes = [axis for axis in range(seen.ndim) if axis != 1]
            statistics[name] = BatchStatistics(seen.mean(axes), seen.var(axes, unbiased=False))

    return record


def _zero_or(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.detach()


def _moved(after: Tensor, before: Tensor) -> Tensor:
    return (after.detach() - before.detach()) if after.is_floating_point() else after.detach()
