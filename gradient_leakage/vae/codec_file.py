"""A codec at rest: one safetensors file, and the only bytes that mean this codec.

The header names the layout, the basis and the blocks; from those follows every byte of it, so a file whose header
differs in a space is refused. What is stored are orthonormal matrices and variances, never an update. Reading checks
everything that the guarantees of a codec rest on, and allocates nothing before the lengths fit.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import LayoutMismatchError, MalformedMessageError
from ...utils.tensors import Entry, Layout, Role, canonical_json
from .blocks import Block, Dense, Matrix, TwoSided

CODE = "code"
"""The name of the code in the layout of a payload; no tensor that passes may have it."""
_FORMAT = "fedveil-codec/1"
_MAX_HEADER = 16 << 20
_MAX_SIZE = 1 << 31  # numbers of an update
_ORTHONORMAL = 1e-4  # largest error of an element of the Gram matrix: float32 rounding is 1e-6


class Basis(Enum):
    """Where a codec's directions come from."""

    LEARNED = "learned"  # updates of public or proxy data
    HISTORY = "history"  # aggregates that were already released
    SEEDED = "seeded"  # drawn for each round: a projection, nothing is learned


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What a file says."""

    layout: Layout
    basis: Basis
    blocks: tuple[Block, ...]
    noise_variance: float  # sigma squared of the decoder, in squared units of the parameters; 0: the PCA limit


def file_bytes(contents: Contents) -> bytes:
    """The file; the same contents always give the same bytes."""
    arrays = [array for block in contents.blocks for array in _arrays(block)]
    pieces = [np.ascontiguousarray(array, "<f4").tobytes() for array in arrays]
    header = _header(contents, [_outline(block) for block in contents.blocks], [array.shape for array in arrays])
    return b"".join([header, *pieces])


def read_file(raw: bytes | memoryview) -> Contents:
    """The contents of a file, as views of its bytes.

    Raises:
        MalformedMessageError: not the bytes that ``file_bytes`` writes for a codec: says what is wrong.
    """
    view = memoryview(raw).cast("B")
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(_MAX_HEADER, len(view) - 8):
        raise MalformedMessageError(f"{len(view)} bytes are no codec: its header would be {length} bytes long")
    try:
        said = json.loads(bytes(view[8 : 8 + length]))["__metadata__"]
        layout, basis = Layout.from_json(said["layout"].encode()), Basis(said["basis"])
        outlines, noise_variance = json.loads(said["blocks"]), float(said["noise_variance"])
        parameters = {entry.name: entry for entry in layout.entries if entry.role is Role.PARAMETER}
        shapes = [shape for outline in outlines for shape in _shapes(outline, parameters)]
        shell = Contents(layout, basis, (), noise_variance)
        header = _header(shell, outlines, shapes)
    except LayoutMismatchError as error:
        raise MalformedMessageError(f"a codec of no layout: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise MalformedMessageError(f"no header of a codec: {type(error).__name__}: {error}") from error
    if header != view[: len(header)] or len(view) != len(header) + 4 * sum(map(_count, shapes)):
        raise MalformedMessageError("a codec whose header or length is not what its own blocks give; fetch it again")
    arrays = _views(view[len(header) :], shapes)
    contents = Contents(layout, basis, tuple(_block(o, parameters, arrays) for o in outlines), noise_variance)
    _check(contents)
    return contents


def check_layout(layout: Layout) -> None:
    """Refuse a layout that no codec is for.

    Raises:
        MalformedMessageError: it has control variates, or is absurdly long.
    """
    if layout.slice_of(Role.CONTROL).stop:
        raise MalformedMessageError("a codec for control variates: SCAFFOLD sends them as they are, or not at all")
    if not 0 < layout.size <= _MAX_SIZE:
        raise MalformedMessageError(f"a codec for updates of {layout.size} numbers, expected 1 to {_MAX_SIZE}")


def _header(contents: Contents, outlines: list[object], shapes: list[tuple[int, ...]]) -> bytes:
    document: dict[str, object] = {
        "__metadata__": {
            "format": _FORMAT,
            "layout": contents.layout.to_json().decode(),
            "basis": contents.basis.value,
            "blocks": canonical_json(outlines).decode(),
            "noise_variance": repr(float(contents.noise_variance)),
        }
    }
    end = 0
    for nth, shape in enumerate(shapes):
        start, end = end, end + 4 * _count(shape)
        document[f"{nth:06d}"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = canonical_json(document)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _outline(block: Block) -> object:
    if isinstance(block, Dense):
        return {"dense": list(block.names), "learned": len(block.directions), "fresh": block.fresh}
    return {"two_sided": block.name, "kept": list(block.variances.shape)}


def _arrays(block: Block) -> tuple[NDArray[np.float32], ...]:
    if isinstance(block, Dense):
        return block.directions, block.variances
    return block.left, block.right, block.variances


def _shapes(outline: object, parameters: Mapping[str, Entry]) -> list[tuple[int, ...]]:
    """Of the arrays of one block; every number of an outline is checked here."""
    match outline:
        case {"dense": list(names), "learned": int(learned), "fresh": int(fresh), **others} if not others:
            if isinstance(learned, bool) or isinstance(fresh, bool):
                raise TypeError("a number of directions that is true or false")
            length = sum(entry.size for entry in _entries(names, parameters))
            if learned < 0 or fresh < 0 or not length or learned + fresh > length:
                raise ValueError(f"{learned} learned and {fresh} fresh directions of {length} numbers")
            return [(learned, length), (learned,)]
        case {"two_sided": str(name), "kept": [int(p), int(q)], **others} if not others:
            if isinstance(p, bool) or isinstance(q, bool):
                raise TypeError("a number of rows or columns that is true or false")
            rows, columns = matrix_shape(_entries([name], parameters)[0])
            if not (0 < p <= rows and 0 < q <= columns):
                raise ValueError(f"{name}: {p} x {q} numbers of a {rows} x {columns} matrix")
            return [(rows, p), (columns, q), (p, q)]
    raise ValueError("a block that is neither dense nor two-sided")


def matrix_shape(entry: Entry) -> tuple[int, int]:
    """Of a matrix or convolution as a matrix: outputs, and all else.

    Raises:
        ValueError: it has fewer than two axes, or no element.
    """
    if len(entry.shape) < 2 or not entry.size:
        raise ValueError(f"{entry.name} of shape {entry.shape} is no matrix")
    return entry.shape[0], entry.size // entry.shape[0]


def _entries(names: list[str], parameters: Mapping[str, Entry]) -> list[Entry]:
    found = [parameters[name] for name in names]
    if any(before.offset >= after.offset for before, after in itertools.pairwise(found)):
        raise ValueError("a block of tensors that are not in the order of the layout")
    return found


def _views(data: memoryview, shapes: list[tuple[int, ...]]) -> Iterator[Matrix]:
    start = 0
    for shape in shapes:
        stop = start + 4 * _count(shape)
        yield np.frombuffer(data[start:stop], "<f4").reshape(shape)
        start = stop


def _block(outline: Mapping[str, Any], parameters: Mapping[str, Entry], arrays: Iterator[Matrix]) -> Block:
    """From an outline that ``_shapes`` has checked; its numbers are checked before anything is computed of them."""
    if "dense" in outline:
        entries, directions, variances = _entries(outline["dense"], parameters), next(arrays), next(arrays)
        _check_numbers(entries[0].name, (directions,), variances)
        return Dense.of(entries, directions, variances, outline["fresh"])
    (entry,) = _entries([outline["two_sided"]], parameters)
    left, right, variances = next(arrays), next(arrays), next(arrays)
    _check_numbers(entry.name, (left.T, right.T), variances)
    return TwoSided(entry.name, entry.offset, left, right, variances)


def _check(contents: Contents) -> None:
    check_layout(contents.layout)
    if not sum(block.size for block in contents.blocks):
        raise MalformedMessageError("a codec without a number in its code")
    names = [name for block in contents.blocks for name in block.names]
    if len(set(names)) != len(names):
        raise MalformedMessageError("a codec codes one tensor twice")
    if any(entry.name == CODE and CODE not in names for entry in contents.layout.entries):
        raise MalformedMessageError(f"a tensor named {CODE} cannot pass beside the code; rename it in the model")
    is_seeded = all(isinstance(block, Dense) and not len(block.directions) for block in contents.blocks)
    if is_seeded != (contents.basis is Basis.SEEDED):
        raise MalformedMessageError(f"a codec says {contents.basis.value} of directions that are not")
    if not 0 <= contents.noise_variance < np.inf:
        raise MalformedMessageError(f"a codec with noise variance {contents.noise_variance}")


def _check_numbers(name: str, bases: tuple[Matrix, ...], variances: NDArray[np.float32]) -> None:
    if not (np.isfinite(variances).all() and (variances >= 0).all()):
        raise MalformedMessageError(f"{name}: variances that are negative or not finite")
    for rows in bases:
        with np.errstate(all="ignore"):
            error = np.abs(rows @ rows.T - np.eye(len(rows), dtype=np.float32)).max(initial=0)
        if not error <= _ORTHONORMAL:
            raise MalformedMessageError(
                f"{name}: its directions are not orthonormal (off by {error:.2g}); refit the codec"
            )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
