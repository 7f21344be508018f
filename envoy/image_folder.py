"""Image folders, unpacked or in a zip file: a folder is a class, with train, val and test folders above it or not.

An image that cannot be read is put in quarantine with the reason, and the rest goes on. Folders below a class (one
a patient, say) belong to it; a zip may have one folder around everything. Files that are no PNG or JPEG by their
name, and hidden ones, are left alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..utils.errors import DatasetError
from ..utils.tensors import digest_of
from .pictures import Pixels, decode, fit
from .records import DataOptions, Example, Found, Quarantined, Scan
from .sources import SourceFiles, open_files
from .splits import Split, split_named

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_THREADS = min(4, os.cpu_count() or 1)  # Pillow decodes outside the interpreter's lock


class Place(NamedTuple):
    """What the folders around an image say of it."""

    name: str
    label: str
    split: Split | None


def scan(path: Path, options: DataOptions, *, decodes: bool = True) -> Scan:
    """Find every image, and decode each once unless told otherwise.

    Raises:
        DatasetError: the path cannot be read at all, or the patient pattern is wrong.
    """
    pattern = options.patient_pattern()
    known = frozenset(value.casefold() for _, values in options.class_values() for value in values)
    with open_files(path) as files, ThreadPoolExecutor(_THREADS) as pool:
        images, quarantined, num_others = _images(files.names())
        places, astray = arrange(images, known, may_unwrap=path.is_file())
        looked = list(pool.map(lambda place: _look(files, place, pattern, decodes=decodes), places))
    found = [one for one in looked if isinstance(one, tuple)]
    return Scan(
        found=tuple(example for example, _ in found),
        quarantined=(*quarantined, *astray, *(one for one in looked if isinstance(one, Quarantined))),
        warnings=(f"{num_others} files are no PNG or JPEG by their names and were left alone",) * bool(num_others),
        has_deep_pixels=any(is_deep for _, is_deep in found),
    )


def arrange(
    names: Sequence[str], classes: frozenset[str], *, may_unwrap: bool
) -> tuple[list[Place], list[Quarantined]]:
    """Class and split of each image by its folders: ``[wrapper/][split/]class/[any/]file``.

    A folder around everything is only looked for in a zip (``may_unwrap``), and a known class is never taken for one.

    >>> arrange(["x/train/ill/1.png"], frozenset(), may_unwrap=True)[0]
    [Place(name='x/train/ill/1.png', label='ill', split=<Split.TRAIN: 0>)]
    """
    folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    depth = _wrappers(list(folders.values()), classes) if may_unwrap else 0
    has_splits = any(len(parts) > depth and _is_training(parts[depth]) for parts in folders.values())
    places: list[Place] = []
    astray: list[Quarantined] = []
    for name, parts in folders.items():
        split = split_named(parts[depth]) if has_splits and len(parts) > depth else None
        below = parts[depth + has_splits :]
        if has_splits and split is None:
            astray.append(Quarantined(name, "outside the train, val and test folders"))
        elif not below:
            astray.append(Quarantined(name, "not in the folder of a class"))
        else:
            places.append(Place(name, below[0], split))
    return places, astray


def load(path: Path, examples: Sequence[Example], shape: tuple[int, ...], *, is_deep: bool) -> tuple[Pixels, int]:
    """Decode the examples into (N, channels, height, width), and count those that are not as they were recorded.

    Raises:
        DatasetError: the path cannot be read at all.
    """
    features = np.zeros((len(examples), *shape), np.float32 if is_deep else np.uint8)
    with open_files(path) as files, ThreadPoolExecutor(_THREADS) as pool:

        def fill(place: int) -> bool:
            example = examples[place]
            try:
                raw = files.read(example.id)
                if digest_of(raw) != example.digest:
                    return False
                pixels = decode(raw)
            except DatasetError:
                return False
            is_scaled = is_deep and pixels.dtype == np.uint8
            features[place] = fit(pixels, shape) / np.float32(255) if is_scaled else fit(pixels, shape)
            return True

        return features, sum(not is_same for is_same in pool.map(fill, range(len(examples))))


def _look(
    files: SourceFiles, place: Place, pattern: re.Pattern[str] | None, *, decodes: bool
) -> tuple[Found, bool] | Quarantined:
    """One image, and whether its pixels are deeper than 8 bits."""
    patient = None
    if pattern is not None:
        match = pattern.search(PurePosixPath(place.name).name)
        patient = next((group for group in match.groups() if group), None) if match else None
        if patient is None:
            return Quarantined(place.name, "its name does not fit the patient pattern")
    try:
        raw = files.read(place.name)
        is_deep = decodes and decode(raw).dtype != np.uint8
    except DatasetError as error:
        return Quarantined(place.name, str(error))
    return Found(place.name, place.label, len(raw), digest_of(raw), patient, place.split), is_deep


def _wrappers(folders: Sequence[tuple[str, ...]], classes: frozenset[str]) -> int:
    """How many folders are around everything."""
    depth = 0
    while folders and all(len(parts) > depth + 1 for parts in folders):
        first = {parts[depth] for parts in folders}
        word = next(iter(first))
        if len(first) > 1 or word.casefold() in classes or _is_training(word):
            break
        depth += 1
    return depth


def _is_training(word: str) -> bool:
    return not word.isdigit() and split_named(word) is Split.TRAIN


def _images(names: Sequence[str]) -> tuple[list[str], list[Quarantined], int]:
    """The images by their names, those whose names cannot be written down, and the number of other files."""
    images: list[str] = []
    quarantined: list[Quarantined] = []
    num_others = 0
    for name in names:
        path = PurePosixPath(name)
        plain = name.encode("utf-8", "backslashreplace").decode()
        if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            num_others += 1
        elif plain == name:
            images.append(name)
        else:
            quarantined.append(Quarantined(plain, "its name is not UTF-8"))
    return images, quarantined, num_others
