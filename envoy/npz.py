"""Images in one npz file: MedMNIST's six keys, or plain ``images`` and ``labels``. Never with pickle.

Images are uint8, uint16, or floating point in [0, 1]; (N, height, width), or (N, height, width, channels) with 1 or
3 channels. Labels are whole numbers, (N,) or (N, 1). ``{train,val,test}_patient`` or ``patient`` names the patients
where the site says so, and a column of splits may stand beside plain images.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import DatasetError
from ..utils.tensors import digest_of
from .pictures import Pixels, fit
from .records import DataOptions, Example, Found, Quarantined, Scan
from .sources import file_digest
from .splits import Split, split_named

_PARTS = {"train": Split.TRAIN, "val": Split.VALIDATION, "test": Split.TEST}
_BROKEN = (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True, repr=False)
class _Part:
    """Some images of the file: all of them, or those of one split."""

    prefix: str  # "train/", or nothing
    split: Split | None
    images: NDArray[Any]
    labels: NDArray[Any]
    patients: NDArray[Any] | None
    splits: NDArray[Any] | None


def scan(path: Path, options: DataOptions) -> Scan:
    """Look at every image once.

    Raises:
        DatasetError: no npz file, or its arrays are not images and labels; the message says which and why.
    """
    found: list[Found] = []
    quarantined: list[Quarantined] = []
    is_deep = False
    with _opened(path) as arrays:
        for part in _parts(arrays, options):
            is_deep |= part.images.dtype != np.uint8
            for place, image in enumerate(part.images):
                id_ = f"{part.prefix}{place}"
                patient = None if part.patients is None else str(part.patients[place]).strip()
                split = part.split if part.splits is None else split_named(str(part.splits[place]))
                if image.dtype.kind == "f" and not (np.isfinite(image).all() and 0 <= image.min() <= image.max() <= 1):
                    quarantined.append(Quarantined(id_, "its pixels are not all in [0, 1]"))
                elif patient == "":
                    quarantined.append(Quarantined(id_, "no patient"))
                elif split is None and part.splits is not None:
                    quarantined.append(Quarantined(id_, f"{options.split_column} is neither train, val nor test"))
                else:
                    raw = np.ascontiguousarray(image).data.cast("B")
                    found.append(Found(id_, str(part.labels[place]), len(raw), digest_of(raw), patient, split))
    return Scan(tuple(found), tuple(quarantined), has_deep_pixels=is_deep, source_digest=file_digest(path))


def load(path: Path, examples: Sequence[Example], shape: tuple[int, ...], *, is_deep: bool) -> tuple[Pixels, int]:
    """The examples as (N, channels, height, width), and how many are not as they were recorded.

    Raises:
        DatasetError: no npz file, or its arrays are not images.
    """
    features = np.zeros((len(examples), *shape), np.float32 if is_deep else np.uint8)
    num_changed = 0
    with _opened(path) as arrays:
        parts = {part.prefix: part.images for part in _parts(arrays, DataOptions())}
        for place, example in enumerate(examples):
            prefix, slash, number = example.id.rpartition("/")
            images = parts.get(prefix + slash)
            if images is None or int(number) >= len(images):
                num_changed += 1
                continue
            image = images[int(number)]
            if digest_of(np.ascontiguousarray(image).data.cast("B")) != example.digest:
                num_changed += 1
                continue
            features[place] = fit(_pixels(image, is_deep=is_deep), shape)
    return features, num_changed


def texts(path: Path, examples: Sequence[Example], name: str) -> list[str | None]:
    """What an array beside the images says of each example, as text: ``NAME``, or ``train_NAME`` and its like.

    Raises:
        DatasetError: no npz file, or no such array with one value an image.
    """
    held: dict[str, NDArray[Any]] = {}
    found: list[str | None] = []
    with _opened(path) as arrays:
        for example in examples:
            prefix, slash, number = example.id.rpartition("/")
            key = f"{prefix}_{name}" if slash else name
            values = held[key] if key in held else held.setdefault(key, _array(arrays, key))
            if values.ndim != 1 or int(number) >= len(values):
                raise DatasetError(f"{key}: {values.shape}; expected one value an image")
            found.append(str(values[int(number)]).strip() or None)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    with ExitStack() as stack:
        try:  # opened here, as numpy leaves a file open that it finds damaged
            file = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
        except _BROKEN as error:
            raise DatasetError(f"{path} is not a readable npz file") from error
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DatasetError(f"{path} holds one array; images and labels are asked for")
        yield stack.enter_context(file)


def _parts(arrays: Mapping[str, NDArray[Any]], options: DataOptions) -> Iterator[_Part]:
    splits = [word for word in _PARTS if f"{word}_images" in arrays]
    if not splits and "images" not in arrays:
        raise DatasetError(
            f"the npz file holds {', '.join(sorted(arrays))}; expected train_images and train_labels, "
            "or images and labels"
        )
    for word in splits or [""]:
        prefix = f"{word}_" if word else ""
        images = _checked_images(_array(arrays, f"{prefix}images"), f"{prefix}images")
        labels = _array(arrays, f"{prefix}labels" if f"{prefix}labels" in arrays else f"{prefix}label")
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "iub":
            raise DatasetError(f"{prefix}labels: {labels.shape} {labels.dtype}; expected one whole number an image")
        patients = _array(arrays, f"{prefix}{options.patient}") if options.patient else None
        given = _array(arrays, f"{prefix}{options.split_column}") if options.split_column else None
        for name, column in (("labels", labels), (options.patient, patients), (options.split_column, given)):
            if column is not None and column.shape != (len(images),):
                raise DatasetError(f"{prefix}{name}: {column.shape} for {len(images)} images; expected one an image")
        yield _Part(f"{word}/" if word else "", _PARTS.get(word), images, labels.astype(np.int64), patients, given)


def _array(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """One array of the file, decoded now."""
    if name not in arrays:
        raise DatasetError(f"the npz file has no {name}; it holds {', '.join(sorted(arrays))}")
    try:
        return np.asarray(arrays[name])
    except _BROKEN as error:
        raise DatasetError(f"{name} in the npz file is damaged, or needs pickle, which is never used") from error


def _checked_images(images: NDArray[Any], name: str) -> NDArray[Any]:
    """As (N, height, width, channels)."""
    if images.ndim == 3:
        images = images[:, :, :, np.newaxis]
    is_image = images.ndim == 4 and images.shape[3] in (1, 3) and 0 not in images.shape[1:]
    if not is_image or images.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise DatasetError(
            f"{name}: {images.shape} {images.dtype}; expected (N, height, width) or (N, height, width, 1 or 3) "
            "of uint8, uint16 or floating point"
        )
    return images


def _pixels(image: NDArray[Any], *, is_deep: bool) -> Pixels:
    """uint8, or float32 in [0, 1]."""
    if not is_deep:
        return image.astype(np.uint8, copy=False)
    scale = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65_535}.get(image.dtype, 1)
    return image.astype(np.float32) / np.float32(scale)
