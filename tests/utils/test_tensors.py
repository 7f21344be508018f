"""Layouts tile a vector, and model files are what the safetensors library reads."""

import json

import numpy as np
import pytest
from fedveil.utils.errors import LayoutMismatchError, MalformedMessageError
from fedveil.utils.tensors import (
    Entry,
    ExactEntry,
    Layout,
    Role,
    canonical_json,
    digest_of,
    exact_arrays,
    exact_bytes,
    exact_dtype,
    model_num_bytes,
    model_pieces,
    named_views,
    read_model,
    vector_offset,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda n: n != "__metadata__"
)
roles = st.sampled_from(Role)
dtypes = st.sampled_from(["I64", "I32", "I16", "I8", "U8", "BOOL"])
NUMPY = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    named = draw(st.lists(names, min_size=1, max_size=7, unique=True))
    cut = draw(st.integers(0, len(named)))
    floats = [(name, draw(shapes), draw(roles)) for name in named[:cut]]
    return Layout.of(floats, [ExactEntry(name, draw(shapes), draw(dtypes)) for name in named[cut:]])


def arrays_of(layout: Layout, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(layout.size).astype(np.float32)
    return vector, {e.name: rng.integers(0, 2, e.shape).astype(NUMPY[e.dtype]) for e in layout.exact}


@given(layouts())
def test_entries_tile_the_vector_and_each_role_is_one_slice(layout: Layout):
    covered = np.zeros(layout.size, np.int64)
    for entry, view in named_views(layout, covered):
        assert view.shape == entry.shape
        np.add(view, 1, out=view)
    assert (covered == 1).all()
    for role in Role:
        held = layout.slice_of(role)
        assert held.stop - held.start == sum(e.size for e in layout.entries if e.role is role)
        assert all(held.start <= e.offset <= held.stop for e in layout.entries if e.role is role)
    assert layout.num_bytes == 4 * layout.size


@given(layouts())
def test_a_layout_survives_its_json_and_its_digest_is_of_these_bytes(layout: Layout):
    raw = layout.to_json()
    assert Layout.from_json(raw) == layout
    assert Layout.from_json(raw).digest == layout.digest == digest_of(raw)


@given(layouts(), layouts())
def test_two_layouts_have_one_digest_only_if_they_are_the_same(one: Layout, other: Layout):
    assert (one.digest == other.digest) == (one == other)


@settings(deadline=None)
@given(layouts(), st.integers(0, 99))
def test_a_model_file_is_read_by_the_safetensors_library(layout: Layout, seed: int):
    vector, exact = arrays_of(layout, seed)
    file = b"".join(model_pieces(layout, vector, exact_bytes(layout, exact)))
    assert len(file) == model_num_bytes(layout)
    assert vector_offset(layout) % 8 == 0
    loaded = load_safetensors(file)
    assert set(loaded) == {e.name for e in layout.entries} | set(exact)
    for entry, view in named_views(layout, vector):
        assert loaded[entry.name].dtype == np.float32
        assert np.array_equal(loaded[entry.name], view)
    for name, array in exact.items():
        assert loaded[name].dtype == array.dtype
        assert np.array_equal(loaded[name], array)


@given(layouts(), st.integers(0, 99))
def test_a_model_file_is_read_back_bit_by_bit(layout: Layout, seed: int):
    vector, exact = arrays_of(layout, seed)
    vector.view(np.uint32)[: vector.size // 2] ^= 0x7FC00001  # numbers of every sort, NaN with a payload among them
    file = b"".join(model_pieces(layout, vector, exact_bytes(layout, exact)))
    read, raw = read_model(layout, file)
    assert read.tobytes() == vector.tobytes()
    assert all(np.array_equal(array, exact[name]) for name, array in exact_arrays(layout, raw).items())


@settings(deadline=None)
@given(st.data())
def test_a_file_of_another_length_or_header_is_no_model(data: st.DataObject):
    layout = Layout.of([("w", (3,), Role.PARAMETER)])
    file = bytearray(b"".join(model_pieces(layout, np.zeros(3, np.float32), b"")))
    if data.draw(st.booleans()):
        file = file[: data.draw(st.integers(0, len(file) - 1))]
    else:
        file[data.draw(st.integers(0, vector_offset(layout) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(LayoutMismatchError, match="does not have layout"):
        read_model(layout, bytes(file))


def test_what_does_not_fit_a_layout_is_not_written():
    layout = Layout.of([("w", (3,), Role.PARAMETER)], [ExactEntry("n", (), "I64")])
    for vector, exact in [
        (np.zeros(2, np.float32), bytes(8)),
        (np.zeros(3, np.float64), bytes(8)),
        (np.zeros((3, 1), np.float32), bytes(8)),
        (np.zeros(3, np.float32), bytes(7)),
    ]:
        with pytest.raises(LayoutMismatchError):
            model_pieces(layout, vector, exact)


def test_parameters_come_before_buffers_before_controls():
    layout = Layout.of([("c", (1,), Role.CONTROL), ("b", (2,), Role.BUFFER), ("p", (3,), Role.PARAMETER)])
    assert [(e.name, e.offset) for e in layout.entries] == [("p", 0), ("b", 3), ("c", 5)]
    assert layout.slice_of(Role.BUFFER) == slice(3, 5)
    assert Layout.of([]).slice_of(Role.CONTROL) == slice(0, 0)


@pytest.mark.parametrize(
    "entries",
    [
        (Entry("a", (2,), 1, Role.PARAMETER),),  # a gap
        (Entry("a", (2,), 0, Role.PARAMETER), Entry("b", (2,), 1, Role.PARAMETER)),  # an overlap
        (Entry("a", (2,), 0, Role.PARAMETER), Entry("a", (2,), 2, Role.PARAMETER)),  # a name twice
        (Entry("a", (2,), 0, Role.BUFFER), Entry("b", (2,), 2, Role.PARAMETER)),  # roles out of order
        (Entry("a", (-2,), 0, Role.PARAMETER),),
    ],
)
def test_entries_that_do_not_tile_a_vector_are_no_layout(entries: tuple[Entry, ...]):
    with pytest.raises(LayoutMismatchError):
        Layout(entries)


def test_a_name_is_once_among_all_tensors():
    with pytest.raises(LayoutMismatchError, match="twice"):
        Layout.of([("a", (), Role.PARAMETER)], [ExactEntry("a", (), "I64")])


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_layout_is_refused_or_is_another_layout(data: st.DataObject):
    layout = Layout.of([("w", (2, 3), Role.PARAMETER), ("b", (3,), Role.BUFFER)], [ExactEntry("n", (), "I64")])
    raw = bytearray(layout.to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = Layout.from_json(bytes(raw))
    except (MalformedMessageError, LayoutMismatchError):
        return
    assert Layout.from_json(read.to_json()) == read


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b'{"entries":[]}',
        b'{"entries":[["w",[true],0,"parameter"]],"exact":[]}',
        b'{"entries":[["w",[2],0.0,"parameter"]],"exact":[]}',
        b'{"entries":[[5,[2],0,"parameter"]],"exact":[]}',
        b'{"entries":[["w",[2],0,"secret"]],"exact":[]}',
        b'{"entries":[["w",[-2],0,"parameter"]],"exact":[]}',
        b'{"entries":[],"exact":[["n",[],"F64"]]}',
        b'{"entries":[],"exact":[["n",[],["I64"]]]}',
        b'{"entries":5,"exact":[]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_layout_is_malformed(raw: bytes):
    with pytest.raises(MalformedMessageError, match="not a layout"):
        Layout.from_json(raw)


def test_integers_are_carried_exactly_or_refused():
    layout = Layout.of([], [ExactEntry("n", (2,), "I64")])
    large = np.array([2**62 + 1, -1])
    assert np.array_equal(exact_arrays(layout, exact_bytes(layout, {"n": large}))["n"], large)
    for wrong in ({}, {"n": large.astype(np.int32)}, {"n": large.astype(np.float32)}, {"n": large[:1]}):
        with pytest.raises(LayoutMismatchError, match="n: expected I64"):
            exact_bytes(layout, wrong)
    assert exact_dtype(np.dtype(np.float16)) is None
    assert exact_dtype(np.dtype(np.uint64)) is None


def test_canonical_json_has_no_freedom():
    assert canonical_json({"b": 1, "a": ["ä", 1.5]}) == '{"a":["ä",1.5],"b":1}'.encode()
    assert json.loads(canonical_json({"x": None})) == {"x": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
