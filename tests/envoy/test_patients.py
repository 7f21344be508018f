"""Whose an example is: numbered when a dataset is added, kept in its index, handed to training, and never named."""

import json
import time

import numpy as np
import pytest
from fedveil.envoy.datasets import load
from fedveil.envoy.inspection import inspect
from fedveil.envoy.records import DataOptions, DatasetIndex, LoadedDataset
from fedveil.envoy.splits import Split, SplitRule
from fedveil.utils.data_spec import DataKind, DataSpec

CLASSES = ("well", "ill")
RULE = SplitRule(1.0, 0.0, 0.0)
NAMES = np.array(["Meyer", "Kim", "Meyer", "Silva", "Kim", "Meyer"])


def of_npz(folder, options):
    images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)
    np.savez(folder / "x.npz", images=images, labels=np.arange(6) % 2, patient=NAMES)
    return inspect("x", folder / "x.npz", options, time.time())


def of_table(folder, options):
    rows = "\n".join(f"{place},{place % 2},{name}" for place, name in enumerate(NAMES))
    (folder / "x.csv").write_text(f"value,label,patient\n{rows}\n")
    return inspect("x", folder / "x.csv", options, time.time())


@pytest.mark.parametrize("reader", [of_npz, of_table])
def test_the_patients_of_a_dataset_come_as_numbers_and_their_names_are_nowhere(reader, tmp_path):
    options = DataOptions(
        ("well=0", "ill=1"), patient="patient", label_column="label" if reader is of_table else None, rule=RULE
    )
    found = reader(tmp_path, options)
    of_rows, of_images = (DataKind.TABLE, (1,), CLASSES, ("value",)), (DataKind.IMAGES, (1, 4, 4), CLASSES)
    loaded = load(found.record, found.index, DataSpec("x", *(of_rows if reader is of_table else of_images)))
    assert loaded.patients.tolist() == [0, 1, 0, 2, 1, 0]
    assert found.index.num_patients(Split.TRAIN) == 3
    raw = found.index.to_json()
    assert not any(name.encode() in raw for name in NAMES)
    assert "patient" not in repr(found.index.examples[0])
    assert DatasetIndex.from_json(raw) == found.index


def test_an_index_without_patients_has_the_bytes_that_it_always_had(tmp_path):
    index = of_npz(tmp_path, DataOptions(("well=0", "ill=1"), rule=RULE)).index
    assert [len(json.loads(line)) for line in index.to_json().splitlines()[1:]] == [5] * 6
    assert DatasetIndex.from_json(index.to_json()) == index
    assert index.num_patients(Split.TRAIN) is None


def test_a_dataset_says_whose_all_of_its_examples_are_or_nobodys():
    features, labels, split = np.zeros((2, 1), np.float32), np.zeros(2, np.int64), np.zeros(2, np.uint8)
    with pytest.raises(ValueError, match="one patient for each example"):
        LoadedDataset(features, labels, split, np.zeros(1, np.int64))
