"""Masks are AES-256-CTR, cancel, and do not depend on how a vector is cut."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from fedveil.utils.secure_sum.masks import PIECE_BYTES, Keystream, Masker
from hypothesis import given, settings
from hypothesis import strategies as st

VECTORS = json.loads((Path(__file__).parent / "vectors" / "masks.json").read_text("utf-8"))["cases"]
KEYS = [bytes([n]) * 32 for n in range(6)]
PIECE = PIECE_BYTES // 4
FIRST_COUNTER = bytes(15) + b"\2"
TYPES = {32: np.uint32, 64: np.uint64}


def plain_keystream(key, length):
    return Cipher(AES256(key), CTR(FIRST_COUNTER)).encryptor().update(bytes(length))


def values(size, seed=0, kind=np.uint32):
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, size, kind, endpoint=True)


@pytest.mark.parametrize("case", VECTORS)
def test_published_vectors(case):
    keys = [[bytes.fromhex(key) for key in case[side]] for side in ("plus", "minus")]
    out = np.array(case["vector"], TYPES[case["word_bits"]])
    Masker(*keys, case["start_word"]).apply(out)
    assert out.tolist() == case["masked"]


def test_nist_vector():
    """SP 800-38A, F.5.5: the first block of the keystream of a key from the counter block given there."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    out = bytearray(32)
    Keystream(key, 16 * (counter - 2)).into(out, 16)
    assert out[:16].hex() == "0bdf7df1591716335e9a8b15c860c502"


@pytest.mark.parametrize("size", [0, 1, 5, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_one_mask_is_plain_aes_ctr(size):
    before = values(size)
    out = before.copy()
    Masker(KEYS[:1]).apply(out)
    mask = np.frombuffer(plain_keystream(KEYS[0], 4 * size), np.uint32)
    assert np.array_equal(out, before + mask)


@given(st.lists(st.integers(0, 2 * PIECE), max_size=6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 100))
@settings(deadline=None)
def test_any_cut_gives_the_words_of_the_whole(cuts, plus, minus, start):
    size = 2 * PIECE + 13
    whole = values(size)
    cut = whole.copy()
    keys = KEYS[:plus], KEYS[plus : plus + minus]
    Masker(*keys, start).apply(whole)
    masker = Masker(*keys, start)
    edges = [0, *sorted(cuts), size]
    for begin, end in itertools.pairwise(edges):
        masker.apply(cut[begin:end])
    assert np.array_equal(whole, cut)


def test_the_counter_goes_on_beyond_32_bits_as_ctr_says():
    start = 16 * (2**32 - 4)
    out = bytearray(16 * 8)
    Keystream(KEYS[0], start).into(out, 16 * 7)
    counter = (2**32 - 2).to_bytes(16, "big")
    assert out[: 16 * 7] == Cipher(AES256(KEYS[0]), CTR(counter)).encryptor().update(bytes(16 * 7))


@given(st.integers(0, 3 * PIECE))
@settings(deadline=None)
def test_a_masker_that_starts_at_a_word_goes_on_as_one_from_the_beginning(start):
    whole = np.zeros(3 * PIECE + 9, np.uint32)
    Masker(KEYS[:2], KEYS[2:4]).apply(whole)
    tail = np.zeros(whole.size - start, np.uint32)
    Masker(KEYS[:2], KEYS[2:4], start).apply(tail)
    assert np.array_equal(whole[start:], tail)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_plus_and_minus_exchanged_give_back_what_was_there(kind):
    before = values(PIECE + 3, 1, kind)
    out = before.copy()
    Masker(KEYS[:2], KEYS[2:]).apply(out)
    assert (out != before).mean() > 0.99
    Masker(KEYS[2:], KEYS[:2]).apply(out)
    assert np.array_equal(out, before)


def test_words_of_64_bits_behind_a_body_carry_and_use_the_bytes_at_their_place():
    body, tallies = values(10), values(3, 2, np.uint64)
    expected = [int(value) for value in tallies]
    masker = Masker(KEYS[:1])
    masker.apply(body)
    masker.apply(tallies)
    stream = plain_keystream(KEYS[0], 64)[40:]
    masks = [int.from_bytes(stream[at : at + 8], "little") for at in (0, 8, 16)]
    assert tallies.tolist() == [(value + mask) % 2**64 for value, mask in zip(expected, masks, strict=True)]


@pytest.mark.parametrize("sites", [2, 3, 8])
def test_pair_masks_of_a_complete_graph_cancel_in_the_sum(sites):
    pairs = {(low, high): os.urandom(32) for high in range(sites) for low in range(high)}
    inputs = [values(1_000, site) for site in range(sites)]
    total = np.zeros(1_000, np.uint32)
    for site, vector in enumerate(inputs):
        masked = vector.copy()
        plus = [key for (low, _), key in pairs.items() if low == site]
        Masker(plus, [key for (_, high), key in pairs.items() if high == site]).apply(masked)
        total += masked
    assert np.array_equal(total, np.sum(inputs, axis=0, dtype=np.uint32))


def test_masked_zeros_have_uniform_bytes():
    """A smoke test: chi-square of the byte histogram, 255 degrees of freedom, far within what chance gives."""
    out = np.zeros(1 << 18, np.uint32)
    Masker([os.urandom(32)], [os.urandom(32)]).apply(out)
    counts = np.bincount(out.view(np.uint8), minlength=256)
    expected = out.nbytes / 256
    assert 100 < ((counts - expected) ** 2 / expected).sum() < 500


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Keystream(KEYS[0]).into(bytearray(PIECE_BYTES + 32), PIECE_BYTES + 1),
        lambda: Masker([bytes(31)]),
        lambda: Masker([KEYS[0]], start_word=-1),
        lambda: Masker([KEYS[0], KEYS[0]]),
        lambda: Masker([KEYS[0]], [KEYS[0]]),
        lambda: Masker(KEYS[:1]).apply(np.zeros(4, np.int32)),
        lambda: Masker(KEYS[:1]).apply(np.zeros((2, 2), np.uint32)),
        lambda: Masker(KEYS[:1]).apply(np.zeros(8, np.uint32)[::2]),
        lambda: Masker(KEYS[:1], start_word=1).apply(np.zeros(4, np.uint64)),
    ],
)
def test_our_own_callers_mistakes_are_value_errors(wrong):
    with pytest.raises(ValueError):
        wrong()
