"""Director and aggregator understand each other, and nothing else passes for what they say."""

from __future__ import annotations

import pytest
from fedveil.utils.errors import MalformedMessageError
from fedveil.utils.secure_sum import encoding
from fedveil.utils.secure_sum.handover import (
    MARK,
    MAX_REASON,
    PART_BYTES,
    Declined,
    Finished,
    Order,
    Part,
    from_bytes,
    is_handover,
    to_bytes,
)
from fedveil.utils.tensors import digest_of
from hypothesis import given
from hypothesis import strategies as st

MESSAGES = [
    Order(digest_of(b"case")),
    Part(0, b"x"),
    Part(1 << 40, bytes(PART_BYTES)),
    Finished(digest_of(b"total"), b"s" * 64),
    Declined("too few revealed their shares"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_each_message_reads_back(message):
    assert from_bytes(to_bytes(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_none_of_them_passes_for_a_statement_of_the_sum(message):
    assert is_handover(to_bytes(message))
    with pytest.raises(MalformedMessageError):
        encoding.decode(to_bytes(message))


@given(st.binary(max_size=200))
def test_anything_else_is_refused(raw):
    with pytest.raises(MalformedMessageError):
        from_bytes(raw)


@pytest.mark.parametrize(
    "raw",
    [
        MARK,
        MARK + b"X",
        MARK + b"O" + bytes(31),
        MARK + b"P" + bytes(8),
        MARK + b"P" + bytes(9 + PART_BYTES),
        MARK + b"F" + bytes(95),
        MARK + b"D" + bytes(4 * MAX_REASON + 1),
    ],
)
def test_a_message_of_another_length_is_refused(raw):
    with pytest.raises(MalformedMessageError):
        from_bytes(raw)


def test_a_reason_is_one_printable_line_however_it_came():
    said = from_bytes(MARK + b"D" + b"no\x1b[31m\n\xff" + b"x" * 3000)
    assert isinstance(said, Declined)
    assert said.reason.isprintable()
    assert len(said.reason) == MAX_REASON
