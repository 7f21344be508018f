"""What a reconstruction is worth. Of all that judges an attack's result, this alone sees the truth.

Absolute figures mean little: another patient's X-ray already scores 16 dB. So beside ``score`` there are the null (what
the same attack finds in another patient's update), the baseline (the attacker's public mean image) and
re-identification; how sure they are is in ``confidence.py``.

| a reconstruction | counts as |
|---|---|
| outside [0, 1] | clipped: the attacker knows the range |
| NaN in a pixel | mid-grey there |
| fewer pictures than images | the images without a picture are compared with mid-grey |
| more pictures than images | the best assignment; what is left over counts for nothing |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.metrics import structural_similarity
from torch import Tensor

from ..utils.errors import ConfigError
from .confidence import Floats, Rate
from .threat_model import Reconstruction

MAX_PSNR = 200.0  # dB; an exact copy would be infinite, which neither a mean nor JSON can hold
MIN_GALLERY = 100
_GREY = 0.5
_SSIM_WINDOW = 7

Places: TypeAlias = NDArray[np.int64]
Embedding: TypeAlias = Callable[[Tensor], Tensor]
"""(count, channels, height, width) to (count, features)."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The images that a site trained on."""

    images: Tensor  # (count, channels, height, width) in [0, 1]
    labels: Tensor  # (count,) int64
    patients: tuple[str, ...] = ()  # (count,); empty where nothing is known, and each image is of another patient

    def patient(self, place: int) -> str:
        """The patient of one image; a name of its own where nothing is known."""
        return self.patients[place] if self.patients else f"#{id(self)}/{place}"


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One reconstruction against the truth; each array is in the order of the truth's images."""

    images: Tensor | None  # (count, channels, height, width) float64, each beside its image, in [0, 1]
    mse: Floats
    psnr: Floats  # dB
    ssim: Floats
    found: NDArray[np.bool_]  # had a picture; where not, the picture is mid-grey
    label_recovery: float | None  # share of the labels found, whatever their order; None where none were sought
    labels_beside_images: float | None  # share of the labels that stand beside their own image


def mse(found: Tensor, truth: Tensor) -> Floats:
    """Mean squared error of each image, shape (count,); both (count, channels, height, width)."""
    error = _pictures(found) - _pictures(truth)
    squared: Floats = np.square(error).mean(axis=(1, 2, 3))
    return squared


def psnr(found: Tensor, truth: Tensor) -> Floats:
    """Peak signal-to-noise ratio of each image in dB for images in [0, 1], at most ``MAX_PSNR``; shape (count,).

    >>> psnr(torch.full((1, 1, 8, 8), 0.6, dtype=torch.float64), torch.full((1, 1, 8, 8), 0.5)).round(6).tolist()
    [20.0]
    """
    return -10 * np.log10(np.maximum(mse(found, truth), 10 ** (-MAX_PSNR / 10)))


def ssim(found: Tensor, truth: Tensor) -> Floats:
    """Structural similarity of each image, shape (count,).

    Wang et al. 2004, as scikit-image has it: uniform 7x7 windows (the largest odd one that fits into smaller images),
    data range 1, the mean over channels.

    Raises:
        ConfigError: an image of fewer than 3 pixels a side.
    """
    ours, theirs = _pictures(found), _pictures(truth)
    side = min(*ours.shape[2:], _SSIM_WINDOW)
    window = side - 1 + side % 2
    if window < 3:
        raise ConfigError(f"SSIM of images of {ours.shape[2]} x {ours.shape[3]}: at least 3 x 3 is needed")
    values = (
        structural_similarity(a, b, data_range=1.0, channel_axis=0, win_size=window)  # type: ignore[no-untyped-call]
        for a, b in zip(ours, theirs, strict=True)
    )
    return np.fromiter(values, np.float64, len(ours))


def match(found: Tensor, truth: Tensor) -> tuple[Places, Places]:
    """The assignment of pictures to images with the least total squared error (Kuhn 1955).

    Returns:
        Places in ``found`` and in ``truth``, min(pictures, images) of each, by place in the truth.
    """
    ours, theirs = _pictures(found), _pictures(truth)
    if ours.shape[1:] != theirs.shape[1:]:
        raise ConfigError(f"pictures of shape {ours.shape[1:]} against images of {theirs.shape[1:]}")
    distances = cdist(theirs.reshape(len(theirs), -1), ours.reshape(len(ours), -1), "sqeuclidean")
    in_truth, in_found = linear_sum_assignment(distances)
    return in_found.astype(np.int64), in_truth.astype(np.int64)


