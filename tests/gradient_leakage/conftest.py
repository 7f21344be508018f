"""Real images for attacks, as (images (count, channels, height, width) in [0, 1], labels (count,))."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

CHECKOUT = Path(__file__).parents[2]


def data_file(*parts: str) -> Path:
    """A file of the real data; the test skips where it is not there."""
    folder = Path(os.environ.get("FEDVEIL_DATA_DIR") or CHECKOUT.parent / "shared" / "data")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{parts[0]} is not in {folder}")
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The suite runs in parallel by processes already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def xrays28() -> tuple[torch.Tensor, torch.Tensor]:
    """PneumoniaMNIST's test part: 624 X-rays of 28x28, one channel, two classes."""
    with np.load(data_file("pneumoniamnist", "pneumoniamnist.npz"), allow_pickle=False) as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]
    return torch.from_numpy(images[:, None] / np.float32(255)), torch.from_numpy(labels[:, 0].astype(np.int64))


@pytest.fixture(scope="session")
def xrays64() -> tuple[torch.Tensor, torch.Tensor]:
    """1500 X-rays of 64x64, one channel, two classes."""
    path = data_file("chest-xray-pneumonia", "chest_xray_64_subset.npz")
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["label"]
    return torch.from_numpy(images[:, None] / np.float32(255)), torch.from_numpy(labels.astype(np.int64))


@pytest.fixture(scope="session")
def cifar10() -> tuple[torch.Tensor, torch.Tensor]:
    """500 test images of CIFAR-10: 32x32, three channels, ten classes."""
    with np.load(data_file("cifar10-subset", "cifar10_subset.npz"), allow_pickle=False) as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]
    scaled = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) / np.float32(255)
    return torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))


@pytest.fixture(scope="session")
def mnist() -> tuple[torch.Tensor, torch.Tensor]:
    """10,000 digits of 28x28, one channel, ten classes."""
    with gzip.open(data_file("mnist-test", "t10k-images-idx3-ubyte.gz")) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(data_file("mnist-test", "t10k-labels-idx1-ubyte.gz")) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(images / np.float32(255)), torch.from_numpy(labels.astype(np.int64))
