import dataclasses
import json
import stat
import subprocess
import sys

import numpy as np
import pytest
from fedveil.envoy.datasets import (
    DataOptions,
    DatasetFormat,
    DatasetIndex,
    DatasetRecord,
    DatasetRegistry,
    GivenSplits,
    LoadedDataset,
    Quarantined,
    Report,
    Split,
    SplitRule,
    describe,
    inspect,
    load,
)
from fedveil.envoy.records import Example
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import DatasetError, StorageError
from fedveil.utils.tensors import Digest
from hypothesis import given
from hypothesis import strategies as st

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map(Digest)
indexes = st.builds(
    DatasetIndex,
    st.lists(st.builds(Example, words, st.integers(0, 9), st.sampled_from(Split), st.integers(0), digests)).map(tuple),
    st.lists(st.builds(Quarantined, words, words)).map(tuple),
)
counts = st.integers(0, 10**9)
records = st.builds(
    DatasetRecord,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
    path=words,
    format=st.sampled_from(DatasetFormat),
    classes=st.lists(words).map(tuple),
    num_train=counts,
    num_validation=counts,
    num_test=counts,
    num_quarantined=counts,
    digest=digests,
    added_at=st.floats(0, 1e10),
    options=st.builds(
        DataOptions,
        classes=st.sampled_from([(), ("a", "b=1|2")]),
        patient=st.none() | words,
        label_column=st.none() | words,
        columns=st.lists(words).map(tuple),
        header=st.lists(words).map(tuple),
        split_column=st.none() | words,
        rule=st.builds(SplitRule, st.just(0.5), st.just(0.25), st.just(0.25), counts, st.sampled_from(GivenSplits)),
    ),
    columns=st.lists(words).map(tuple),
    has_deep_pixels=st.booleans(),
    source_digest=st.none() | digests,
)
XRAYS = DataSpec("xrays", DataKind.IMAGES, (1, 8, 8), ("normal", "pneumonia"))


@pytest.fixture
def added(image_folder):
    return inspect("xrays", image_folder, DataOptions(), 1.0)


@pytest.fixture
def registry(tmp_path, added):
    registry = DatasetRegistry(tmp_path / "state")
    registry.add(added.record, added.index)
    return registry


@given(records)
def test_a_record_survives_its_json(record):
    assert DatasetRecord.from_json(record.to_json()) == record


@given(indexes)
def test_an_index_survives_its_json(index):
    assert DatasetIndex.from_json(index.to_json()) == index


@pytest.mark.parametrize("reader", [DatasetRecord, DatasetIndex])
@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"3\n", b'{"schema":"fedveil.dataset/9"}', b"\xff", b"[" * 9999])
def test_damaged_json_says_to_add_the_dataset_again(reader, raw):
    with pytest.raises(StorageError, match=r"damaged.*add the dataset again"):
        reader.from_json(raw)


@given(st.data())
def test_an_index_that_lost_a_line_is_refused(data):
    index = data.draw(indexes.filter(lambda index: index.examples))
    lines = index.to_json().splitlines(keepends=True)
    del lines[data.draw(st.integers(0, len(lines) - 1))]
    with pytest.raises(StorageError):
        DatasetIndex.from_json(b"".join(lines))


def test_what_was_added_is_found_again_by_another_process(registry, added, tmp_path):
    again = DatasetRegistry(tmp_path / "state")
    assert again.list() == (added.record,)
    assert again.get("xrays") == added.record
    assert again.index("xrays") == added.index
    assert again.check("xrays").is_unchanged
    assert DatasetIndex.from_json(again.index_path(added.record).read_bytes()) == added.index


def test_only_the_owner_may_read_the_registry(registry, tmp_path):
    modes = [stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "state", *(tmp_path / "state").iterdir()]]
    assert modes == [0o700, 0o600, 0o600]


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced(registry, added, image_folder, tmp_path):
    (image_folder / "normal" / "person0_0.png").unlink()
    fresh = inspect("xrays", image_folder, DataOptions(), 2.0)
    with pytest.raises(DatasetError, match="xrays is already here"):
        registry.add(fresh.record, fresh.index)
    assert registry.index("xrays") == added.index
    registry.add(fresh.record, fresh.index, replace=True)
    assert registry.index("xrays") == fresh.index
    assert len(list((tmp_path / "state").iterdir())) == 2  # the old index is gone


def test_files_added_later_move_no_others(added, image_folder, png):
    (image_folder / "normal" / "a.png").write_bytes(png(999))
    fresh = inspect("xrays", image_folder, DataOptions(), 2.0)
    assert set(added.index.examples) < set(fresh.index.examples)
    assert fresh.record.digest != added.record.digest


def test_an_unknown_name_is_refused_with_the_known_ones(registry):
    for ask in (registry.get, registry.index, registry.check, registry.remove):
        with pytest.raises(DatasetError, match="no dataset heart here; known: xrays"):
            ask("heart")


def test_a_removed_dataset_is_gone_and_its_files_are_not(registry, image_folder, tmp_path):
    registry.remove("xrays")
    assert registry.list() == ()
    assert list((tmp_path / "state").iterdir()) == []
    assert len(list(image_folder.rglob("*.png"))) == 20


