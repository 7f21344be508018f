"""Which labels a batch had, from the gradient of the last layer alone; nothing is optimised.

With cross-entropy the gradient of the bias of class k is the mean over the batch of ``p_ik - y_ik``: probability minus
label. So the share of class k is the mean probability minus that gradient, exactly; what differs between the attacks
is how they guess the mean probability, which nobody sent.

| attack | guess | good for |
|---|---|---|
| ``IdlgLabel`` | none is needed | one example: always right |
| ``LabelLeakage`` | probabilities at random images; greedy counting | fresh models |
| ``BiasLabels`` | mean probabilities for each label, one linear system | batches, also of trained models |
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ...utils.errors import AttackError
from ..threat_model import Knowledge, Observation, Reconstruction, SentKind, require_knowledge

__all__ = ["BiasLabels", "IdlgLabel", "LabelLeakage", "idlg_label", "infer_labels"]

_IMAGES_AT_ONCE = 64
_PUBLIC_IMAGES = 256  # enough for mean probabilities; more only costs time


@dataclass(frozen=True, slots=True)
class IdlgLabel:
    """The label of a single example: the one class whose gradient points the other way.

    Source: Zhao, Mopuri and Bilen 2020 (arXiv:2001.02610), here also without their assumption that the
    features are not negative: the gradient of that class is the largest, since ``1 - p_c`` is the sum of all other
    probabilities. Only two classes without a bias need it, or features at random images.
    """

    @property
    def needs(self) -> Knowledge:
        """Nothing."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Labels of shape (1,).

        Raises:
            AttackError: more than one example, or no last linear layer to look at.
        """
        require_knowledge("iDLG", self.needs, knowledge)
        return Reconstruction(labels=idlg_label(observation.limited_to(knowledge), rng).cpu())


@dataclass(frozen=True, slots=True)
class LabelLeakage:
    """LLG*: how much one example moves the gradient of its class is measured at random images, then counted off.

    Source: Wainakh et al. 2021 (arXiv:2105.09369), with the impact and offset of their LLG*. Where the scale of
    an update is not known (no learning rate, no local steps granted), the impact is that of plain LLG, which needs
    none: the sum of the negative gradients over the batch size.
    """

    dummies: int = 64  # random images

    @property
    def needs(self) -> Knowledge:
        """Nothing; the learning rate and the local steps help."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Labels of shape (num_examples,), sorted.

        Raises:
            AttackError: there is no last linear layer to look at.
        """
        require_knowledge("LLG", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        head, batch = _head_of(seen), seen.num_examples
        features, probabilities = _forward(seen.model, head.name, _random_images(seen, self.dummies, rng))
        # Property 1 of the paper wants features that are not negative; tanh has others, so those are weighed.
        weights = torch.ones_like(features[0]) if bool((features >= 0).all()) else features.mean(0)
        left = head.weight @ weights
        classes = len(left)
        negative = [int(k) for k in left.argsort() if left[k] < 0][:batch]
        impact = left[left < 0].sum() / batch * (1 + 1 / classes)
        if _is_to_scale(seen):
            mass = features @ weights
            offset = (probabilities * mass[:, None]).mean(0)
            impact = (offset - mass.mean()).mean() / batch * (1 + 1 / classes)
            left = left - offset
        counts = torch.zeros(classes, dtype=torch.int64)
        for label in negative:
            counts[label] += 1
            left[label] -= impact
        for _ in range(batch - len(negative)):
            label = int(left.argmin())
            counts[label] += 1
            left[label] -= impact
        return Reconstruction(labels=_sorted_labels(counts))


@dataclass(frozen=True, slots=True)
class BiasLabels:
    """The counts of all labels from the gradient of the bias, corrected by the probabilities that each label has.

    Source: the linear system of Ma et al. 2023 (ICLR, "Instance-wise Batch Label Restoration via Gradients"), whose
    probabilities come from the class-wise features ``gradient of weights / gradient of bias``. Ours are those at random
    images, the same for all labels; where they do not give nearly whole counts, their mean with Ma's; and where public
    data are granted, those of public images with that label.
    A class with a negative gradient has at least one example: that is certain, and kept.
    """

    @property
    def needs(self) -> Knowledge:
        """Nothing; public data, the learning rate and the local steps help."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Labels of shape (num_examples,), sorted.

        Raises:
            AttackError: there is no last linear layer to look at.
        """
        require_knowledge("label inference", self.needs, knowledge)
        return Reconstruction(labels=infer_labels(observation, knowledge, rng).cpu())


def idlg_label(observation: Observation, rng: torch.Generator | None = None) -> Tensor:
    """The label of the only example, shape (1,), int64, on the model's device.

    Raises:
        AttackError: more than one example, or no last linear layer to look at.
    """
    if observation.num_examples != 1:
        raise AttackError(
            f"iDLG reads the label of one example, the update is of {observation.num_examples}: "
            "use llg or bias-labels for a batch"
        )
    head = _head_of(observation)
    if head.bias is not None:
        score = -head.bias
    elif len(head.weight) > 2:
        score = head.weight.square().sum(1)
    else:
        features, _ = _forward(observation.model, head.name, _random_images(observation, _IMAGES_AT_ONCE, rng))
        score = -head.weight @ features.mean(0)
    return score.argmax().reshape(1)


def infer_labels(
    observation: Observation, knowledge: Knowledge | None = None, rng: torch.Generator | None = None
) -> Tensor:
    """The labels of the batch as a sorted multiset; the estimate that other attacks start from.

    One example: iDLG, which is exact. More: see ``BiasLabels``.

    Args:
        observation: one update.
        knowledge: which grants may be read; None for no grant.
        rng: draws the random images; None for always the same ones.

    Returns:
        int64, shape (num_examples,), on the model's device.

    Raises:
        AttackError: there is no last linear layer to look at.
    """
    seen = observation.limited_to(knowledge or Knowledge())
    if seen.num_examples == 1:
        return idlg_label(seen, rng)
    head, images = _head_of(seen), _random_images(seen, _IMAGES_AT_ONCE, rng)
    bias = head.bias
    if bias is None:  # the gradient of class k is close to (p - y) times a feature that all images share
        shared = _forward(seen.model, head.name, images)[0].mean(0)
        bias = head.weight @ shared / shared.square().sum()
    total, to_scale, models = seen.num_examples, _is_to_scale(seen), _along(seen)
    alike = torch.stack([_forward(model, head.name, images)[1].mean(0) for model in models]).mean(0)
    counts = _counts(alike.repeat(len(alike), 1), bias, total, to_scale=to_scale)
    if seen.granted.public_data is not None or not _is_nearly_whole(counts):
        rows = torch.stack([_probabilities_by_label(model, head, seen, alike) for model in models]).mean(0)
        counts = _counts(rows, bias, total, to_scale=to_scale)
    return _sorted_labels(_whole(counts, (bias < 0).cpu(), total)).to(bias.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """The last linear layer and its gradient."""

    name: str
    layer: nn.Linear
    weight: Tensor  # (classes, features)
    bias: Tensor | None  # (classes,)


def _head_of(observation: Observation) -> _Head:
    linear = [(name, module) for name, module in observation.model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        leaves = [
            (n, m) for n, m in observation.model.named_modules() if any(True for _ in m.parameters(recurse=False))
        ]
        found = f"{leaves[-1][0]} is {type(leaves[-1][1]).__name__}" if leaves else "the model has no parameters"
        raise AttackError(
            f"labels are read off a last nn.Linear; {found}: grant the labels, or match gradients jointly"
        )
    name, layer = linear[-1]
    classes = observation.domain.num_classes
    if layer.out_features != classes:
        raise AttackError(f"the last linear layer {name} has {layer.out_features} outputs, the plan {classes} classes")
    gradient, prefix = observation.gradient(), f"{name}." if name else ""
    if f"{prefix}weight" not in gradient:
        raise AttackError(f"the update does not hold {prefix}weight, which labels are read off: is the layer frozen?")
    weight, bias = gradient[f"{prefix}weight"], gradient.get(f"{prefix}bias")
    if not bool(weight.any()) and (bias is None or not bool(bias.any())):
        raise AttackError(f"the gradient of {name} is zero: nothing tells the labels")
    return _Head(name, layer, weight, bias)


def _is_to_scale(observation: Observation) -> bool:
    granted = observation.granted
    return observation.kind is SentKind.GRADIENT or None not in {granted.learning_rate, granted.local_steps}


def _random_images(observation: Observation, count: int, rng: torch.Generator | None) -> Tensor:
    rng = rng or torch.Generator().manual_seed(0)
    weight = next(observation.model.parameters())
    return torch.rand(count, *observation.domain.shape, generator=rng).to(weight.device, weight.dtype)


def _forward(model: nn.Module, head: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the last linear layer, (count, features), and the probabilities, (count, classes)."""
    model = copy.deepcopy(model)  # a forward pass moves the running statistics of BatchNorm
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()  # it would draw from the process's own generator
    features: list[Tensor] = []
    model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in torch.split(images, _IMAGES_AT_ONCE)])
    if features[0].ndim != 2:
        raise AttackError(f"{head} takes inputs of shape {tuple(features[0].shape)}; expected (count, features)")
    return torch.cat(features), outputs.softmax(1)


