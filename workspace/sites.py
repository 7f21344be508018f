"""Divide one set of images over sites that differ: in size, and in how many of their patients are ill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .chest_xrays import Images3, Part


@dataclass(frozen=True, slots=True)
class SiteShare:
    """What one site gets of each class; the shares of all sites sum to one."""

    name: str
    organization: str
    of_normal: float
    of_pneumonia: float


THREE_SITES = (
    SiteShare("site-a", "University Hospital A", 0.35, 0.60),
    SiteShare("site-b", "City Hospital B", 0.25, 0.30),
    SiteShare("site-c", "Clinic C", 0.40, 0.10),
)
"""What the benchmarks of codecs and defenses divide over: plain loops, without a secure sum."""
DEMO_SITES = (
    SiteShare("site-a", "University Hospital A", 0.30, 0.45),
    SiteShare("site-b", "City Hospital B", 0.20, 0.25),
    SiteShare("site-c", "Clinic C", 0.35, 0.10),
    SiteShare("site-d", "District Hospital D", 0.15, 0.20),
)
"""Four: a secure sum of three tolerates no site that drops out, one of four tolerates one."""


def divide(images: Images3, shares: tuple[SiteShare, ...], folder: Path, seed: int = 0) -> Mapping[str, Path]:
    """Write each site's images to ``folder/SITE/images.npz``, with training and validation parts; gives the paths.

    All images of one patient go to one site. The test part goes to nobody.
    """
    rng = np.random.default_rng(seed)
    train = assign(images.train, shares, rng)
    validation = assign(images.validation, shares, rng)
    owner_of = dict(zip(images.train.groups, train, strict=True))  # a given set may validate with patients it trains on
    validation = np.array([owner_of.get(*pair) for pair in zip(images.validation.groups, validation, strict=True)])
    paths = {}
    for number, share in enumerate(shares):
        path = folder / share.name / "images.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for word, part, owner in (("train", images.train, train), ("val", images.validation, validation)):
            arrays[f"{word}_images"] = part.images[owner == number]
            arrays[f"{word}_labels"] = part.labels[owner == number].astype(np.uint8)[:, None]
        np.savez(path, **arrays)
        paths[share.name] = path
    return paths


def set_aside(images: Images3, share: float, seed: int = 0) -> tuple[Images3, Part]:
    """Take a share of the training patients out, for a public part that no site gets.

    Returns:
        The images without any of these patients' (none in validation either), and the part that was taken.
    """
    shares = (SiteShare("public", "", share, share), SiteShare("sites", "", 1 - share, 1 - share))
    is_public = assign(images.train, shares, np.random.default_rng(seed)) == 0
    public = _chosen(images.train, is_public)
    patients = set(public.groups)
    validates = np.array([group not in patients for group in images.validation.groups], bool)
    kept = replace(images, train=_chosen(images.train, ~is_public), validation=_chosen(images.validation, validates))
    return kept, public


def _chosen(part: Part, is_chosen: NDArray[np.bool_]) -> Part:
    groups = tuple(group for group, is_one in zip(part.groups, is_chosen, strict=True) if is_one)
    return Part(part.images[is_chosen], part.labels[is_chosen], groups)


def assign(part: Part, shares: tuple[SiteShare, ...], rng: np.random.Generator) -> NDArray[np.int64]:
    """The site of each image, (count,)."""
    owner = np.zeros(len(part.labels), np.int64)
    groups, group_of = np.unique(np.array(part.groups), return_inverse=True)
    label_of_group = np.zeros(len(groups), np.int64)
    np.maximum.at(label_of_group, group_of, part.labels)  # a patient who is ill once counts as ill
    for label in (0, 1):
        fractions = [share.of_pneumonia if label else share.of_normal for share in shares]
        members = rng.permutation(np.flatnonzero(label_of_group == label))
        cuts = np.round(np.cumsum(fractions)[:-1] * len(members)).astype(np.int64)
        for number, chosen in enumerate(np.split(members, cuts)):
            owner[np.isin(group_of, chosen)] = number
    return owner
