"""Pixels of one image: decoded from PNG or JPEG, brought to the channels and the size that a plan asks for.

8-bit pixels stay uint8. Deeper ones become float32 in [0, 1], 16-bit grey divided by 65,535. Pillow reads 16-bit
colour as 8-bit colour.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..utils.errors import DatasetError

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
"""uint8, or float32 in [0, 1]; shape (height, width, channels) with 1 or 3 channels."""

MAX_IMAGE_PIXELS = 2**26  # 8192 x 8192: more than any X-ray, and 200 MB of colour
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's "L"
_MAX_DEEP = 65_535
# What Pillow raises on bytes that are no image: its plugins let these through.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode(raw: bytes) -> Pixels:
    """Every pixel of a PNG or JPEG file.

    Raises:
        DatasetError: it cannot be read whole, or is larger than ``MAX_IMAGE_PIXELS``; the reason in a few words.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise DatasetError(f"{image.width} x {image.height} pixels, at most {MAX_IMAGE_PIXELS} are read")
            return _pixels(image)
    except UnidentifiedImageError as error:
        raise DatasetError("neither PNG nor JPEG inside") from error
    except _UNREADABLE as error:
        raise DatasetError("damaged or cut short") from error


def fit(pixels: Pixels, shape: tuple[int, ...]) -> Pixels:
    """The image as (channels, height, width): grey to colour or back, resized with antialiasing where it must be.

    Raises:
        ValueError: other than 1 or 3 channels are asked for.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"an image has 1 or 3 channels, not {channels}")
    if pixels.shape[2] > channels:
        pixels = _grey(pixels)
    if pixels.shape[:2] != (height, width):
        pixels = _resized(pixels, height, width)
    if pixels.shape[2] < channels:
        pixels = pixels[:, :, [0, 0, 0]]
    return pixels.transpose(2, 0, 1)


def _pixels(image: Image.Image) -> Pixels:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep = np.asarray(image, np.float32)[:, :, np.newaxis] / np.float32(_MAX_DEEP)
        clipped: NDArray[np.float32] = np.clip(deep, 0, 1)
        return clipped
    if image.mode in ("1", "L", "LA"):
        grey = image if image.mode == "L" else image.convert("L")
        return np.asarray(grey, np.uint8)[:, :, np.newaxis]
    if image.mode != "RGB":  # a palette with transparency goes by way of RGBA, as Pillow asks for
        image = image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
    return np.asarray(image, np.uint8)


def _grey(pixels: Pixels) -> Pixels:
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"), np.uint8)[:, :, np.newaxis]
    grey: NDArray[np.float32] = np.minimum(np.asarray(pixels, np.float32) @ _LUMA, np.float32(1))
    return grey[:, :, np.newaxis]


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bilinear with antialiasing; floating point a channel at a time."""
    if pixels.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.uint8)
        return resized.reshape(height, width, pixels.shape[2])
    floats = np.zeros((height, width, pixels.shape[2]), np.float32)
    for channel in range(pixels.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(pixels[:, :, channel]))
        floats[:, :, channel] = np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR))
    return floats