def score(reconstruction: Reconstruction, truth: Truth) -> Scores:
    """Compare; where there are several pictures, each with the image that it is assigned to.

    Raises:
        ConfigError: pictures of another shape than the truth's.
    """
    recovered = None if reconstruction.labels is None else label_recovery(reconstruction.labels, truth.labels)
    if reconstruction.images is None:
        none = np.full(len(truth.images), math.nan)
        return Scores(None, none, none, none, np.zeros(len(none), bool), recovered, None)
    in_found, in_truth = match(reconstruction.images, truth.images)
    pictures = torch.full(truth.images.shape, _GREY, dtype=torch.float64)
    pictures[in_truth] = torch.from_numpy(_pictures(reconstruction.images[in_found]))
    found = np.zeros(len(pictures), bool)
    found[in_truth] = True
    beside = None
    if reconstruction.labels is not None and len(reconstruction.labels) == len(reconstruction.images):
        agree = reconstruction.labels.cpu()[in_found] == truth.labels.cpu()[in_truth]
        beside = int(agree.sum()) / len(truth.labels)
    return Scores(pictures, *_compared(pictures, truth.images), found, recovered, beside)


def label_recovery(found: Tensor, truth: Tensor) -> float:
    """Share of the true labels that were found, as multisets: a batch has no order.

    >>> label_recovery(torch.tensor([1, 1, 0]), torch.tensor([1, 0, 0]))
    0.6666666666666666
    """
    classes = int(max([*found.tolist(), *truth.tolist()], default=0)) + 1
    ours, theirs = (np.bincount(labels.cpu().numpy(), minlength=classes) for labels in (found, truth))
    return float(np.minimum(ours, theirs).sum() / len(truth))


def baseline(public: Tensor, truth: Truth) -> Scores:
    """What the mean of the attacker's public images (count, channels, height, width) scores, without any attack."""
    mean = torch.from_numpy(_pictures(public)).mean(0).expand(truth.images.shape)
    return Scores(mean, *_compared(mean, truth.images), np.ones(len(mean), bool), None, None)


