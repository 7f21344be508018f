"""What a plan's process gets of a dataset: an open file in memory that holds what the plan declares, and nothing else.

The features that are declared, in the declared order and shape; a label and a split for each example; where the
training is private by the patient, a number for each patient; and where the site publishes by subgroups, a number for
the subgroup of each held-out example, without its name. No other column of a table, no file name, no text inside an
image file, no row that is in quarantine, no path. The file has no name, cannot be written, and is gone with the
processes that hold it: no copy of it lies on the disk.

``exposing.py`` makes it, in a process of its own; this module writes it, and reads it without a copy.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..utils.data_spec import DataKind, DataSpec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import StorageError
from ..utils.privacy.values import Unit
from .datasets import load, read_index
from .orders import WorkOrder
from .records import DatasetIndex, DatasetRecord, LoadedDataset
from .subgroups import Asked, divided
from .suppression import Scheme

_ALIGNMENT = 64
_HEAD = 4096  # bytes of a header of ours, at most
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def expose(
    record: DatasetRecord | None, index: DatasetIndex | None, spec: DataSpec, privacy: DifferentialPrivacy | None
) -> LoadedDataset:
    """What a plan with this declaration may see.

    Raises:
        DatasetError: there is no such dataset, it is not what the plan declares, or it changed since it was added.
    """
    loaded = load(record, index, spec)
    return _locked_dataset(loaded, privacy)


def expose_subgroups(
    record: DatasetRecord, index: DatasetIndex, spec: DataSpec, asked: Asked
) -> tuple[LoadedDataset, Scheme, tuple[str, ...]]:
    """The same of a site that publishes by subgroups: numbers of held-out examples beside it; what may be told of them.

    Raises:
        DatasetError: as ``expose``.
    """
    loaded, scheme, left_out = divided(load(record, index, spec), record, index, asked)
    return _locked_dataset(loaded, None), scheme, left_out


def _locked_dataset(loaded: LoadedDataset, privacy: DifferentialPrivacy | None) -> LoadedDataset:
    by_patient = privacy is not None and privacy.unit is Unit.PATIENT
    return LoadedDataset(
        _locked(loaded.features),
        _locked(loaded.labels),
        _locked(loaded.split),
        loaded.patients if by_patient else None,
        None if loaded.groups is None else _locked(loaded.groups),
    )


def exposed_for(order: WorkOrder, spec: DataSpec, privacy: DifferentialPrivacy | None) -> LoadedDataset:
    """The same for an order, in this process.

    Raises:
        DatasetError: as ``expose``.
        StorageError: the index is not that of the record.
    """
    index = None
    if order.dataset is not None and spec.kind is not DataKind.NONE:
        index = read_index(order.dataset, order.index_path)
    return expose(order.dataset, index, spec, privacy)


def new_file() -> int:
    """An empty file in memory, without a name; its descriptor is the caller's.

    Raises:
        StorageError: the kernel gives none.
    """
    try:
        return os.memfd_create("fedveil-data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise StorageError(f"no memory for a dataset: {error.strerror}") from error


def write_exposed(dataset: LoadedDataset, file: BinaryIO) -> None:
    """Write it, and seal the file: whoever holds it can only read it.

    Raises:
        OSError: there is no room.
    """
    for array in (dataset.features, dataset.labels, dataset.split, dataset.patients, dataset.groups):
        npy.write_array(file, np.zeros(0, np.int64) if array is None else array, allow_pickle=False)
        file.write(bytes(-file.tell() % _ALIGNMENT))
    file.flush()
    fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, _SEALS)


def read_exposed(descriptor: int) -> LoadedDataset:
    """The dataset as views of the file, which is closed; its pages live as long as the arrays do.

    Raises:
        StorageError: it is not what ``write_exposed`` wrote.
    """
    try:
        length = os.fstat(descriptor).st_size
        view = memoryview(mmap.mmap(descriptor, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
        features, end = _array(view, 0)
        labels, end = _array(view, end)
        split, end = _array(view, end)
        patients, end = _array(view, end)
        groups, _ = _array(view, end)
        return LoadedDataset(
            features, labels, split, patients if len(patients) else None, groups if groups.ndim == 2 else None
        )
    except (ValueError, OSError) as error:
        raise StorageError(f"the dataset that was handed over cannot be read ({type(error).__name__})") from error
    finally:
        os.close(descriptor)


def _array(view: memoryview, start: int) -> tuple[NDArray[Any], int]:
    """The array that begins there, and where the next one does."""
    head = BytesIO(view[start : start + _HEAD])
    if npy.read_magic(head) != (1, 0):
        raise ValueError("not an array of version 1.0")
    shape, _, dtype = npy.read_array_header_1_0(head)
    begin = start + head.tell()
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(view, dtype, count, begin).reshape(shape)
    end = begin + array.nbytes
    return array, end + -end % _ALIGNMENT


def _locked(array: NDArray[Any]) -> NDArray[Any]:
    """Read-only and in one piece, as the file's arrays are: a plan cannot change what the next round sees."""
    whole = np.ascontiguousarray(array)
    whole.flags.writeable = False
    return whole
