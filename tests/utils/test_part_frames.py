"""Messages in one stream of bytes come out as they went in, wherever it is cut."""

import pytest
from fedveil.utils.errors import MalformedMessageError
from fedveil.utils.part_frames import Unframing, framed
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 400), max_size=12))
def test_messages_come_out_as_they_went_in_wherever_the_stream_is_cut(messages, cuts):
    stream, reader, read, start = b"".join(map(framed, messages)), Unframing(40), [], 0
    for end in [*sorted(cuts), len(stream)]:
        read += reader.feed(stream[start:end])
        start = max(start, end)
    reader.end()
    assert read == messages


@given(st.binary(min_size=1, max_size=40), st.integers(1, 43))
def test_a_stream_that_ends_amid_a_message_is_told(message, cut):
    whole, reader = framed(message), Unframing(40)
    assert list(reader.feed(whole[: min(cut, len(whole) - 1)])) == []
    with pytest.raises(MalformedMessageError, match="ended amid a message"):
        reader.end()


@pytest.mark.parametrize("length", [0, 41, 1 << 31])
def test_a_message_that_is_empty_or_too_long_is_refused_before_it_comes(length):
    with pytest.raises(MalformedMessageError, match="expected 1 to 40"):
        list(Unframing(40).feed(length.to_bytes(4, "big")))
