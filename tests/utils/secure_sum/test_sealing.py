"""What is sealed to a site opens there, with the same information, and nowhere else."""

import hashlib
import hmac
import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fedveil.utils.errors import MalformedMessageError
from fedveil.utils.secure_sum.sealing import (
    BOX_OVERHEAD_BYTES,
    PUBLIC_KEY_BYTES,
    is_available,
    key_pair,
    open_box,
    seal,
)
from fedveil.utils.secure_sum.terms import Suite
from hypothesis import given, settings
from hypothesis import strategies as st

VECTORS = json.loads((Path(__file__).parent / "vectors" / "sealing.json").read_text("utf-8"))["cases"]
SEED = bytes(range(32))
SMALL_ORDER = [  # points of order 1, 2, 4 and 8 of the curve and its twist, and values beyond the field that are those
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
]
suites = pytest.mark.parametrize("suite", list(Suite))


@pytest.mark.parametrize("case", VECTORS)
def test_published_vectors(case):
    suite, box, info = Suite(case["suite"]), bytes.fromhex(case["box"]), bytes.fromhex(case["info"])
    private, public = key_pair(suite, bytes.fromhex(case["seed"]))
    assert public.hex() == case["public_key"]
    assert open_box(suite, private, box, info).hex() == case["plaintext"]


def expanded(seed, info, length):
    """HKDF-Expand of RFC 5869, by the letter."""
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(seed, block + info + bytes([counter]), hashlib.sha256)
        out, counter = out + block, counter + 1
    return out[:length]


def test_keys_follow_from_the_seed_as_the_docstring_says():
    drawn = expanded(SEED, b"fedveil-sum/1 key x25519", 32)
    assert key_pair(Suite.X25519, SEED)[1] == X25519PrivateKey.from_private_bytes(drawn).public_key().public_bytes_raw()
    drawn = expanded(SEED, b"fedveil-sum/1 key mlkem768-x25519", 96)
    lattice = MLKEM768PrivateKey.from_seed_bytes(drawn[:64]).public_key().public_bytes_raw()
    curve = X25519PrivateKey.from_private_bytes(drawn[64:]).public_key().public_bytes_raw()
    assert key_pair(Suite.MLKEM768_X25519, SEED)[1] == lattice + curve


@suites
@settings(deadline=None, max_examples=20)
@given(plaintext=st.binary(max_size=200), info=st.binary(max_size=100))
def test_what_was_sealed_opens_with_the_key_and_the_information(suite, plaintext, info):
    private, public = key_pair(suite, os.urandom(32))
    box = seal(suite, public, plaintext, info)
    assert len(box) == len(plaintext) + BOX_OVERHEAD_BYTES[suite]
    assert open_box(suite, private, box, info) == plaintext
    assert seal(suite, public, plaintext, info) != box


@suites
def test_sizes_are_those_of_the_table(suite):
    assert is_available(suite)
    assert len(key_pair(suite, SEED)[1]) == PUBLIC_KEY_BYTES[suite] == {"x25519": 32}.get(suite.value, 1216)
    assert BOX_OVERHEAD_BYTES[suite] == {"x25519": 48}.get(suite.value, 1136)


@suites
def test_a_box_opens_only_with_its_key_its_information_and_all_its_bytes(suite):
    private, public = key_pair(suite, SEED)
    box = seal(suite, public, b"share", b"round 3, a to b")
    for key, changed, info in (
        (key_pair(suite, bytes(32))[0], box, b"round 3, a to b"),
        (private, box, b"round 4, a to b"),
        (private, box[:-1], b"round 3, a to b"),
        (private, box + b"\0", b"round 3, a to b"),
        (private, box[:-1] + bytes([box[-1] ^ 1]), b"round 3, a to b"),
        (private, bytes([box[0] ^ 1]) + box[1:], b"round 3, a to b"),
        (private, b"", b"round 3, a to b"),
        (private, bytes(len(box)), b"round 3, a to b"),
    ):
        with pytest.raises(MalformedMessageError):
            open_box(suite, key, changed, info)


@suites
@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_nothing_is_sealed_to_a_point_of_small_order(suite, point):
    public = key_pair(suite, SEED)[1][:-32] + point
    with pytest.raises(MalformedMessageError):
        seal(suite, public, b"share", b"")


@suites
def test_nothing_is_sealed_to_what_is_no_key(suite):
    public = key_pair(suite, SEED)[1]
    for wrong in (b"", public[:-1], public + b"\0", b"\xff" * (len(public) - 32) + bytes(32)):
        with pytest.raises(MalformedMessageError):
            seal(suite, wrong, b"share", b"")


def test_a_lattice_key_with_numbers_beyond_its_modulus_is_refused():
    public = key_pair(Suite.MLKEM768_X25519, SEED)[1]
    with pytest.raises(MalformedMessageError):
        seal(Suite.MLKEM768_X25519, b"\xff" * 1152 + public[1152:], b"share", b"")


def test_our_own_callers_mistakes_are_value_errors():
    with pytest.raises(ValueError, match="31 bytes"):
        key_pair(Suite.X25519, bytes(31))
    curve, lattice = key_pair(Suite.X25519, SEED)[0], key_pair(Suite.MLKEM768_X25519, SEED)[0]
    for suite, key in ((Suite.X25519, lattice), (Suite.MLKEM768_X25519, curve)):
        with pytest.raises(ValueError, match="not one of"):
            open_box(suite, key, bytes(2000), b"")
