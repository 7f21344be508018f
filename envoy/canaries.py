"""Public images that stand in for a site's own wherever what leaks is measured and published.

By default the handwritten digits that come with scikit-learn (UCI, 1,797 images of 8x8), brought to the plan's shape;
or a folder or npz of the site's choice. Nothing here knows the site's datasets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.data_spec import DataKind, DataSpec
from ..utils.errors import ConfigError, DatasetError
from ..utils.tensors import Digest, canonical_json, digest_of
from . import image_folder, npz
from .inspection import inspect
from .pictures import fit
from .records import DataOptions, DatasetFormat

NUM_TARGETS = 4  # whose updates are attacked
_MIN_CANARIES = 32  # among which a target is sought again
_MAX_CANARIES = 400
_DIGIT_LEVELS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Canaries:
    """Images in [0, 1] with the classes that their own set gives them; the targets stand first, two of a class."""

    images: NDArray[np.float32]  # (count, channels, height, width)
    classes: NDArray[np.int64]  # (count,)

    @property
    def digest(self) -> Digest:
        """Of the pixels and classes."""
        shape = canonical_json(list(self.images.shape))
        return digest_of(shape, self.images.tobytes(), self.classes.tobytes())


def canaries_for(spec: DataSpec, source: Path | None) -> Canaries:
    """Canaries in the shape that a plan asks for.

    Args:
        spec: the plan's.
        source: a folder of images, a zip of one, or an npz; None for the digits.

    Raises:
        ConfigError: the plan does not read images of one or three channels.
        DatasetError: the source is no such thing, or holds fewer than 32 images or too few of a class.
    """
    if spec.kind is not DataKind.IMAGES or spec.shape[0] not in (1, 3):
        raise ConfigError(f"the plan reads {spec.kind.value} {spec.shape}: leakage is measured on images alone")
    images, classes = _digits(spec.shape) if source is None else _read(source, spec.shape)
    if len(images) < _MIN_CANARIES:
        raise DatasetError(f"{source} holds {len(images)} images, expected at least {_MIN_CANARIES} canaries")
    order = _targets_first(images, classes)[:_MAX_CANARIES]
    return Canaries(images[order], classes[order])


def _digits(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = (bunch.images[:_MAX_CANARIES] * (255 / _DIGIT_LEVELS)).round().astype(np.uint8)
    fitted = np.stack([fit(image[:, :, np.newaxis], shape) for image in levels])
    return _unit_range(fitted), bunch.target[:_MAX_CANARIES].astype(np.int64)


def _read(source: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Evenly spread over what is there: sets often lie class by class."""
    found = inspect("canaries", source, DataOptions(), now=0.0)
    if found.record.format is DatasetFormat.TABLE:
        raise DatasetError(f"{source} is a table; canaries are images")
    everything = found.index.examples
    places = np.unique(np.linspace(0, len(everything) - 1, min(len(everything), _MAX_CANARIES)).astype(int))
    examples = [everything[place] for place in places]
    reader = npz.load if found.record.format is DatasetFormat.NPZ else image_folder.load
    pixels, num_changed = reader(Path(found.record.path), examples, shape, is_deep=found.record.has_deep_pixels)
    if num_changed:
        raise DatasetError(f"{source}: {num_changed} images changed while they were read")
    return _unit_range(pixels), np.array([example.label for example in examples], np.int64)


def _unit_range(pixels: NDArray[Any]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)


def _targets_first(images: NDArray[np.float32], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The two least alike of a class each, of the classes where they are least alike; then the others, without copies.

    What an attack shows is compared with what it shows of the other of the class: were they alike, a perfect picture
    would gain next to nothing.

    Raises:
        DatasetError: fewer than two classes with two different images each.
    """
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    own = np.sort(first)
    held = [own[classes[own] == label] for label in np.unique(classes[own])]
    pairs = sorted((_least_alike(images, places) for places in held if len(places) > 1), key=lambda pair: pair[0])
    if len(pairs) < NUM_TARGETS // 2:
        raise DatasetError(f"too few different canaries: expected two in each of {NUM_TARGETS // 2} classes")
    targets = np.concatenate([pair for _, pair in pairs[: NUM_TARGETS // 2]])
    return np.concatenate([targets, own[~np.isin(own, targets)]])


def _least_alike(images: NDArray[np.float32], places: NDArray[np.int64]) -> tuple[float, NDArray[np.int64]]:
    """Two of these images, and their correlation."""
    rows = images[places].reshape(len(places), -1)
    likeness: NDArray[np.float64] = np.nan_to_num(np.asarray(np.corrcoef(rows)), nan=1.0)
    one, other = np.unravel_index(int(likeness.argmin()), likeness.shape)
    return float(likeness[one, other]), places[[one, other]]
