"""A codec's file: the same bytes, read back whole, and everything else refused."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from fedveil.gradient_leakage.vae.blocks import Dense, TwoSided
from fedveil.gradient_leakage.vae.codec import Basis, codec_bytes, codec_of, read_codec
from fedveil.utils.errors import MalformedMessageError
from fedveil.utils.tensors import Layout, Role, digest_of
from hypothesis import given, settings
from hypothesis import strategies as st

SORTS = ("dense", "fresh", "seeded", "two-sided with small ones")


def test_reading_gives_the_codec_back(codec):
    raw = codec_bytes(codec)
    read = read_codec(raw)
    assert codec_bytes(read) == raw
    assert (read.layout, read.basis, read.digest) == (codec.layout, codec.basis, digest_of(raw))
    assert (read.size, read.num_parameters, read.noise_variance) == (
        codec.size,
        codec.num_parameters,
        codec.noise_variance,
    )
    update = np.random.default_rng(0).standard_normal(codec.layout.size, np.float32)
    assert np.array_equal(read.for_round(b"round 1").encode(update), codec.encode(update))


def test_the_library_reads_the_file_too(codec):
    tensors = safetensors.numpy.load(codec_bytes(codec))
    assert sum(tensor.size for tensor in tensors.values()) == codec.num_parameters


def test_a_codec_takes_a_memoryview(codecs):
    raw = codec_bytes(codecs["dense"])
    assert read_codec(memoryview(bytearray(raw))).digest == codecs["dense"].digest


@given(st.sampled_from(SORTS), st.data())
@settings(max_examples=150, deadline=None)
def test_any_other_byte_gives_another_digest_or_no_codec(codecs, sort, data):
    codec = codecs[sort]
    raw = bytearray(codec_bytes(codec))
    at = data.draw(st.integers(0, min(len(raw), 1 << data.draw(st.integers(3, 24))) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        other = read_codec(bytes(raw))
    except MalformedMessageError:
        return
    assert other.digest != codec.digest
    assert codec_bytes(other) == bytes(raw)


@given(st.sampled_from(SORTS), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_short_is_refused(codecs, sort, share):
    raw = codec_bytes(codecs[sort])
    with pytest.raises(MalformedMessageError):
        read_codec(raw[: int(share * len(raw))])


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_bytes_at_random_are_no_codec(raw):
    with pytest.raises(MalformedMessageError):
        read_codec(raw)
    with pytest.raises(MalformedMessageError):
        read_codec(struct.pack("<Q", len(raw)) + raw)


def test_a_longer_file_is_refused(codec):
    with pytest.raises(MalformedMessageError, match="length"):
        read_codec(codec_bytes(codec) + b"\0")


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30])
def test_numbers_that_are_no_basis_are_refused_before_anything_is_computed_of_them(codecs, sort, value):
    raw = bytearray(codec_bytes(codecs[sort]))
    start = 8 + int.from_bytes(raw[:8], "little")
    if start == len(raw):
        pytest.skip("a seeded codec stores no numbers")
    raw[start : start + 4] = np.float32(value).tobytes()
    with pytest.raises(MalformedMessageError, match="not orthonormal"):
        read_codec(bytes(raw))


def header_of(raw: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def filed(document: dict, data: bytes) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(SORTS), st.data())
@settings(max_examples=120, deadline=None)
def test_a_header_that_says_anything_else_is_refused(codecs, sort, data):
    document, arrays = header_of(codec_bytes(codecs[sort]))
    said = document["__metadata__"]
    which = data.draw(st.sampled_from(sorted(said)))
    before = said[which]
    if which in {"blocks", "layout"} and data.draw(st.booleans()):
        inner = json.loads(before)
        _put(inner, data)
        said[which] = json.dumps(inner, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    else:
        said[which] = data.draw(json_values)
    if said[which] == before or "\ud800" <= str(said[which]) <= "\udfff":
        return
    try:
        other = read_codec(filed(document, arrays))
    except (MalformedMessageError, UnicodeEncodeError):  # the test's own writer cannot encode lone surrogates
        return
    assert codec_bytes(other) == filed(document, arrays)
    assert other.digest != codecs[sort].digest


def _put(document: object, data: st.DataObject) -> None:
    """Another value somewhere inside."""
    keys = sorted(document) if isinstance(document, dict) else list(range(len(document)))
    if not keys:
        return
    key = data.draw(st.sampled_from(keys))
    if isinstance(document[key], dict | list) and data.draw(st.booleans()):
        _put(document[key], data)
    else:
        document[key] = data.draw(json_values)


@pytest.mark.parametrize(
    ("block", "what"),
    [
        ('{"dense":["w"],"fresh":0,"learned":true}', "true or false"),
        ('{"dense":["w"],"fresh":0,"learned":1e3}', "neither dense nor two-sided"),
        ('{"dense":["w"],"fresh":0,"learned":641}', "641 learned"),
        ('{"dense":["w"],"fresh":9000000000000,"learned":0}', "fresh directions of 640"),
        ('{"dense":["w"],"fresh":-1,"learned":3}', "-1 fresh"),
        ('{"dense":["b","w"],"fresh":0,"learned":1}', "order of the layout"),
        ('{"dense":["w","w"],"fresh":0,"learned":1}', "order of the layout"),
        ('{"dense":["mean"],"fresh":0,"learned":1}', "mean"),
        ('{"dense":[],"fresh":0,"learned":1}', "of 0 numbers"),
        ('{"dense":[["w"]],"fresh":0,"learned":1}', "unhashable"),
        ('{"kept":[11,1],"two_sided":"w"}', "11 x 1"),
        ('{"kept":[1,0],"two_sided":"w"}', "1 x 0"),
        ('{"kept":[1,true],"two_sided":"w"}', "true or false"),
        ('{"kept":[1,1],"two_sided":"b"}', "no matrix"),
        ('{"kept":[1,1],"two_sided":"w","why":1}', "neither"),
    ],
)
def test_a_block_that_cannot_be_is_refused_with_the_reason(codecs, block, what):
    document, arrays = header_of(codec_bytes(codecs["dense"]))
    document["__metadata__"]["blocks"] = f"[{block}]"
    with pytest.raises(MalformedMessageError, match=what):
        read_codec(filed(document, arrays))


def test_absurd_sizes_are_refused_before_anything_is_allocated(codecs):
    document, _ = header_of(codec_bytes(codecs["seeded"]))
    layout = Layout.of([("w", (1 << 40,), Role.PARAMETER)])
    document["__metadata__"]["layout"] = layout.to_json().decode()
    document["__metadata__"]["blocks"] = f'[{{"dense":["w"],"fresh":{1 << 39},"learned":0}}]'
    document["000000"]["shape"] = [0, 1 << 40]
    with pytest.raises(MalformedMessageError, match="1099511627776 numbers"):
        read_codec(filed(document, b""))
    with pytest.raises(MalformedMessageError, match="header would be"):
        read_codec(struct.pack("<Q", 1 << 62) + b"{}")


def spoilt(codec, **changes):
    block = replace(codec.blocks[0], **changes)
    return codec_bytes(replace(codec, blocks=(block, *codec.blocks[1:])))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.9])
def test_directions_that_are_not_orthonormal_are_refused(codecs, value):
    for sort, field in (("dense", "directions"), ("two-sided", "left"), ("two-sided", "right")):
        matrix = getattr(codecs[sort].blocks[0], field).copy()
        matrix[0, 0] = value
        with pytest.raises(MalformedMessageError, match="not orthonormal"):
            read_codec(spoilt(codecs[sort], **{field: matrix}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-9])
def test_variances_that_are_none_are_refused(codecs, value):
    variances = codecs["dense"].blocks[0].variances.copy()
    variances[-1] = value
    with pytest.raises(MalformedMessageError, match="variances"):
        read_codec(spoilt(codecs["dense"], variances=variances))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_noise_variance_that_is_none_is_refused(codecs, value):
    with pytest.raises(MalformedMessageError, match="noise variance"):
        read_codec(codec_bytes(replace(codecs["dense"], noise_variance=value)))


def test_a_codec_says_truly_whether_it_learned(codecs):
    for sort, basis in (("dense", Basis.SEEDED), ("seeded", Basis.LEARNED)):
        with pytest.raises(MalformedMessageError, match="directions that are not"):
            read_codec(codec_bytes(replace(codecs[sort], basis=basis)))


def test_no_tensor_is_coded_twice(small):
    entry = small.entries[0]
    dense = Dense.of([entry], np.eye(2, 640, dtype=np.float32), np.ones(2, np.float32))
    left, right = np.eye(10, 1, dtype=np.float32), np.eye(64, 1, dtype=np.float32)
    two_sided = TwoSided("w", 0, left, right, np.ones((1, 1), np.float32))
    with pytest.raises(MalformedMessageError, match="twice"):
        codec_of(small, Basis.LEARNED, (dense, two_sided))
    with pytest.raises(MalformedMessageError, match="without a number"):
        codec_of(small, Basis.LEARNED, ())


def test_control_variates_are_never_coded(small):
    layout = Layout.of([*((e.name, e.shape, e.role) for e in small.entries), ("c", (2,), Role.CONTROL)])
    dense = Dense.of([layout.entries[0]], np.eye(2, 640, dtype=np.float32), np.ones(2, np.float32))
    with pytest.raises(MalformedMessageError, match="SCAFFOLD"):
        codec_of(layout, Basis.LEARNED, (dense,))