def _along(observation: Observation) -> list[nn.Module]:
    """The models that bound the local training: the published one and, of an update, where it ended."""
    if observation.kind is SentKind.GRADIENT:
        return [observation.model]
    end = copy.deepcopy(observation.model)
    sent = observation.tensors()
    with torch.no_grad():
        for name, tensor in [*end.named_parameters(), *end.named_buffers()]:
            if name in sent:
                tensor.add_(sent[name].to(tensor.dtype))
    return [observation.model, end]


def _probabilities_by_label(model: nn.Module, head: _Head, observation: Observation, alike: Tensor) -> Tensor:
    """Row k: the mean probabilities of an example with label k, as far as the attacker can tell; (classes, classes).

    ``alike`` are those of any image, (classes,): they stay where nothing better is known.
    """
    rows = alike.repeat(len(alike), 1)
    public = observation.granted.public_data
    if public is not None:
        images, labels = public.images[:_PUBLIC_IMAGES].to(alike), public.labels[:_PUBLIC_IMAGES].to(alike.device)
        _, probabilities = _forward(model, head.name, images)
        for label in set(labels.tolist()):
            rows[label] = probabilities[labels == label].mean(0)
    elif head.bias is not None:
        present = head.bias < 0
        layer = model.get_submodule(head.name)
        with torch.no_grad():
            own = layer(head.weight[present] / head.bias[present, None]).softmax(1)
        rows[present] = (rows[present] + own) / 2
    return rows


