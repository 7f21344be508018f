import numpy as np
import pytest
from fedveil.envoy.datasets import DataOptions, Split, SplitRule, check, inspect, load
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import DatasetError

RANDOM = np.random.default_rng(0)
CLASSES = ("normal", "pneumonia")


def spec(*shape, classes=CLASSES):
    return DataSpec("xrays", DataKind.IMAGES, shape, classes)


def pixels(count, *shape):
    return RANDOM.integers(0, 255, (count, *shape), np.uint8)


def saved(path, **arrays):
    np.savez(path / "xrays.npz", **arrays)
    return path / "xrays.npz"


def test_medmnist_keys_are_the_splits_and_label_i_is_class_i(tmp_path):
    parts = {"train": pixels(5, 6, 7), "val": pixels(3, 6, 7), "test": pixels(2, 6, 7)}
    labels = {word: np.arange(len(images), dtype=np.uint8)[:, np.newaxis] % 2 for word, images in parts.items()}
    path = saved(
        tmp_path,
        **{f"{word}_images": images for word, images in parts.items()},
        **{f"{word}_labels": held for word, held in labels.items()},
    )
    added = inspect("xrays", path, DataOptions(classes=CLASSES), 1.0)
    loaded = load(added.record, added.index, spec(1, 6, 7, classes=("pneumonia", "normal")))
    assert (added.record.num_train, added.record.num_validation, added.record.num_test) == (5, 3, 2)
    for split, word in zip(Split, parts, strict=True):
        features, held = loaded.part(split)
        assert np.array_equal(features[:, 0], parts[word])
        assert np.array_equal(held, 1 - labels[word][:, 0])  # the plan names the classes the other way round
        assert features.base is not None  # a view


def test_plain_images_and_labels_are_split_here_by_patient(tmp_path):
    patients = np.array([f"p{place % 7}" for place in range(60)])
    path = saved(tmp_path, images=pixels(60, 4, 4, 3), labels=np.arange(60) % 2, patient=patients)
    added = inspect("xrays", path, DataOptions(patient="patient", rule=SplitRule(0.5, 0.3, 0.2)), 1.0)
    assert added.record.classes == ("0", "1")
    assert len({(patients[int(example.id)], example.split) for example in added.index.examples}) == 7
    assert load(added.record, added.index, spec(3, 4, 4, classes=())).features.shape == (60, 3, 4, 4)


def test_a_column_of_splits_is_kept(tmp_path):
    path = saved(tmp_path, images=pixels(4, 4, 4), label=np.array([0, 1, 0, 1]), split=np.array([0, 1, 2, 7]))
    added = inspect("xrays", path, DataOptions(split_column="split"), 1.0)
    assert [example.split for example in added.index.examples] == list(Split)
    assert added.report.quarantined[0].reason == "split is neither train, val nor test"


@pytest.mark.parametrize(
    ("images", "scale"),
    [
        (np.full((3, 2, 2), 65_535, np.uint16), 1.0),
        (np.full((3, 2, 2), 0.25, np.float64), 0.25),
        (np.full((3, 2, 2, 3), 0.5, np.float32), 0.5),
    ],
)
def test_deep_images_become_float32_between_0_and_1(tmp_path, images, scale):
    path = saved(tmp_path, images=images, labels=np.array([0, 1, 0]))
    added = inspect("xrays", path, DataOptions(), 1.0)
    loaded = load(added.record, added.index, spec(1, 5, 5, classes=()))
    assert loaded.features.dtype == np.float32
    assert np.allclose(loaded.features, scale, atol=1e-6)


def test_labels_outside_the_classes_and_pixels_out_of_range_are_quarantined(tmp_path):
    images = np.full((4, 2, 2), 0.5)
    images[1] = np.nan
    images[2] = 255
    path = saved(tmp_path, images=images, labels=np.array([0, 0, 1, 2]))
    added = inspect("xrays", path, DataOptions(classes=CLASSES), 1.0)
    assert [(one.id, one.reason) for one in added.report.quarantined] == [
        ("1", "its pixels are not all in [0, 1]"),
        ("2", "its pixels are not all in [0, 1]"),
        ("3", "label outside the classes"),
    ]
    with pytest.raises(DatasetError, match=r"empty, .* 4 in quarantine"):
        inspect("xrays", path, DataOptions(classes=("normal=7", "pneumonia=8")), 1.0)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros(3)}, "expected train_images"),
        ({"images": np.zeros((2, 3, 3), np.uint8)}, "no label"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": np.zeros(3, int)}, "for 2 images"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": np.zeros((2, 14), int)}, "one whole number an image"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": np.zeros(2)}, "one whole number an image"),
        ({"images": np.zeros((2, 3), np.uint8), "labels": np.zeros(2, int)}, "expected \\(N, height, width\\)"),
        ({"images": np.zeros((2, 3, 3), np.int64), "labels": np.zeros(2, int)}, "uint8, uint16"),
        ({"images": np.array([{}, {}]), "labels": np.zeros(2, int)}, "pickle"),
        ({"images": np.zeros((0, 3, 3), np.uint8), "labels": np.zeros(0, int)}, "empty"),
    ],
)
def test_arrays_that_are_no_images_and_labels_are_refused(tmp_path, arrays, words):
    path = tmp_path / "xrays.npz"
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(DatasetError, match=words):
        inspect("xrays", path, DataOptions(), 1.0)


def test_a_file_that_is_no_npz_or_cut_short_is_refused(tmp_path):
    path = saved(tmp_path, images=pixels(9, 4, 4), labels=np.zeros(9, int))
    for raw in (path.read_bytes()[:-30], b"", b"not numpy"):
        path.write_bytes(raw)
        with pytest.raises(DatasetError, match="not a readable npz"):
            inspect("xrays", path, DataOptions(), 1.0)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(DatasetError, match="one array"):
        inspect("xrays", path, DataOptions(), 1.0)


def test_a_changed_file_is_not_trained_on_and_check_says_what_changed(tmp_path):
    images = pixels(6, 4, 4)
    added = inspect("xrays", saved(tmp_path, images=images, labels=np.arange(6) % 2), DataOptions(), 1.0)
    images[2] += 1
    saved(tmp_path, images=np.concatenate([images, pixels(1, 4, 4)]), labels=np.arange(7) % 2)
    report = check(added.record, added.index)
    assert (report.missing, report.changed, report.new) == ((), ("2",), ("6",))
    with pytest.raises(DatasetError, match="cannot be read as it was recorded"):
        load(added.record, added.index, spec(1, 4, 4, classes=()))


def test_pneumonia_mnist_has_its_official_counts(real_set):
    added = inspect("xrays", real_set("pneumoniamnist/pneumoniamnist.npz"), DataOptions(classes=CLASSES), 1.0)
    loaded = load(added.record, added.index, spec(1, 28, 28))
    assert [len(loaded.part(split)[1]) for split in Split] == [4708, 524, 624]
    assert np.bincount(loaded.part(Split.TEST)[1]).tolist() == [234, 390]
    assert "8 contents are in more than one split: what is tested was trained on" in added.report.warnings
