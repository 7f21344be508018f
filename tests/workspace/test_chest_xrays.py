"""Where the demo's images come from, and that no patient is in two parts."""

import io
import subprocess
from itertools import combinations

import numpy as np
import pytest
from fedveil.utils.errors import DatasetError
from fedveil.workspace import chest_xrays
from fedveil.workspace.chest_xrays import CLASSES, DATA_VARIABLE, find_images
from PIL import Image

RANDOM = np.random.default_rng(5)


def parts_of(images):
    return images.train, images.validation, images.test


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Nothing beside the checkout, and whatever would fetch fails."""
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "empty"))
    tried = []

    def refuse(command, **_):
        tried.append(command)
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(chest_xrays.subprocess, "run", refuse)
    return tried


def saved(path, words=("train", "val", "test"), count=8, **more):
    arrays = {f"{word}_images": RANDOM.integers(0, 255, (count, 10, 10), np.uint8) for word in words}
    arrays |= {f"{word}_labels": np.arange(count)[:, None] % 2 for word in words}
    np.savez(path, **(arrays | more))
    return arrays


def write_pictures(folder, names, size=12):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(RANDOM.integers(0, 255, (size, size), np.uint8)).save(file, "JPEG")
        path.write_bytes(file.getvalue())


def test_pneumoniamnist_comes_whole_and_is_called_so(real_set, monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_VARIABLE, str(real_set("pneumoniamnist/pneumoniamnist.npz").parent.parent))
    images = find_images(None, 28, tmp_path)
    assert images.is_xrays
    assert images.description.startswith("PneumoniaMNIST")
    assert [len(part.labels) for part in parts_of(images)] == [4708, 524, 624]
    with np.load(real_set("pneumoniamnist/pneumoniamnist.npz")) as arrays:
        for word, part in zip(("train", "val", "test"), parts_of(images), strict=True):
            assert np.array_equal(part.images, arrays[f"{word}_images"])
            assert np.array_equal(part.labels, arrays[f"{word}_labels"][:, 0])


def test_a_given_file_goes_before_all_others(tmp_path, no_network):
    arrays = saved(tmp_path / "mine.npz")
    images = find_images(tmp_path / "mine.npz", 10, tmp_path / "cache")
    assert images.description == "mine.npz, given by --data"
    assert np.array_equal(images.test.images, arrays["test_images"])
    assert images.train.images.dtype == np.uint8
    assert find_images(tmp_path / "mine.npz", 20, tmp_path / "cache").train.images.shape == (8, 20, 20)
    assert not no_network


def test_what_was_fetched_once_is_used_again(tmp_path, no_network):
    (tmp_path / "cache").mkdir()
    saved(tmp_path / "cache" / "pneumoniamnist.npz")
    assert find_images(None, 10, tmp_path / "cache").description.endswith("through medmnist")
    assert not no_network


@pytest.mark.parametrize("size", [8, 28, 30])
def test_digits_stand_in_where_nothing_can_be_had_and_are_called_so(tmp_path, no_network, size):
    images = find_images(None, size, tmp_path / "cache")
    assert len(no_network) == 1
    assert not images.is_xrays
    assert "NOT X-rays" in images.description
    assert sum(len(part.labels) for part in parts_of(images)) == 1797
    for part in parts_of(images):
        assert part.images.shape[1:] == (size, size)
        assert part.images.dtype == np.uint8
        assert part.images.max() == 255
        assert set(part.labels.tolist()) == {0, 1}
    for one, other in combinations(parts_of(images), 2):
        assert not set(one.groups) & set(other.groups)


def test_a_half_fetched_file_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "empty"))

    def hang(command, **_):
        (tmp_path / "pneumoniamnist.npz").write_bytes(b"half")
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(chest_xrays.subprocess, "run", hang)
    assert not find_images(None, 28, tmp_path).is_xrays
    assert not (tmp_path / "pneumoniamnist.npz").exists()


def test_patients_that_an_npz_names_are_in_one_part_alone(tmp_path):
    count = 400
    patients = np.array([f"p{i // 4}" for i in range(count)])
    pixels = RANDOM.integers(0, 255, (count, 10, 10), np.uint8)
    np.savez(tmp_path / "p.npz", images=pixels, labels=np.arange(count) % 2, patient=patients)
    images = find_images(tmp_path / "p.npz", 10, tmp_path)
    assert set().union(*(part.groups for part in parts_of(images))) == set(patients)
    for one, other in combinations(parts_of(images), 2):
        assert not set(one.groups) & set(other.groups)
    first = images.train.images[0]
    assert images.train.groups[0] == patients[np.flatnonzero((pixels == first).all((1, 2)))[0]]


def test_splits_and_patients_of_the_real_subset_are_kept(real_set, tmp_path):
    path = real_set("chest-xray-pneumonia/chest_xray_64_subset.npz")
    images = find_images(path, 64, tmp_path)
    with np.load(path) as arrays:
        held = set(arrays["patient"][arrays["split"] == 2].tolist())
    assert set(images.test.groups) == held
    for one, other in combinations(parts_of(images), 2):
        assert not set(one.groups) & set(other.groups)


def test_a_folder_named_as_kermanys_is_split_by_patient_and_keeps_its_test_part(tmp_path):
    names = [f"train/PNEUMONIA/person{i}_bacteria_{j}.jpeg" for i in range(60) for j in range(2)]
    names += [f"train/NORMAL/IM-{i:04}-{j:04}.jpeg" for i in range(40) for j in range(2)]
    names += [f"train/NORMAL/NORMAL2-IM-{i:04}-0001.jpeg" for i in range(40)]
    names += ["val/PNEUMONIA/person9_bacteria_7.jpeg", "val/NORMAL/IM-0003-0009.jpeg"]
    names += ["test/PNEUMONIA/person1_virus_6.jpeg", "test/NORMAL/IM-0001-0001.jpeg"]
    write_pictures(tmp_path / "xrays", names)
    images = find_images(tmp_path / "xrays", 12, tmp_path)
    assert len(images.test.labels) == 2
    assert not set(images.train.groups) & set(images.validation.groups)
    assert len(images.train.labels) + len(images.validation.labels) == len(names) - 2
    assert "NORMAL2-IM-0003" in images.train.groups + images.validation.groups  # another child than IM-0003
    assert min(len(part.labels) for part in parts_of(images)) >= 2


@pytest.mark.slow
def test_kermanys_zip_is_split_by_patient(real_set, tmp_path):
    images = find_images(real_set("chest-xray-pneumonia/chest_xray_224_jpeg.zip"), 28, tmp_path)
    assert len(images.test.labels) == 624
    assert len(images.train.labels) + len(images.validation.labels) == 5232
    assert not set(images.train.groups) & set(images.validation.groups)


def test_a_folder_without_the_classes_is_refused(tmp_path):
    write_pictures(tmp_path / "pets", ["cat/1.jpeg", "dog/2.jpeg"])
    with pytest.raises(DatasetError, match="label outside the classes"):
        find_images(tmp_path / "pets", 28, tmp_path)


def test_a_part_without_one_of_the_classes_is_refused_by_name(tmp_path):
    saved(tmp_path / "one.npz", test_labels=np.ones((8, 1), np.int64))
    with pytest.raises(DatasetError, match=f"no image of {CLASSES[0]} for test"):
        find_images(tmp_path / "one.npz", 28, tmp_path)


@pytest.mark.parametrize("name", ["absent.npz", "text.md"])
def test_what_is_no_set_of_images_is_refused(tmp_path, name):
    (tmp_path / "text.md").write_text("no images")
    with pytest.raises(DatasetError, match=name):
        find_images(tmp_path / name, 28, tmp_path)