def null_scores(scored: Sequence[Scores], truths: Sequence[Truth], rng: np.random.Generator) -> list[Scores]:
    """What the same attack finds in another patient's update: permutation within class.

    Each truth is given the pictures of another update that shares no patient and no image with it, as many of its
    classes as there are; within a class pictures are again assigned to images at the least error, since the attack
    itself is scored so.

    Args:
        scored: what ``score`` gave, one an update.
        truths: of the same updates.
        rng: draws which update stands in for which.

    Returns:
        One for each truth; NaN for an image that has no counterpart.
    """
    partners = _partners(scored, truths, rng)
    return [
        _null_of(truth, None if other < 0 else scored[other], truths[max(other, 0)])
        for truth, other in zip(truths, partners, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """Where each target came among the images that it was sought in."""

    ranks: Floats  # (targets,), from 1; NaN where the gallery was too small
    gallery: int  # images in each gallery, the target's own among them

    def within(self, best: int) -> Rate:
        """Share of the targets among the first ``best``, of those that could be measured."""
        measured = self.ranks[~np.isnan(self.ranks)]
        return Rate(int((measured <= best).sum()), len(measured))

    @property
    def is_measurable(self) -> bool:
        """Had any target a gallery that is large enough?"""
        return bool((~np.isnan(self.ranks)).any())

    @property
    def words(self) -> str:
        """For a report."""
        if not self.is_measurable:
            return f"not measurable: fewer than {self.gallery - 1} other patients of the class"
        first, fifth = self.within(1), self.within(5)
        return f"rank@1 {first.value:.1%}, rank@5 {fifth.value:.1%} of {first.trials} in galleries of {self.gallery}"


def re_identification(
    found: Tensor, targets: Truth, gallery: Truth, embed: Embedding | None = None, size: int = MIN_GALLERY
) -> Ranks:
    """Seek each picture's own image among ``size - 1`` others of the same class, of as many other patients.

    Without ``embed``, likeness is the partial correlation of pixels given the gallery's mean image: brightness,
    contrast and the anatomy that all have in common fall out. An attack often misses just these, and a picture of
    11 dB may still give its patient away. (Of 60 X-rays of 64x64, faded to three tenths over their class's mean image,
    it finds all; plain correlation 65 %, squared error 15 %. Under noise the three are about equal.) With ``embed``, it
    is the cosine of the embeddings.

    Args:
        found: (count, channels, height, width), each beside its target.
        targets: their true images.
        gallery: from which the others are taken, in this order; those of the target's own patient, further ones of a
            patient and copies of the target are passed over.
        embed: such as a verification network.
        size: of each gallery, at least ``MIN_GALLERY``; the chance of rank 1 is 1 / size.

    Returns:
        Mean ranks where several images are equally like; NaN for a target whose class has too few other patients.

    Raises:
        ConfigError: a gallery of fewer than ``MIN_GALLERY`` is asked for.
    """
    if size < MIN_GALLERY:
        raise ConfigError(f"a gallery of {size}: re-identification means nothing below {MIN_GALLERY}")
    ours, own, others = (_features(images, embed) for images in (found, targets.images, gallery.images))
    ranks = np.full(len(found), math.nan)
    for place in range(len(found)):
        chosen = _strangers(targets, place, gallery)[: size - 1]
        if len(chosen) < size - 1:
            continue
        seen, sought = np.concatenate([own[place : place + 1], others[chosen]]), ours[place : place + 1]
        if embed is None:
            common = seen.mean(0)
            seen, sought = _without(common, seen), _without(common, sought)
        likeness = _unit(seen) @ _unit(sought)[0]
        better, equal = (likeness[1:] > likeness[0]).sum(), (likeness[1:] == likeness[0]).sum()
        ranks[place] = 1 + better + equal / 2
    return Ranks(ranks, size)


def _pictures(images: Tensor) -> Floats:
    """As the metrics compare them: float64, on the CPU, in [0, 1], nothing missing."""
    array = np.asarray(images.detach().cpu().double().numpy())
    if array.ndim != 4:
        raise ConfigError(f"images of shape {array.shape}; expected (count, channels, height, width)")
    clipped: Floats = np.clip(np.nan_to_num(array, nan=_GREY, posinf=1, neginf=0), 0, 1)
    return clipped


def _compared(found: Tensor, truth: Tensor) -> tuple[Floats, Floats, Floats]:
    return mse(found, truth), psnr(found, truth), ssim(found, truth)


def _partners(scored: Sequence[Scores], truths: Sequence[Truth], rng: np.random.Generator) -> list[int]:
    """For each update the one that stands in for it, each at most once; -1 for none.

    A random permutation among those that share most classes: ``rng`` decides between equally good ones.
    """
    count = len(truths)
    patients = [{truth.patient(place) for place in range(len(truth.images))} for truth in truths]
    images = [{image.tobytes() for image in _pictures(truth.images)} for truth in truths]  # a copy is no other image
    shared = np.array([[label_overlap(a.labels, b.labels) for b in truths] for a in truths], np.float64)
    for one in range(count):
        for other in range(count):
            akin = one == other or patients[one] & patients[other] or images[one] & images[other]
            if akin or scored[other].images is None:
                shared[one, other] = 0
    worth = shared + rng.random(shared.shape) / (count + 1) * (shared > 0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    partners = [-1] * count
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if shared[row, column] > 0:
            partners[row] = column
    return partners


def label_overlap(some: Tensor, others: Tensor) -> int:
    """How many labels two batches have in common, as multisets."""
    return round(label_recovery(some, others) * len(others))


def _null_of(truth: Truth, other: Scores | None, other_truth: Truth) -> Scores:
    """The other update's pictures as if they were of this truth, class by class."""
    pictures = torch.full(truth.images.shape, _GREY, dtype=torch.float64)
    found = np.zeros(len(pictures), bool)
    if other is not None and other.images is not None:
        for label in set(truth.labels.tolist()):
            here = torch.nonzero(truth.labels == label)[:, 0]
            there = torch.nonzero(other_truth.labels == label)[:, 0]
            if len(there):
                in_found, in_truth = match(other.images[there], truth.images[here])
                pictures[here[in_truth]] = other.images[there[in_found]]
                found[here[in_truth].numpy()] = True
    measures = [np.where(found, values, math.nan) for values in _compared(pictures, truth.images)]
    return Scores(pictures, measures[0], measures[1], measures[2], found, None, None)


def _strangers(targets: Truth, place: int, gallery: Truth) -> list[int]:
    """The gallery's images of the target's class, one a patient, of other patients than the target's."""
    seen, chosen = {targets.patient(place)}, []
    for other in torch.nonzero(gallery.labels == targets.labels[place])[:, 0].tolist():
        name = gallery.patient(other)
        if name not in seen and not torch.equal(gallery.images[other], targets.images[place]):
            seen.add(name)
            chosen.append(other)
    return chosen


def _features(images: Tensor, embed: Embedding | None) -> Floats:
    pictures = _pictures(images)
    if embed is not None:
        with torch.no_grad():
            return np.asarray(embed(torch.from_numpy(pictures).float()).double().cpu().numpy())
    return pictures.reshape(len(pictures), -1)


def _without(common: Floats, rows: Floats) -> Floats:
    """Each row less what brightness and the common image explain of it, by least squares."""
    explaining, _ = np.linalg.qr(np.stack([np.ones_like(common), common], 1))
    left: Floats = rows - (rows @ explaining) @ explaining.T
    return left


def _unit(rows: Floats) -> Floats:
    """Each row over its length; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    scaled: Floats = rows / np.where(lengths == 0, 1, lengths)
    return scaled
