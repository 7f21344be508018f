"""Where the demo's images come from, in this order: given, found beside the checkout, fetched, or bundled digits.

The last are no X-rays, and every place that shows a result says so.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import __path__ as _package_path
from ..envoy.datasets import load
from ..envoy.inspection import inspect
from ..envoy.records import DataOptions, Example
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
    for folder in data_folders():
        found = folder / "pneumoniamnist" / "pneumoniamnist.npz"
        if found.exists():
            return _of_path(found, size, "PneumoniaMNIST (chest X-rays of children, 28x28)")
    fetched = _fetch(cache)
    if fetched is not None:
        return _of_path(fetched, size, "PneumoniaMNIST (chest X-rays of children, 28x28), through medmnist")
    return _digits(size)


def data_folders() -> list[Path]:
    """Where the real sets may lie: the folder that ``FEDVEIL_DATA_DIR`` names, else beside the checkout."""
    named = os.environ.get(DATA_VARIABLE)
    checkout = Path(next(iter(_package_path))).resolve()
    return [Path(named)] if named else [checkout.parent / "shared" / "data"]


def _of_path(path: Path, size: int, description: str) -> Images3:
    spec = DataSpec("demo", DataKind.IMAGES, (1, size, size), CLASSES)
    found = inspect("demo", path, DataOptions(CLASSES), time.time())
    options = _options_for(path, found.index.examples)
    if options is not None:
        found = inspect("demo", path, options, time.time())
    loaded = load(found.record, found.index, spec)
    ordered = sorted(found.index.examples, key=lambda example: example.split)
    patients = _patients(path, [example.id for example in ordered], options)
    parts = []
    for split in (Split.TRAIN, Split.VALIDATION, Split.TEST):
        features, labels = loaded.part(split)
        images = ((features * 255).round() if features.dtype == np.float32 else features).astype(np.uint8)
        groups = tuple(itertools.compress(patients, loaded.split == split))
        parts.append(Part(images[:, 0], labels, groups))
        lacking = [name for label, name in enumerate(CLASSES) if label not in labels]
        if lacking:
            raise DatasetError(f"{path}: no image of {' and '.join(lacking)} for {split.word}; the demo needs both")
    return Images3(description, True, *parts)


def _options_for(path: Path, examples: Sequence[Example]) -> DataOptions | None:
    """Where patients are known, by an array of the npz or by Kermany's file names, no two parts share one."""
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
        patient = "patient" if names & {"patient", "train_patient"} else None
        split = "split" if {"images", "split"} <= names else None
        return DataOptions(CLASSES, patient=patient, split_column=split) if patient or split else None
    if all(_KERMANY_PATIENT.search(example.id) for example in examples):
        rule = SplitRule(given=GivenSplits.KEEP_TEST)  # the published validation part has 16 images
        return DataOptions(CLASSES, patient=_KERMANY_PATIENT.pattern, rule=rule)
    return None


def _patients(path: Path, ids: Sequence[str], options: DataOptions | None) -> list[str]:
    """The patient of each example; the example itself where nothing is known."""
    if options is None or options.patient is None:
        return list(ids)
    if path.suffix.lower() != ".npz":
        return [found[1] if (found := _KERMANY_PATIENT.search(id_)) else id_ for id_ in ids]
    with np.load(path, allow_pickle=False) as arrays:
        named = {name: arrays[name] for name in arrays.files if name.endswith("patient")}
    places = [id_.rpartition("/") for id_ in ids]
    return [str(named[f"{part}_patient" if part else "patient"][int(number)]) for part, _, number in places]


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
    for start, end in itertools.pairwise(ends):
        chosen = order[start:end]
        parts.append(Part(images[chosen], labels[chosen], tuple(map(str, chosen))))
    return Images3("scikit-learn's handwritten digits, odd against even - NOT X-rays", False, *parts)
