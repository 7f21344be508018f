"""A safetensors file of named tensors, read where it lies and in the order of a layout.

Source: the safetensors format (8 bytes little-endian length, JSON, data without holes). The library's own reader would
copy every tensor; here each stays a view of the file. Tests write the files with the library.
"""

from __future__ import annotations

import json
from typing import Any

from ..utils.errors import LayoutMismatchError, MalformedMessageError
from ..utils.tensors import FLOAT_BYTES, Layout

_MAX_HEADER_BYTES = 16 << 20
_METADATA = "__metadata__"


def pieces_by_name(file: memoryview, layout: Layout) -> tuple[memoryview, ...]:
    """The bytes of each of a layout's tensors, in its order; nothing is copied.

    Raises:
        MalformedMessageError: no safetensors file.
        LayoutMismatchError: its tensors are not the layout's: the message names the first that is missing, strange, of
            another type or shape.
    """
    length = int.from_bytes(file[:8], "little")
    if len(file) < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, len(file) - 8):
        raise MalformedMessageError("its header is longer than the file")
    raw = bytes(file[: 8 + length])
    try:
        header: Any = json.loads(raw[8:])
        found = {name: one for name, one in header.items() if name != _METADATA}
        spans = {name: (int(one["data_offsets"][0]), int(one["data_offsets"][1])) for name, one in found.items()}
        shapes = {name: (str(one["dtype"]), tuple(one["shape"])) for name, one in found.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise MalformedMessageError("its header is none") from error
    _check_names(set(found), layout)
    body, pieces = file[8 + length :], []
    _check_tiles(sorted(spans.values()), len(body))
    for entry in layout.entries:
        start, end = spans[entry.name]
        if shapes[entry.name] != ("F32", entry.shape) or end - start != entry.size * FLOAT_BYTES:
            dtype, shape = shapes[entry.name]
            raise LayoutMismatchError(f"{entry.name}: {dtype[:16]} {str(shape)[:80]}, expected F32 {entry.shape}")
        pieces.append(body[start:end])
    return tuple(pieces)


def _check_names(found: set[str], layout: Layout) -> None:
    expected = {entry.name for entry in layout.entries}
    if found != expected:
        missing, strange = sorted(expected - found), sorted(found - expected)
        what = f"{missing[0]} is missing" if missing else f"{strange[0][:80]!r} is not of this plan"
        raise LayoutMismatchError(f"an update of {len(found)} tensors, expected {len(expected)}: {what}")


def _check_tiles(spans: list[tuple[int, int]], length: int) -> None:
    """The tensors lie one behind the other, from the first byte to the last."""
    at = 0
    for start, end in spans:
        if start != at or end < start:
            raise MalformedMessageError("its tensors overlap, or leave holes")
        at = end
    if at != length:
        raise MalformedMessageError(f"its tensors have {at} bytes, and {length} are there")
