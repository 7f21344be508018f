"""Which features of a representation Soteria hides: those that tell most about the image for what they cost."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...utils.errors import ConfigError
from ...utils.tensors import Layout
from .soteria import Soteria
from .top_k import kept, require_share


def soteria_of(model: nn.Module, images: Tensor, layout: Layout, share: float = 0.1) -> Soteria:
    """The mask for one batch, made at the site.

    Source: Sun et al., CVPR 2021 (arXiv:2012.06043) and their code: the features with the largest
    ``|r_i| / |dr_i / dimage|``, here summed over the batch. The defended layer is the first linear one that trained
    weights lie before. Their experiments hide 1 % of a representation; by default we hide ten times as much.

    Args:
        model: as published; stays as it is.
        images: (count, channels, height, width) in [0, 1], of the site.
        layout: of the update.
        share: of the representation's features, in (0, 1].

    Raises:
        ConfigError: no such layer, or it is not in the layout.
    """
    require_share(share)
    network = copy.deepcopy(model)
    name, layer = _defended(network, images[:1])
    entry = next((entry for entry in layout.entries if entry.name == f"{name}.weight"), None)
    if entry is None:
        raise ConfigError(f"Soteria defends {name}, whose weight is not in the update")
    pixels = images.to(layer.weight).requires_grad_()
    entered = _entering(network, layer, pixels)
    leaking = torch.zeros(entered.shape[1], dtype=torch.float64)
    for feature in range(entered.shape[1]):
        (slope,) = torch.autograd.grad(entered[:, feature].sum(), pixels, retain_graph=True)
        lengths = slope.flatten(1).norm(dim=1).double().clamp(min=1e-30)
        leaking[feature] = (entered[:, feature].detach().abs().double() / lengths).sum()
    columns = leaking.topk(kept(share, len(leaking))).indices.sort().values
    return Soteria(entry.offset, (layer.out_features, layer.in_features), tuple(columns.tolist()))


def _defended(network: nn.Module, images: Tensor) -> tuple[str, nn.Linear]:
    """The first linear layer whose input depends on trained weights."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and _entering(network, module, images.to(module.weight)).requires_grad:
            return name, module
    raise ConfigError("no linear layer has trained layers before it: Soteria has no representation to defend")


def _entering(network: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """What enters the layer: (count, features)."""
    entered: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
    with torch.random.fork_rng(devices=[]):
        network(images)
    hook.remove()
    return entered[0].flatten(1)
