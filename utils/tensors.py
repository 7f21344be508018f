"""One flat float32 vector with its layout: how every model and every update is held.

A ``Layout`` names each tensor of a model, its shape, its place in the vector and its role. Both sides
must agree on it byte for byte, so its digest travels with every update. Tensors that are not float32
are never cast: integer and boolean buffers are ``ExactEntry``s, carried bit by bit beside the vector.

At rest and on the wire a model is one safetensors file whose tensors lie in the order of the layout, so
that the vector is one contiguous piece of it. This module knows no torch; named tensors exist only at
the edges.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import LayoutMismatchError, MalformedMessageError

Vector: TypeAlias = NDArray[np.float32]
"""float32, shape (layout.size,), C-contiguous, little-endian."""

Digest = NewType("Digest", str)
"""SHA-256 in lower-case hexadecimal, 64 characters."""

FLOAT_BYTES = 4
_MAX_EXTENTS = 32  # as many as numpy's arrays always had
_EXACT_DTYPES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
_DTYPE_CODES = {np.dtype(numpy_name): code for code, numpy_name in _EXACT_DTYPES.items()}


class Role(Enum):
    """What a tensor is to the server optimizer."""

    PARAMETER = "parameter"  # the server optimizer steps it
    BUFFER = "buffer"  # gets the plain weighted mean (running statistics)
    CONTROL = "control"  # SCAFFOLD's control variate: an unweighted mean


@dataclass(frozen=True, slots=True)
class Entry:
    """One float32 tensor in the vector: ``vector[offset : offset + size]``."""

    name: str
    shape: tuple[int, ...]
    offset: int  # in elements
    role: Role

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ExactEntry:
    """One integer or boolean tensor, carried bit by bit and never averaged."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # the safetensors code: I64, I32, I16, I8, U8 or BOOL

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in a model file."""
        return math.prod(self.shape) * np.dtype(_EXACT_DTYPES[self.dtype]).itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes, places and roles of a model's tensors.

    Parameters come first, then buffers, then controls, so that each role is one slice.

    >>> layout = Layout.of([("w", (2, 3), Role.PARAMETER), ("b", (3,), Role.PARAMETER)])
    >>> layout.size, layout.slice_of(Role.PARAMETER)
    (9, slice(0, 9, None))
    """

    entries: tuple[Entry, ...]
    exact: tuple[ExactEntry, ...] = ()
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Check that the entries tile the vector.

        Raises:
            LayoutMismatchError: gaps, overlaps, a name twice, or roles out of order.
        """
        end, roles = 0, list(Role)
        names = [e.name for e in self.entries] + [e.name for e in self.exact]
        if len(set(names)) != len(names):
            raise LayoutMismatchError("a layout names one tensor twice")
        for before, entry in zip((None, *self.entries), self.entries, strict=False):
            if entry.offset != end:
                raise LayoutMismatchError(f"{entry.name} starts at {entry.offset}, expected {end}")
            if any(extent < 0 for extent in entry.shape):
                raise LayoutMismatchError(f"{entry.name} has a negative extent: {entry.shape}")
            if before is not None and roles.index(entry.role) < roles.index(before.role):
                raise LayoutMismatchError(f"{entry.name}: a {entry.role.value} after a {before.role.value}")
            end += entry.size
        object.__setattr__(self, "digest", Digest(hashlib.sha256(self.to_json()).hexdigest()))

    @classmethod
    def of(
        cls,
        tensors: Iterable[tuple[str, tuple[int, ...], Role]],
        exact: Iterable[ExactEntry] = (),
    ) -> Layout:
        """Lay float32 tensors out one after the other, by role and then in the order given."""
        order = list(Role)
        entries: list[Entry] = []
        offset = 0
        for name, shape, role in sorted(tensors, key=lambda tensor: order.index(tensor[2])):
            entry = Entry(name, tuple(int(extent) for extent in shape), offset, role)
            entries.append(entry)
            offset += entry.size
        return cls(tuple(entries), tuple(exact))

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return self.entries[-1].offset + self.entries[-1].size if self.entries else 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the vector."""
        return self.size * FLOAT_BYTES

    def slice_of(self, role: Role) -> slice:
        """Where the tensors of one role lie in the vector; an empty slice if there are none."""
        held = [e for e in self.entries if e.role is role]
        return slice(held[0].offset, held[-1].offset + held[-1].size) if held else slice(0, 0)

    def to_json(self) -> bytes:
        """Canonical bytes: the digest is taken over these."""
        return canonical_json(
            {
                "entries": [[e.name, list(e.shape), e.offset, e.role.value] for e in self.entries],
                "exact": [[e.name, list(e.shape), e.dtype] for e in self.exact],
            }
        )

    @classmethod
    def from_json(cls, raw: bytes) -> Layout:
        """Read what ``to_json`` wrote.

        Raises:
            MalformedMessageError: not the JSON of a layout.
            LayoutMismatchError: its entries do not tile a vector.
        """
        try:
            document = json.loads(raw)
            entries = tuple(
                Entry(_text(name), _shape(shape), _index(offset), Role(role))
                for name, shape, offset, role in document["entries"]
            )
            exact = tuple(ExactEntry(_text(n), _shape(s), _dtype(d)) for n, s, d in document["exact"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MalformedMessageError(f"not a layout: {error}") from error
        return cls(entries, exact)


def canonical_json(document: object) -> bytes:
    """UTF-8, sorted keys, no spaces, no NaN: the same value always gives the same bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(*pieces: bytes | memoryview) -> Digest:
    """SHA-256 of the pieces, one after the other."""
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return Digest(sha.hexdigest())


def bytes_of(vector: Vector) -> memoryview:
    """The vector's bytes, without a copy."""
    return vector.data.cast("B")


def named_views(layout: Layout, vector: Vector) -> Iterator[tuple[Entry, Vector]]:
    """Each entry with its view into the vector, in its shape; writing to a view writes to the vector."""
    for entry in layout.entries:
        yield entry, vector[entry.offset : entry.offset + entry.size].reshape(entry.shape)


def model_header(layout: Layout) -> bytes:
    """The safetensors header of a model with this layout: the same layout always gives the same bytes.

    Source: the safetensors format (8 bytes little-endian length, JSON, data without holes). The library's own
    writer reorders tensors by name; ours keeps the vector in one piece. Tests read it with the library.
    """
    header: dict[str, object] = {}
    for entry in layout.entries:
        start = entry.offset * FLOAT_BYTES
        header[entry.name] = {
            "dtype": "F32",
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.size * 4],
        }
    end = layout.num_bytes
    for exact in layout.exact:
        header[exact.name] = {
            "dtype": exact.dtype,
            "shape": list(exact.shape),
            "data_offsets": [end, end + exact.num_bytes],
        }
        end += exact.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def model_pieces(layout: Layout, vector: Vector, exact: bytes) -> tuple[bytes, memoryview, bytes]:
    """The three pieces of a model file: header, vector, exact tensors. Nothing is copied."""
    if vector.dtype != np.float32 or vector.shape != (layout.size,):
        raise LayoutMismatchError(f"a model of shape {vector.shape} {vector.dtype}, expected ({layout.size},) float32")
    if len(exact) != sum(entry.num_bytes for entry in layout.exact):
        raise LayoutMismatchError(f"{len(exact)} bytes of exact tensors do not fit the layout")
    return model_header(layout), bytes_of(vector), exact


def model_num_bytes(layout: Layout) -> int:
    """Length of a model file."""
    return len(model_header(layout)) + layout.num_bytes + sum(entry.num_bytes for entry in layout.exact)


def vector_offset(layout: Layout) -> int:
    """Where the vector starts in a model file, in bytes; always a multiple of 8."""
    return len(model_header(layout))


def read_model(layout: Layout, file: memoryview | bytes) -> tuple[Vector, bytes]:
    """The vector (a view, not a copy) and the exact tensors' bytes of a model file.

    Raises:
        LayoutMismatchError: the file is of another layout; the message says what was expected.
    """
    view = memoryview(file)
    header = model_header(layout)
    if len(view) != model_num_bytes(layout) or bytes(view[: len(header)]) != header:
        raise LayoutMismatchError(
            f"a model file of {len(view)} bytes does not have layout {layout.digest[:12]} ({model_num_bytes(layout)})"
        )
    end = len(header) + layout.num_bytes
    return np.frombuffer(view[len(header) : end], np.float32), bytes(view[end:])


def exact_arrays(layout: Layout, exact: bytes) -> dict[str, NDArray[np.generic]]:
    """The exact tensors by name, read-only."""
    arrays, offset = {}, 0
    for entry in layout.exact:
        raw = exact[offset : offset + entry.num_bytes]
        arrays[entry.name] = np.frombuffer(raw, _EXACT_DTYPES[entry.dtype]).reshape(entry.shape)
        offset += entry.num_bytes
    return arrays


def exact_bytes(layout: Layout, arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The bytes of the exact tensors, in the layout's order.

    Raises:
        LayoutMismatchError: a tensor is missing or has another shape or dtype.
    """
    pieces = []
    for entry in layout.exact:
        array = arrays.get(entry.name)
        if array is None or array.shape != entry.shape or _DTYPE_CODES.get(array.dtype) != entry.dtype:
            raise LayoutMismatchError(f"{entry.name}: expected {entry.dtype} {entry.shape}")
        pieces.append(np.ascontiguousarray(array).tobytes())
    return b"".join(pieces)


def exact_dtype(dtype: np.dtype[np.generic]) -> str | None:
    """The safetensors code of a dtype that can be carried exactly, or None."""
    return _DTYPE_CODES.get(dtype)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a name, got {type(value).__name__}")
    return value


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError("expected a whole number of at least 0")
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_EXTENTS:
        raise TypeError(f"expected a list of at most {_MAX_EXTENTS} extents")
    return tuple(_index(extent) for extent in value)


def _dtype(value: object) -> str:
    if value not in _EXACT_DTYPES:
        raise TypeError(f"{value!r} is not an integer or boolean dtype")
    return str(value)
