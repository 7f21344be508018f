"""Real images for the benchmark of attacks, and the images that somebody attacks of their own.

| case | what | patients |
|---|---|---|
| `pneumonia28` | PneumoniaMNIST, 28x28 | unknown |
| `xrays64` | 1500 of Kermany's chest X-rays at 64x64 | from their names |
| `xrays224` | all of Kermany's chest X-rays at 224x224 | from the index |
| `cifar10` | 2500 images of CIFAR-10, 32x32 in colour | each image its own |
| `mnist` | the 10,000 test digits of MNIST, 28x28 | each image its own |
| `digits` | scikit-learn's bundled digits at 24x24: no X-rays, for where no data is to be had | each image its own |

They are read where they lie (``FEDVEIL_DATA_DIR``, or ``shared/data`` beside the checkout) and nothing is fetched.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..envoy.image_folder import scan
from ..envoy.pictures import Pixels, decode, fit
from ..envoy.records import DataOptions
from ..envoy.sources import open_files
from ..gradient_leakage.cases import ImagePool, patients_by_content
from ..utils.errors import DatasetError
from .chest_xrays import CLASSES, DATA_VARIABLE, data_folders

DIGITS_CASE = "digits"
_DIGITS_SCALE = 3  # 8x8 pixels are too few for a convolution of three layers
_DECODING_THREADS = 4
_BROKEN = (OSError, ValueError, EOFError, KeyError, zlib.error)


def load_pool(case: str) -> ImagePool:
    """The images of a case.

    Raises:
        DatasetError: there is no such case, or its set is not there; the message names the set.
    """
    if case not in _CASES:
        raise DatasetError(f"case {case!r}: expected one of {', '.join(_CASES)}")
    try:
        return _CASES[case]()
    except _BROKEN as error:
        raise DatasetError(f"the images of case {case} cannot be read: {type(error).__name__}: {error}") from error


def available_cases() -> tuple[str, ...]:
    """The cases whose sets are there; the bundled digits always are."""
    found = []
    for case, parts in _FILES.items():
        try:
            _file(*parts)
        except DatasetError:
            continue
        found.append(case)
    return (*found, DIGITS_CASE)


@dataclass(frozen=True, slots=True, eq=False)
class OwnImages:
    """Images that somebody brings; every one is used, in this order."""

    images: Tensor  # (count, channels, height, width), floating point in [0, 1]
    labels: Tensor  # (count,) int64
    classes: tuple[str, ...]  # names where a folder gave them


def read_images(path: Path, size: int | None = None) -> OwnImages:
    """Somebody's own images.

    Args:
        path: an npz file with ``images`` (count, channels, height, width), or (count, height, width) for one channel,
            of uint8 or floating point in [0, 1], and ``labels`` (count,); or a folder (or zip) of PNG and JPEG by
            class.
        size: the images of a folder are resized to so many pixels a side; needed where they differ.

    Raises:
        DatasetError: there is no such file, something is missing, out of range or of another shape, or it would need
            pickle.
    """
    if path.is_dir() or path.suffix.lower() == ".zip":
        return _of_folder(path, size)
    if not path.is_file():
        raise DatasetError(f"{path} is not there: expected an npz file, or a folder of images by class")
    if not is_zipfile(path):
        raise DatasetError(f"{path} is not an npz file: expected one, or a folder of images by class")
    try:
        # Opened here, as numpy leaves a file open that it finds damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            missing = {"images", "labels"} - set(arrays.files)
            if missing:
                raise DatasetError(
                    f"{path} holds {', '.join(arrays.files) or 'nothing'}; expected images and labels, "
                    f"{' and '.join(sorted(missing))} is missing"
                )
            found = arrays["images"], arrays["labels"]
    except (*_BROKEN, BadZipFile, AttributeError, TypeError) as error:
        pickled = " an array that needs pickle, which is never used" if "pickle" in str(error) else ""
        raise DatasetError(f"{path} cannot be read as npz{':' if pickled else ''}{pickled}") from error
    images = _checked_images(found[0], path)
    return OwnImages(images, _checked_labels(found[1], len(images), path), ())


def _checked_images(images: NDArray[Any], path: Path) -> Tensor:
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape:
        raise DatasetError(f"{path}: images of shape {images.shape}; expected (count, channels, height, width)")
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        raise DatasetError(f"{path}: images of shape {images.shape}; the channels come before height and width")
    if images.dtype == np.uint8:
        return torch.from_numpy(images / np.float32(255))
    if images.dtype not in (np.float16, np.float32, np.float64):
        raise DatasetError(f"{path}: images of {images.dtype}; expected uint8, or floating point in [0, 1]")
    if not np.isfinite(images).all():
        raise DatasetError(f"{path}: images hold NaN or infinity")
    if images.min() < 0 or images.max() > 1:
        raise DatasetError(
            f"{path}: images from {images.min():g} to {images.max():g}; give uint8, or floats divided into [0, 1]"
        )
    return torch.from_numpy(images.astype(np.float32) if images.dtype == np.float16 else images)


def _checked_labels(labels: NDArray[Any], count: int, path: Path) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DatasetError(
            f"{path}: labels {labels.shape} {labels.dtype} for {count} images; expected one whole number an image"
        )
    if labels.min() < 0:
        raise DatasetError(f"{path}: a label is {labels.min()}; classes count from 0")
    return torch.from_numpy(labels.astype(np.int64))


def _of_folder(path: Path, size: int | None) -> OwnImages:
    found = scan(path, DataOptions())
    if found.quarantined:
        first = found.quarantined[0]
        raise DatasetError(
            f"{path}: {len(found.quarantined)} images cannot be used, every image would be attacked; "
            f"the first is {first.id}: {first.reason}"
        )
    if not found.found:
        raise DatasetError(f"{path}: no PNG or JPEG in folders named for their classes")
    pixels = _decoded(path, [one.id for one in found.found])
    sizes = {one.shape[:2] for one in pixels}
    if size is None and len(sizes) > 1:
        raise DatasetError(f"{path}: images of {len(sizes)} sizes; give --image-size to resize them to one")
    height, width = (size, size) if size is not None else next(iter(sizes))
    channels = max(one.shape[2] for one in pixels)
    images = np.stack([_unit(fit(one, (channels, height, width))) for one in pixels])
    classes = tuple(sorted({one.label for one in found.found}))
    labels = torch.tensor([classes.index(one.label) for one in found.found])
    return OwnImages(torch.from_numpy(images), labels, classes)


def _decoded(path: Path, names: list[str]) -> list[Pixels]:
    """Pixels of each file, in the order of the names."""
    with open_files(path) as files, ThreadPoolExecutor(_DECODING_THREADS) as pool:
        return list(pool.map(lambda name: decode(files.read(name)), names))


def _unit(pixels: Pixels) -> NDArray[np.float32]:
    floats: NDArray[np.float32] = pixels.astype(np.float32)
    return floats / np.float32(255) if pixels.dtype == np.uint8 else floats


def _file(*parts: str) -> Path:
    """A file of the sets.

    Raises:
        DatasetError: it is not there.
    """
    folders = data_folders()
    for folder in folders:
        path = folder.joinpath(*parts)
        if path.is_file():
            return path
    raise DatasetError(
        f"the set {parts[0]} ({parts[1]}) is not in {', '.join(map(str, folders))}: set {DATA_VARIABLE} to the folder "
        f"that holds it, or use the case {DIGITS_CASE}, which is bundled"
    )


def _pneumonia28() -> ImagePool:
    with np.load(_file(*_FILES["pneumonia28"]), allow_pickle=False) as arrays:
        images = np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])
        labels = np.concatenate([arrays[f"{part}_labels"] for part in ("train", "val", "test")])[:, 0]
    return _pool("pneumonia28", images[:, None], labels, patients_by_content(images), CLASSES, is_xray=True)


def _xrays64() -> ImagePool:
    with np.load(_file(*_FILES["xrays64"]), allow_pickle=False) as arrays:
        images, labels, patients = arrays["images"], arrays["label"], arrays["patient"]
    return _pool("xrays64", images[:, None], labels, tuple(patients.tolist()), CLASSES, is_xray=True)


def _xrays224() -> ImagePool:
    with _file("chest-xray-pneumonia", "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [f"chest_xray/{row['split']}/{row['label']}/{row['filename']}" for row in rows]
    pixels = _decoded(_file(*_FILES["xrays224"]), names)
    images = np.stack([fit(one, (1, 224, 224)) for one in pixels]).astype(np.uint8)
    labels = np.array([row["label"] != "NORMAL" for row in rows])
    return _pool("xrays224", images, labels, tuple(row["patient"] for row in rows), CLASSES, is_xray=True)


def _cifar10() -> ImagePool:
    with np.load(_file(*_FILES["cifar10"]), allow_pickle=False) as arrays:
        images = np.concatenate([arrays["train_images"], arrays["test_images"]]).transpose(0, 3, 1, 2)
        labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]])
        classes = tuple(map(str, arrays["class_names"]))
    return _pool("cifar10", images, labels, patients_by_content(images), classes, is_xray=False)


def _mnist() -> ImagePool:
    with gzip.open(_file(*_FILES["mnist"])) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(_file("mnist-test", "t10k-labels-idx1-ubyte.gz")) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return _pool("mnist", images, labels, patients_by_content(images), tuple("0123456789"), is_xray=False)


def _digits() -> ImagePool:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    levels = (bundled.images * (255 / 16)).round().astype(np.uint8)
    images = np.kron(levels, np.ones((1, _DIGITS_SCALE, _DIGITS_SCALE), np.uint8))[:, None]
    classes = tuple("0123456789")
    return _pool(DIGITS_CASE, images, bundled.target, patients_by_content(images), classes, is_xray=False)


def _pool(
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    patients: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    is_xray: bool,
) -> ImagePool:
    held = torch.from_numpy(np.array(images, np.uint8, order="C"))
    return ImagePool(name, held, torch.from_numpy(labels.astype(np.int64)), patients, classes, is_xray)


_FILES = {
    "pneumonia28": ("pneumoniamnist", "pneumoniamnist.npz"),
    "xrays64": ("chest-xray-pneumonia", "chest_xray_64_subset.npz"),
    "xrays224": ("chest-xray-pneumonia", "chest_xray_224_jpeg.zip"),
    "cifar10": ("cifar10-subset", "cifar10_subset.npz"),
    "mnist": ("mnist-test", "t10k-images-idx3-ubyte.gz"),
}
_CASES: dict[str, Callable[[], ImagePool]] = {
    "pneumonia28": _pneumonia28,
    "xrays64": _xrays64,
    "xrays224": _xrays224,
    "cifar10": _cifar10,
    "mnist": _mnist,
    DIGITS_CASE: _digits,
}
