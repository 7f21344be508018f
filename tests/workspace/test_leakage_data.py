"""Real sets are read where they are, and own images are taken or refused with a reason."""

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.cases import draw_targets, split
from fedveil.utils.errors import DatasetError
from fedveil.workspace.leakage_data import available_cases, load_pool, read_images
from PIL import Image

SETS = {
    "pneumonia28": ("pneumoniamnist/pneumoniamnist.npz", 5856, (1, 28, 28)),
    "xrays64": ("chest-xray-pneumonia/chest_xray_64_subset.npz", 1500, (1, 64, 64)),
    "cifar10": ("cifar10-subset/cifar10_subset.npz", 2500, (3, 32, 32)),
    "mnist": ("mnist-test/t10k-images-idx3-ubyte.gz", 10_000, (1, 28, 28)),
}


@pytest.mark.parametrize("case", SETS)
def test_a_real_set_becomes_a_pool_with_targets_of_different_patients(case, real_set):
    file, count, shape = SETS[case]
    real_set(file)
    pool = load_pool(case)
    assert (len(pool), pool.domain.shape) == (count, shape)
    assert case in available_cases()
    targets = draw_targets(split(pool)[1], 8, 10)
    assert len({patient for one in targets for patient in one.patients}) == 80
    truth = targets[0].truth()
    assert truth.images.dtype is torch.float32
    assert 0 <= truth.images.min() < 0.5 < truth.images.max() <= 1


@pytest.mark.slow
def test_the_large_xrays_have_the_patients_of_their_index(real_set):
    real_set("chest-xray-pneumonia/chest_xray_224_jpeg.zip")
    pool = load_pool("xrays224")
    assert pool.domain.shape == (1, 224, 224)
    assert pool.labels.bincount().tolist() == [1583, 4273]
    assert len(set(pool.patients)) == 2846 + 15 + 427
    small = load_pool("xrays64")
    assert set(small.patients) <= set(pool.patients)


def test_without_any_data_there_are_the_bundled_digits_and_they_are_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVEIL_DATA_DIR", str(tmp_path))
    assert available_cases() == ("digits",)
    pool = load_pool("digits")
    assert not pool.is_xray
    assert pool.domain.num_classes == 10
    with pytest.raises(DatasetError, match=r"the set pneumoniamnist .* set FEDVEIL_DATA_DIR"):
        load_pool("pneumonia28")
    with pytest.raises(DatasetError, match="case 'lungs': expected one of pneumonia28"):
        load_pool("lungs")


def test_a_damaged_set_is_told_by_its_case(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVEIL_DATA_DIR", str(tmp_path))
    (tmp_path / "cifar10-subset").mkdir()
    (tmp_path / "cifar10-subset" / "cifar10_subset.npz").write_bytes(b"no npz")
    with pytest.raises(DatasetError, match="case cifar10 cannot be read"):
        load_pool("cifar10")


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (np.full((3, 1, 5, 4), 255, np.uint8), (3, 1, 5, 4)),
        (np.ones((3, 5, 4), np.float32), (3, 1, 5, 4)),
        (np.ones((3, 3, 5, 4)), (3, 3, 5, 4)),
        (np.ones((3, 1, 5, 4), np.float16), (3, 1, 5, 4)),
    ],
)
def test_own_images_are_taken_as_bytes_or_fractions_with_channels_or_without(images, shape, tmp_path):
    np.savez(tmp_path / "own.npz", images=images, labels=np.array([0, 1, 1]))
    found = read_images(tmp_path / "own.npz")
    assert tuple(found.images.shape) == shape
    assert found.images.is_floating_point()
    assert bool((found.images == 1).all())
    assert found.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.ones((2, 1, 4, 4))}, "holds images; expected images and labels, labels is missing"),
        ({"pictures": np.ones((2, 1, 4, 4))}, "images and labels is missing"),
        ({"images": np.ones((2, 4)), "labels": [0, 1]}, "expected .count, channels, height, width."),
        ({"images": np.ones((0, 1, 4, 4)), "labels": []}, "images of shape"),
        ({"images": np.ones((2, 4, 4, 3)), "labels": [0, 1]}, "the channels come before height and width"),
        ({"images": np.full((2, 1, 4, 4), 255.0), "labels": [0, 1]}, "images from 255 to 255; give uint8"),
        ({"images": np.full((2, 1, 4, 4), -0.1), "labels": [0, 1]}, "images from -0.1"),
        ({"images": np.full((2, 1, 4, 4), np.nan), "labels": [0, 1]}, "NaN or infinity"),
        ({"images": np.ones((2, 1, 4, 4), np.int64), "labels": [0, 1]}, "images of int64"),
        ({"images": np.ones((2, 1, 4, 4)), "labels": [0]}, "for 2 images; expected one whole number"),
        ({"images": np.ones((2, 1, 4, 4)), "labels": [0.0, 1.0]}, "expected one whole number"),
        ({"images": np.ones((2, 1, 4, 4)), "labels": [0, -1]}, "a label is -1"),
        ({"images": np.array([object()]), "labels": [0]}, "pickle, which is never used"),
    ],
)
def test_own_images_that_cannot_be_used_are_refused_with_the_reason(arrays, words, tmp_path):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DatasetError, match=words):
        read_images(tmp_path / "own.npz")


def test_what_is_no_npz_or_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"own\.npz is not there"):
        read_images(tmp_path / "own.npz")
    (tmp_path / "own.npz").write_bytes(b"something else")
    with pytest.raises(DatasetError, match="is not an npz file"):
        read_images(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", images=np.ones((2, 4, 4)), labels=[0, 1])
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "own.npz").read_bytes().replace(b"NUMPY", b"NOMPY"))
    with pytest.raises(DatasetError, match=r"damaged\.npz cannot be read as npz$"):
        read_images(tmp_path / "damaged.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(DatasetError, match="is not an npz file"):
        read_images(tmp_path / "array.npy")


def write_png(path, size, mode="L", level=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level,) * 3).save(path)


def test_a_folder_of_images_by_class_is_read_whole(tmp_path):
    for number, name in enumerate(("ill", "well", "ill")):
        write_png(tmp_path / name / f"{number}.png", (6, 5))
    found = read_images(tmp_path)
    assert found.classes == ("ill", "well")
    assert found.labels.tolist() == [0, 0, 1]
    assert tuple(found.images.shape) == (3, 1, 5, 6)
    assert bool((found.images == 1).all())


def test_a_folder_of_different_images_needs_a_size(tmp_path):
    write_png(tmp_path / "ill" / "1.png", (6, 5))
    write_png(tmp_path / "ill" / "2.png", (8, 8), "RGB")
    with pytest.raises(DatasetError, match="2 sizes; give --image-size"):
        read_images(tmp_path)
    assert tuple(read_images(tmp_path, 8).images.shape) == (2, 3, 8, 8)


def test_no_image_of_a_folder_is_left_out_silently(tmp_path):
    with pytest.raises(DatasetError, match="no PNG or JPEG"):
        read_images(tmp_path)
    write_png(tmp_path / "ill" / "1.png", (6, 5))
    (tmp_path / "ill" / "2.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"1 images cannot be used.*ill/2\.png"):
        read_images(tmp_path)