def _counts(by_label: Tensor, bias: Tensor, total: int, *, to_scale: bool) -> Tensor:
    """Examples of each label, (classes,), before rounding: total times the solution of share = p^T share - gradient.

    Of an update without its scale only the direction of the gradient is known. Then the shares stray from those of a
    batch without a gradient as far as labels drawn at random do on average (chi-square), but none below zero.
    """
    gradient, by_label = bias.detach().cpu().double(), by_label.detach().cpu().double()
    if not bool(gradient.isfinite().all() and by_label.isfinite().all()):
        raise AttackError(
            "labels cannot be read off: with numbers as large as this update's, the last layer gives NaN or infinity"
        )
    if not to_scale:
        still, moved = _shares(by_label, 0 * gradient), _unbounded_shares(by_label, gradient, 0.0)
        typical = (len(still) - 1) / total / float((moved.square() / still.clamp(min=1e-6)).sum())
        sinking = moved < 0
        longest = float((still[sinking] / -moved[sinking]).min()) if bool(sinking.any()) else 0.0
        gradient = gradient * min(typical**0.5, longest)
    return _shares(by_label, gradient) * total


def _is_nearly_whole(counts: Tensor) -> bool:
    return float((counts - counts.round()).abs().max()) < 0.25


def _shares(by_label: Tensor, gradient: Tensor) -> Tensor:
    """The least-squares solution without negative shares: classes that come out below zero are left out."""
    inside = torch.ones_like(gradient, dtype=torch.bool)
    shares = torch.zeros_like(gradient)
    while True:
        found = _unbounded_shares(by_label, gradient, 1.0, inside)
        inside[inside.clone()] = found > 0
        if bool((found > 0).all()):
            shares[inside] = found
            return shares / shares.sum()


def _unbounded_shares(by_label: Tensor, gradient: Tensor, whole: float, inside: Tensor | None = None) -> Tensor:
    """The least-squares solution whose shares sum to ``whole``, of the classes inside."""
    columns = torch.cat([torch.eye(len(gradient)).to(by_label) - by_label.T, torch.ones_like(by_label[:1])])
    wanted = torch.cat([-gradient, torch.full_like(gradient[:1], whole)])
    solution: Tensor = torch.linalg.pinv(columns if inside is None else columns[:, inside]) @ wanted
    return solution


def _whole(counts: Tensor, present: Tensor, total: int) -> Tensor:
    """Whole counts that sum to ``total``, at least one where a class is surely present; largest remainder first."""
    whole = present.long()
    if int(whole.sum()) > total:  # noise made some gradients negative
        whole = torch.zeros_like(whole)
    for _ in range(total - int(whole.sum())):
        whole[(counts - whole).argmax()] += 1
    return whole


def _sorted_labels(counts: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), counts)
