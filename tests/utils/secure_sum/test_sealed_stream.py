"""What is sealed to an aggregator opens there alone, whole, in its own place, and after any interruption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from fedveil.utils.errors import MalformedMessageError
from fedveil.utils.messages import EnvoyName
from fedveil.utils.secure_sum import sealing
from fedveil.utils.secure_sum.sealed_stream import PART_BYTES, TAG_BYTES, Binding, Opener, Sealer, open_stream
from fedveil.utils.secure_sum.terms import Suite
from hypothesis import given, settings
from hypothesis import strategies as st

SUITE = Suite.X25519
PRIVATE, PUBLIC = sealing.key_pair(SUITE, b"a" * 32)
PLAIN = bytes(range(256)) * 4
BINDING = Binding(b"t" * 32, EnvoyName("site"), EnvoyName("aggregator"), 1000, SUITE, 96)


def drawing(seed: int) -> Callable[[int], bytes]:
    return lambda size: bytes([seed]) * size


def sealed(binding: Binding = BINDING, plain: bytes = PLAIN, offset: int = 0, seed: int = 1) -> bytes:
    plain = plain[: binding.length]
    sealer = Sealer(binding, PUBLIC, drawing(seed))
    return b"".join(sealer.stream(lambda start, end: plain[start:end], offset))


def opened(stream: bytes, binding: Binding = BINDING, private: sealing.PrivateKey = PRIVATE) -> bytes:
    return b"".join(open_stream(binding, private, [stream]))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 500), part=st.integers(1, 200), cuts=st.sets(st.integers(0, 4000)))
def test_it_opens_to_what_was_sealed_however_it_is_cut_on_its_way(length, part, cuts):
    binding = replace(BINDING, length=length, part_bytes=part)
    stream = sealed(binding)
    assert len(stream) == binding.sealed_length
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in pairwise(places)]
    assert b"".join(open_stream(binding, PRIVATE, pieces)) == PLAIN[:length]


def test_a_sealed_part_is_one_message_of_a_stream():
    assert PART_BYTES + TAG_BYTES == 1 << 20
    assert PART_BYTES % 16 == 0


@pytest.mark.parametrize("suite", list(Suite))
def test_every_suite_seals_and_opens(suite):
    if not sealing.is_available(suite):
        pytest.skip(f"this machine's cryptography has no {suite.value}")
    private, public = sealing.key_pair(suite, b"k" * 32)
    binding = replace(BINDING, suite=suite)
    sealer = Sealer(binding, public, os.urandom)
    stream = b"".join(sealer.stream(lambda start, end: PLAIN[start:end]))
    assert len(stream) == binding.sealed_length
    assert opened(stream, binding, private) == PLAIN[: binding.length]


def test_it_goes_on_from_any_byte_as_if_it_had_never_ended():
    sealer = Sealer(BINDING, PUBLIC, os.urandom)
    whole = b"".join(sealer.stream(lambda start, end: PLAIN[start:end]))
    for offset in range(BINDING.sealed_length + 1):
        assert b"".join(sealer.stream(lambda start, end: PLAIN[start:end], offset)) == whole[offset:]
    with pytest.raises(ValueError, match="byte"):
        next(sealer.stream(lambda start, end: PLAIN[start:end], BINDING.sealed_length + 1))


def test_parts_open_in_any_order():
    stream = sealed()
    opener = Opener(BINDING, PRIVATE, stream[: BINDING.header_bytes])
    for number in reversed(range(BINDING.parts)):
        begin, end = BINDING.sealed_span(number)
        start, stop = BINDING.plain_span(number)
        assert opener.open(number, stream[begin:end]) == PLAIN[start:stop]


def test_any_byte_that_is_changed_is_found():
    stream = sealed()
    for place in range(len(stream)):
        changed = bytearray(stream)
        changed[place] ^= 1
        with pytest.raises(MalformedMessageError):
            opened(bytes(changed))


@pytest.mark.parametrize("length", [0, 1, 79, 80, 200, BINDING.sealed_length - 1])
def test_a_stream_that_is_cut_is_found(length):
    with pytest.raises(MalformedMessageError):
        opened(sealed()[:length])


def test_a_stream_that_is_too_long_is_found():
    with pytest.raises(MalformedMessageError, match="more bytes"):
        opened(sealed() + b"x")


def _part(number: int) -> slice:
    return slice(*BINDING.sealed_span(number))


def _exchanged(stream: bytes) -> bytes:
    one, two = stream[_part(1)], stream[_part(2)]
    return stream[: _part(1).start] + two + one + stream[_part(2).stop :]


@pytest.mark.parametrize(
    "change",
    [
        _exchanged,
        lambda stream: stream[: _part(2).start] + stream[_part(1)] + stream[_part(2).stop :],
        lambda stream: stream[: _part(1).start] + sealed(seed=2)[_part(1)] + stream[_part(1).stop :],
        lambda stream: sealed(seed=2)[: BINDING.header_bytes] + stream[BINDING.header_bytes :],
    ],
)
def test_parts_moved_repeated_or_taken_from_another_stream_do_not_open(change):
    with pytest.raises(MalformedMessageError):
        opened(change(sealed()))


@pytest.mark.parametrize(
    "other",
    [
        replace(BINDING, transcript=b"u" * 32),
        replace(BINDING, sender=EnvoyName("other")),
        replace(BINDING, recipient=EnvoyName("other")),
        replace(BINDING, length=999),
        replace(BINDING, length=1001),
        replace(BINDING, part_bytes=95),
        replace(BINDING, sender=EnvoyName("sitea"), recipient=EnvoyName("ggregator")),
    ],
)
def test_a_stream_of_another_sum_site_aggregator_or_length_does_not_open(other):
    with pytest.raises(MalformedMessageError):
        opened(sealed(), other)


def test_nobody_else_opens_it():
    with pytest.raises(MalformedMessageError):
        opened(sealed(), private=sealing.key_pair(SUITE, b"b" * 32)[0])


def test_two_plaintexts_are_never_sealed_as_one_part():
    sealer = Sealer(BINDING, PUBLIC, os.urandom)
    first = sealer.seal(0, PLAIN[:96])
    assert sealer.seal(0, PLAIN[:96]) == first
    with pytest.raises(ValueError, match="sealed before"):
        sealer.seal(0, PLAIN[1:97])


def test_two_streams_of_one_plaintext_share_nothing():
    one, two = (Sealer(BINDING, PUBLIC, os.urandom) for _ in range(2))
    assert one.header != two.header
    assert one.seal(0, PLAIN[:96]) != two.seal(0, PLAIN[:96])


def test_no_more_than_one_part_is_held():
    held = []

    def pieces() -> Iterator[bytes]:
        stream = sealed()
        for start in range(0, len(stream), 10):
            held.append(start)
            yield stream[start : start + 10]

    parts = open_stream(BINDING, PRIVATE, pieces())
    next(parts)
    assert held[-1] <= BINDING.sealed_span(0)[1]


@pytest.mark.parametrize("change", [{"transcript": b""}, {"length": 0}, {"length": 1 << 48}, {"part_bytes": 0}])
def test_a_stream_that_cannot_be_is_the_callers_mistake(change):
    with pytest.raises(ValueError, match="no stream"):
        replace(BINDING, **change)


def test_a_part_of_another_length_or_number_is_refused():
    sealer = Sealer(BINDING, PUBLIC, os.urandom)
    with pytest.raises(ValueError, match="expected 96"):
        sealer.seal(0, PLAIN[:95])
    with pytest.raises(ValueError, match="part 11 of 11"):
        sealer.seal(11, b"")
    opener = Opener(BINDING, PRIVATE, sealer.header)
    with pytest.raises(MalformedMessageError, match="site: part 0 has 3 bytes"):
        opener.open(0, b"abc")
