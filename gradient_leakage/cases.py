"""Whose images are attacked: a pool of real images, what of it is public, and which batches are targets.

Everything goes by patient: nobody's images are both the attacker's and attacked, and no two targets are of one patient.
Images come in as values; finding and reading files is the workspace's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..utils.errors import ConfigError
from .metrics import Truth
from .threat_model import ImageDomain, PublicImages

STATES: Mapping[str, int] = MappingProxyType({"fresh": 0, "one-epoch": 1, "converged": 20})
"""How far the published model was trained, in epochs over the public part; targets never train it."""

PUBLIC_SHARE = 0.5  # of the patients


@dataclass(frozen=True, slots=True, eq=False)
class ImagePool:
    """Images of one kind with their labels and patients.

    Raises:
        ConfigError: not one label and one patient an image, or images of another kind than uint8 or float.
    """

    name: str  # pneumonia28, xrays64, ...
    images: Tensor  # (count, channels, height, width): uint8, or floating point in [0, 1]
    labels: Tensor  # (count,) int64, places in ``classes``
    patients: tuple[str, ...]  # (count,)
    classes: tuple[str, ...]
    is_xray: bool

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        count = len(self.images)
        if self.images.ndim != 4 or self.labels.shape != (count,) or len(self.patients) != count:
            raise ConfigError(
                f"pool {self.name}: images {tuple(self.images.shape)}, labels {tuple(self.labels.shape)} and "
                f"{len(self.patients)} patients do not fit together"
            )
        if self.images.dtype is not torch.uint8 and not self.images.is_floating_point():
            raise ConfigError(f"pool {self.name}: images of {self.images.dtype}; expected uint8, or floats in [0, 1]")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def domain(self) -> ImageDomain:
        """Shape and number of classes."""
        return ImageDomain((self.images.shape[1], self.images.shape[2], self.images.shape[3]), len(self.classes))

    def at(self, places: Sequence[int]) -> ImagePool:
        """Some of the images, in this order."""
        chosen = torch.as_tensor(places, dtype=torch.int64)
        patients = tuple(self.patients[place] for place in places)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], patients=patients)

    def truth(self) -> Truth:
        """All of them as float32 in [0, 1], for whoever scores."""
        return Truth(self._floats(), self.labels, self.patients)

    def public(self) -> PublicImages:
        """All of them as float32 in [0, 1], for an attacker."""
        return PublicImages(self._floats(), self.labels)

    def _floats(self) -> Tensor:
        return self.images / 255 if self.images.dtype is torch.uint8 else self.images.float()


def patients_by_content(images: NDArray[np.generic]) -> tuple[str, ...]:
    """Where nothing is known of the patients: each image is of its own, but copies are of one.

    >>> patients_by_content(np.array([[1, 2], [3, 4], [1, 2]], np.uint8))
    ('#a12871fee210', '#0ce3940bebf2', '#a12871fee210')
    """
    return tuple("#" + sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:12] for image in images)


def split(pool: ImagePool, seed: int = 0) -> tuple[ImagePool, ImagePool]:
    """The public part and the part with the targets; no patient is in both. Each comes in an order drawn from the seed.

    The attacker trains on the public part, and so was the published model. Galleries are taken from the other one, so
    that a verification network has seen none of their images.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(pool.patients))
    rng.shuffle(names)
    public = set(names[: round(PUBLIC_SHARE * len(names))])
    order = rng.permutation(len(pool)).tolist()
    return (
        pool.at([place for place in order if pool.patients[place] in public]),
        pool.at([place for place in order if pool.patients[place] not in public]),
    )


def draw_targets(pool: ImagePool, batch: int, count: int) -> list[ImagePool]:
    """Batches to be attacked; no patient comes twice, and more batches go on where fewer ended.

    The classes take turns, so a batch is as balanced as its size allows. Two batches in a row are of the same classes,
    so that each has a null: the same attack on another patient of the class.

    Args:
        pool: the part with the targets; images are taken in its order.
        batch: images in each.
        count: how many batches.

    Raises:
        ConfigError: a class has too few patients; the message says how many batches there are.
    """
    first_of: dict[str, int] = {}
    for place, patient in enumerate(pool.patients):
        first_of.setdefault(patient, place)
    waiting = [[place for place in first_of.values() if pool.labels[place] == c] for c in range(len(pool.classes))]
    present = [label for label, places in enumerate(waiting) if places]
    taken = [0] * len(waiting)
    batches = []
    for number in range(count):
        places = []
        for slot in range(batch):
            label = present[(number // 2 * batch + slot) % len(present)]
            if taken[label] == len(waiting[label]):
                raise ConfigError(
                    f"{pool.name}: {count} batches of {batch} images of different patients are asked for, there are "
                    f"{number}: class {pool.classes[label]} has {len(waiting[label])} patients"
                )
            places.append(waiting[label][taken[label]])
            taken[label] += 1
        batches.append(pool.at(places))
    return batches