def test_an_index_that_was_tampered_with_is_refused(registry, added):
    path = registry.index_path(added.record)
    path.write_bytes(path.read_bytes().replace(b'"test"]', b'"train"]').replace(b'"validation"]', b'"train"]'))
    with pytest.raises(StorageError, match="not the one that was recorded"):
        registry.index("xrays")
    path.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        registry.index("xrays")


def test_an_index_of_another_record_is_refused(registry, added):
    other = DatasetIndex(added.index.examples[1:])
    with pytest.raises(ValueError, match="not the one"):
        registry.add(added.record, other, replace=True)
    with pytest.raises(DatasetError, match="not the one that was recorded"):
        load(added.record, other, XRAYS)


def test_a_disk_that_cannot_be_written_is_told_and_what_was_there_stays(registry, added, monkeypatch, tmp_path):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    fresh = dataclasses.replace(added.record, added_at=2.0)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            registry.add(fresh, added.index, replace=True)
    assert registry.list() == (added.record,)
    assert len(list((tmp_path / "state").iterdir())) == 2


@pytest.mark.parametrize("name", ["", "X", "../x", "a/b", ".x", "x" * 65, "é"])
def test_a_name_that_cannot_be_a_files_is_refused(added, name):
    with pytest.raises(DatasetError, match="cannot be called"):
        dataclasses.replace(added.record, name=name)


@pytest.mark.parametrize("classes", [("a", "A"), ("a", ""), ("a=1", "b=1"), ("a=", "b=1")])
def test_classes_named_twice_or_not_at_all_are_refused(classes):
    with pytest.raises(DatasetError, match="class is empty or named twice"):
        DataOptions(classes=classes)


@pytest.mark.parametrize("name", ["gone.npz", "notes.docx", "gone"])
def test_a_path_that_is_no_dataset_is_refused(tmp_path, name):
    if name == "notes.docx":
        (tmp_path / name).write_text("x")
    with pytest.raises(DatasetError, match=r"is not there|is no dataset"):
        inspect("xrays", tmp_path / name, DataOptions(), 1.0)


def test_labels_are_the_plans_by_the_name_of_the_class(added):
    names = ("covid", "PNEUMONIA", "Normal")
    loaded = load(added.record, added.index, dataclasses.replace(XRAYS, classes=names))
    assert np.bincount(loaded.labels, minlength=3).tolist() == [0, 10, 10]


def test_a_class_that_the_plan_does_not_know_is_refused_by_name(added):
    spec = dataclasses.replace(XRAYS, classes=("normal", "covid"))
    with pytest.raises(DatasetError, match="has class pneumonia, the plan knows normal, covid"):
        load(added.record, added.index, spec)


def test_what_the_plan_does_not_ask_for_is_refused(added):
    with pytest.raises(DatasetError, match="is of format image-folder; the plan asks for table"):
        load(added.record, added.index, DataSpec("xrays", DataKind.TABLE, (3,)))
    with pytest.raises(DatasetError, match="4 channels"):
        load(added.record, added.index, DataSpec("xrays", DataKind.IMAGES, (4, 8, 8)))
    with pytest.raises(DatasetError, match="envoy data add xrays PATH"):
        load(None, None, XRAYS)


def test_a_plan_that_reads_no_data_gets_none():
    loaded = load(None, None, DataSpec("", DataKind.NONE))
    assert len(loaded) == 0
    assert [len(part) for part in loaded.part(Split.TRAIN)] == [0, 0]


@given(st.lists(st.sampled_from(Split), max_size=12))
def test_a_part_holds_the_examples_of_its_split_in_order(splits):
    places = np.arange(len(splits))
    loaded = LoadedDataset(places.astype(np.float32), places.astype(np.int64), np.array(splits, np.uint8))
    for split in Split:
        features, labels = loaded.part(split)
        assert labels.tolist() == features.tolist() == [place for place in places if splits[place] is split]


def test_no_repr_shows_a_pixel_a_label_or_a_patient(added):
    loaded = load(added.record, added.index, XRAYS)
    assert repr(loaded) == "LoadedDataset(20 examples, uint8 (1, 8, 8))"
    with pytest.raises(ValueError, match="one label and one split"):
        LoadedDataset(loaded.features, loaded.labels[1:], loaded.split)


def test_counts_of_each_class_are_shown_only_where_asked_for(added):
    rows = dict(describe(added.record))
    assert rows["classes"] == "normal, pneumonia"
    assert rows["quarantined"] == "0"
    assert not any(key.startswith("class ") for key in rows)
    assert dict(describe(added.record, added.index))["class normal"] == "10"


def test_a_report_lists_some_names_counts_all_and_escapes_control_characters():
    report = Report("xrays", 3, tuple(Quarantined(f"\x1b[31m{n}", "damaged") for n in range(5)), ("no test examples",))
    assert report.lines(limit=2) == [
        "xrays: 3 examples",
        "warning: no test examples",
        "quarantined: 5",
        "  '\\x1b[31m0': damaged",
        "  '\\x1b[31m1': damaged",
        "  and 3 more",
    ]


def test_a_record_holds_counts_and_rules_alone(added):
    document = json.loads(added.record.to_json())
    assert document["num_examples"] == [added.record.num_train, added.record.num_validation, added.record.num_test]
    assert document["options"]["fractions"] == [0.8, 0.1, 0.1]


def test_reading_data_needs_no_torch():
    code = "import sys, fedveil.envoy.datasets; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
