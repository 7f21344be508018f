"""A learner's data: registered as ``envoy data add`` does, and looked at without a word to anybody."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import DatasetError, StorageError
from ...utils.private_files import make_private_folder
from ...utils.tensors import digest_of
from ..datasets import DatasetRegistry
from ..inspection import inspect
from ..records import DataOptions, DatasetIndex, DatasetRecord, require_name

ARRAYS_FOLDER = "own-data"
"""Arrays that were handed over lie here, in the envoy's folder, readable by its owner alone."""

Arrays: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""Images (N, height, width) or (N, height, width, 1 or 3), and a whole number for each."""
Given: TypeAlias = "str | Path | Arrays"


@dataclass(frozen=True, slots=True)
class LocalAnalysis:
    """What a data set holds, as its index says. It is for the site; nothing of it is sent anywhere."""

    dataset: str
    num_examples: int
    label_distribution: Mapping[str, int] = field(repr=False)  # examples of each class, those with none too
    num_train: int
    num_validation: int
    num_test: int
    num_quarantined: int
    num_patients: int | None = field(repr=False)  # None: the site does not say who is whose
    format: str

    @property
    def label_shares(self) -> dict[str, float]:
        """Each class's part of all examples."""
        return {name: count / max(1, self.num_examples) for name, count in self.label_distribution.items()}


class OwnData:
    """The data sets in an envoy's folder.

    Args:
        folder: the envoy's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._registry = DatasetRegistry(folder / "datasets")

    @property
    def names(self) -> tuple[str, ...]:
        """What is registered."""
        return tuple(record.name for record in self._registry.list())

    def has(self, name: str) -> bool:
        """Is one of that name registered?"""
        return name in self.names

    def is_name(self, given: object) -> bool:
        """Does this stand for a registered data set?"""
        return isinstance(given, str) and self.has(given)

    def register(
        self, name: str, given: Given, options: DataOptions | None = None, *, replace: bool = False
    ) -> DatasetRecord:
        """Record a path, or arrays, as a data set; what is recorded just so already stays as it is.

        Raises:
            DatasetError: no such data, it is not what is taken, or another data set has the name.
            StorageError: there is no room.
        """
        require_name(name)
        is_kept = not isinstance(given, str | Path)
        path = Path(given).expanduser() if isinstance(given, str | Path) else self._kept(name, given)
        found = inspect(name, path, options or DataOptions(), time.time())
        if self.has(name) and not replace:
            before = self._registry.get(name)
            if before.digest == found.record.digest and before.classes == found.record.classes:
                return before
            if is_kept:
                path.unlink(missing_ok=True)
            raise DatasetError(
                f"data set {name} is registered here, and is another one than this; to record this in its place:"
                f" register_data({name!r}, data, replace=True)"
            )
        self._registry.add(found.record, found.index, replace=replace)
        if is_kept:
            self._sweep(name, path)
        return found.record

    def fits(self, name: str, given: Given) -> bool:
        """Is this what a registered data set was recorded from?"""
        if isinstance(given, str) and given == name:
            return True
        record = self._registry.get(name)
        if isinstance(given, str | Path):
            return Path(given).expanduser().resolve() == Path(record.path)
        return Path(record.path) == self._place(name, _npz(given)).resolve()

    def analysis(self, name: str | None) -> LocalAnalysis:
        """Of one data set; of the only one, where none is named.

        Raises:
            DatasetError: there is none, or not just one.
        """
        names = self.names
        if name is None and len(names) != 1:
            known = ", ".join(names) or "none; register_data(name, path) or `envoy data add` registers one"
            raise DatasetError(f"which data set? Registered here: {known}")
        record = self._registry.get(names[0] if name is None else name)
        return _analysis(record, self._registry.index(record.name))

    # ------------------------------------------------------------ arrays

    def _kept(self, name: str, given: Arrays) -> Path:
        raw = _npz(given)
        path = self._place(name, raw)
        if path.exists():
            return path
        make_private_folder(path.parent)
        try:
            descriptor, fresh = tempfile.mkstemp(prefix=".", dir=path.parent)  # of mode 600
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            Path(fresh).replace(path)
        except OSError as error:
            raise StorageError(f"no room for data set {name} in {path.parent}: {error.strerror}") from error
        return path

    def _place(self, name: str, raw: bytes) -> Path:
        return self._folder / ARRAYS_FOLDER / f"{name}.{digest_of(raw)[:16]}.npz"

    def _sweep(self, name: str, kept: Path) -> None:
        """Arrays that no record names any more."""
        for path in kept.parent.glob(f"{name}.{'?' * 16}.npz"):
            if path != kept:
                path.unlink(missing_ok=True)


def _npz(given: object) -> bytes:
    """The same arrays always give the same bytes.

    Raises:
        DatasetError: not two arrays of the same length.
    """
    pair = given if isinstance(given, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(one, np.ndarray) for one in pair):
        raise DatasetError(
            f"data is {type(given).__name__}: expected the name of a registered data set, a path, or a pair of arrays"
            " (images, labels)"
        )
    images, labels = pair
    if len(images) != len(labels) or not len(labels):
        raise DatasetError(f"{len(images)} images and {len(labels)} labels: expected one label an image, and some")
    if images.dtype.hasobject or labels.dtype.hasobject:
        raise DatasetError("arrays of objects are no images and no labels")
    file = BytesIO()
    np.savez(file, images=images, labels=labels)
    return file.getvalue()


def _analysis(record: DatasetRecord, index: DatasetIndex) -> LocalAnalysis:
    counts = Counter(example.label for example in index.examples)
    patients = {example.patient for example in index.examples}
    return LocalAnalysis(
        dataset=record.name,
        num_examples=record.num_examples,
        label_distribution={name: counts[label] for label, name in enumerate(record.classes)},
        num_train=record.num_train,
        num_validation=record.num_validation,
        num_test=record.num_test,
        num_quarantined=record.num_quarantined,
        num_patients=None if None in patients else len(patients),
        format=record.format.value,
    )
