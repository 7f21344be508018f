"""Images made on the spot, and the real sets where they are to be had."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def png() -> Callable[..., bytes]:
    """A PNG of random pixels: ``png(seed, size=(height, width), dtype=np.uint8, channels=1)``."""

    def make(seed: int, size: tuple[int, int] = (10, 12), dtype: type = np.uint8, channels: int = 1) -> bytes:
        shape = size if channels == 1 else (*size, channels)
        return _encoded(np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, True), "PNG")

    return make


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """A colour JPEG of random pixels."""

    def make(seed: int, size: tuple[int, int] = (16, 24)) -> bytes:
        return _encoded(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8), "JPEG")

    return make


@pytest.fixture
def image_folder(tmp_path: Path, png: Callable[..., bytes]) -> Path:
    """Two classes, ten 8-bit images each, five patients."""
    for label, name in enumerate(("normal", "pneumonia")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for place in range(10):
            (folder / f"person{place % 5}_{place}.png").write_bytes(png(100 * label + place))
    return tmp_path / "images"


@pytest.fixture
def real_set() -> Callable[[str], Path]:
    """A file or folder of the real sets; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        beside = Path(__file__).parents[2].parent / "shared" / "data"
        path = Path(os.environ.get("FEDVEIL_DATA_DIR") or beside) / name
        if not path.exists():
            pytest.skip(f"the real set {name} is not here; set FEDVEIL_DATA_DIR to the folder that holds it")
        return path

    return find
