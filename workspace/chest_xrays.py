"""Where the demo's images come from, in this order: given, found beside the checkout, fetched, or bundled digits.

The last are no X-rays, and every place that shows a result says so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import __path__ as _package_path
from ..envoy.datasets import load
from ..envoy.inspection import inspect
from ..envoy.records import DataOptions
from ..envoy.splits import GivenSplits, Split, SplitRule
from ..utils.data_spec import DataKind, DataSpec
from ..utils.errors import DatasetError

CLASSES = ("normal", "pneumonia")
DATA_VARIABLE = "FEDVEIL_DATA_DIR"
_KERMANY_PATIENT = re.compile(r"(person\d+|(?:NORMAL2-)?IM-\d+)")
_FETCH_SECONDS = 60

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """Some images with their labels; ``groups`` names the patient of each where that is known."""

    images: Images  # (count, size, size) grey
    labels: Labels  # (count,) index into CLASSES
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Images3:
    """Training, validation and test part of a source."""

    description: str  # what it is, for people
    is_xrays: bool
    train: Part
    validation: Part
    test: Part


def find_images(path: Path | None, size: int, cache: Path) -> Images3:
    """The demo's images, resized to ``size`` x ``size``.

    Args:
        path: a MedMNIST-style npz, a zip or a folder of images by class; None looks further.
        size: of the images, in pixels.
        cache: takes what is fetched.

    Raises:
        DatasetError: the path holds no usable images.
    """
    if path is not None:
        return _of_path(path, size, f"{path.name}, given by --data")
    for folder in _folders():
        found = folder / "pneumoniamnist" / "pneumoniamnist.npz"
        if found.exists():
            return _of_path(found, size, "PneumoniaMNIST (chest X-rays of children, 28x28)")
    fetched = _fetch(cache)
    if fetched is not None:
        return _of_path(fetched, size, "PneumoniaMNIST (chest X-rays of children, 28x28), through medmnist")
    return _digits(size)


def _folders() -> list[Path]:
    named = os.environ.get(DATA_VARIABLE)
    checkout = Path(next(iter(_package_path))).resolve()
    return [Path(named)] if named else [checkout.parent / "shared" / "data"]


def _of_path(path: Path, size: int, description: str) -> Images3:
    spec = DataSpec("demo", DataKind.IMAGES, (1, size, size), CLASSES)
    found = inspect("demo", path, DataOptions(CLASSES), time.time())
    if path.suffix != ".npz" and all(_KERMANY_PATIENT.search(example.id) for example in found.index.examples):
        rule = SplitRule(given=GivenSplits.KEEP_TEST)  # the published validation part has 16 images
        options = DataOptions(CLASSES, patient=_KERMANY_PATIENT.pattern, rule=rule)
        found = inspect("demo", path, options, time.time())
    loaded = load(found.record, found.index, spec)
    names = [example.id for example in sorted(found.index.examples, key=lambda example: example.split)]
    parts = []
    for split in (Split.TRAIN, Split.VALIDATION, Split.TEST):
        features, labels = loaded.part(split)
        images = (features * 255).astype(np.uint8) if loaded.features.dtype == np.float32 else features.astype(np.uint8)
        groups = tuple(_patient(name) for name, kept in zip(names, loaded.split == split, strict=True) if kept)
        parts.append(Part(images[:, 0], labels, groups))
    if any(not len(part.labels) for part in parts):
        raise DatasetError(f"{path}: the demo needs images for training, validation and test")
    return Images3(description, True, *parts)


def _patient(name: str) -> str:
    found = _KERMANY_PATIENT.search(name)
    return found[1] if found else name


def _fetch(cache: Path) -> Path | None:
    """The official file through the medmnist package; None without a network. It runs apart, with a time limit."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "pneumoniamnist.npz"
    if not path.exists():
        text = f"import medmnist; medmnist.PneumoniaMNIST(split='train', root={str(cache)!r}, download=True)"
        try:
            subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, timeout=_FETCH_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            path.unlink(missing_ok=True)
            return None
    return path


def _digits(size: int) -> Images3:
    """scikit-learn's bundled handwritten digits, odd against even."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    repeats = -(-size // 8)
    enlarged = np.kron(bundled.images * (255 / 16), np.ones((1, repeats, repeats)))[:, :size, :size]
    images, labels = enlarged.astype(np.uint8), (bundled.target % 2).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    ends = (0, int(0.7 * len(order)), int(0.8 * len(order)), len(order))
    parts = []
    for start, end in pairwise(ends):
        chosen = order[start:end]
        parts.append(Part(images[chosen], labels[chosen], tuple(map(str, chosen))))
    return Images3("scikit-learn's handwritten digits, odd against even - NOT X-rays", False, *parts)
