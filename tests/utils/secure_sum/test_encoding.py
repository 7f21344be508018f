"""Statements arrive as they were said, bodies byte for byte; what is none is refused, and nothing else happens."""

import contextlib

import pytest
from fedveil.utils.errors import MalformedMessageError
from fedveil.utils.messages import NAME_PATTERN
from fedveil.utils.metrics import MetricKind
from fedveil.utils.secure_sum import encoding
from fedveil.utils.secure_sum import statements as s
from fedveil.utils.secure_sum.rehearsal import ENVOY_STEPS
from fedveil.utils.secure_sum.sealing import BOX_OVERHEAD_BYTES, PUBLIC_KEY_BYTES
from fedveil.utils.secure_sum.signed import Kind, Signed
from fedveil.utils.secure_sum.tallies import MetricShape
from fedveil.utils.secure_sum.terms import Suite
from hypothesis import given, settings
from hypothesis import strategies as st

hashes = st.binary(min_size=32, max_size=32)
signatures = st.binary(min_size=64, max_size=64)
bodies = st.binary(max_size=80)
names = st.from_regex(NAME_PATTERN, fullmatch=True)
suites = st.sampled_from(Suite)


def bytes_of(length):
    return st.binary(min_size=length, max_size=length)


def statements_of(kind):
    return st.builds(Signed, names, st.just(kind), bodies, signatures)


travelling = st.sampled_from([Kind.ADVERT, Kind.MASKED, Kind.CONSENT, Kind.UNMASKING]).flatmap(statements_of)
deals = statements_of(Kind.DEAL)
some = st.lists(bodies, max_size=4).map(tuple)
contents = st.one_of(
    travelling,
    st.builds(s.CohortCall, st.lists(statements_of(Kind.ADVERT), max_size=4).map(tuple), st.integers(1, 128)),
    st.builds(s.Shares, deals, some),
    st.builds(s.Delivery, st.lists(st.builds(s.Delivered, deals, bodies), max_size=3).map(tuple)),
    st.builds(s.SurvivorsCall, bodies),
    st.builds(s.ConsentSet, bodies, st.lists(st.builds(s.Voice, names, signatures), max_size=3).map(tuple)),
)
metric = st.builds(
    MetricShape, st.text("abcXYZ-_./@", min_size=1, max_size=32), st.sampled_from([MetricKind.MEAN, MetricKind.AUC])
)
keys = suites.flatmap(lambda suite: bytes_of(PUBLIC_KEY_BYTES[suite]))
adverts = st.builds(
    s.Advert, hashes, keys, keys, st.lists(metric, max_size=3).map(tuple), st.lists(hashes, max_size=3).map(tuple)
)
share_boxes = st.just(b"") | suites.flatmap(lambda suite: bytes_of(66 + BOX_OVERHEAD_BYTES[suite]))
pair_boxes = suites.flatmap(lambda suite: bytes_of(32 + BOX_OVERHEAD_BYTES[suite]))
pieces = st.one_of(
    st.builds(s.Piece, share_boxes, pair_boxes, hashes, hashes, hashes),
    st.builds(s.Piece, share_boxes, st.just(b""), hashes, hashes, st.just(b"")),
)
BODIES = {
    "advert": (adverts, encoding.advert_body, encoding.read_advert),
    "deal": (
        st.builds(s.Deal, hashes, hashes, hashes, st.lists(hashes, max_size=5).map(tuple)),
        encoding.deal_body,
        encoding.read_deal,
    ),
    "piece": (pieces, encoding.piece_bytes, encoding.read_piece),
    "masked": (
        st.builds(s.MaskedHeader, hashes, hashes, st.integers(1, 1 << 40), hashes),
        encoding.masked_body,
        encoding.read_masked,
    ),
    "consent": (
        st.builds(s.Consent, hashes, hashes, st.lists(names, max_size=4).map(tuple), st.binary(max_size=256)),
        encoding.consent_body,
        encoding.read_consent,
    ),
    "unmasking": (
        st.builds(s.Unmasking, hashes, hashes, st.lists(bytes_of(33), max_size=4).map(tuple)),
        encoding.unmasking_body,
        encoding.read_unmasking,
    ),
}


@given(contents)
def test_a_statement_arrives_as_it_was_said(content):
    assert encoding.decode(encoding.encode(content)) == content


@pytest.mark.parametrize("what", BODIES)
def test_a_body_arrives_as_it_was_signed(what):
    values, write, read = BODIES[what]

    @given(values)
    @settings(deadline=None)
    def check(value):
        assert read(write(value)) == value

    check()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_statement_or_malformed_and_nothing_else(raw):
    for read in (encoding.decode, *(read for _, _, read in BODIES.values())):
        with contextlib.suppress(MalformedMessageError):
            read(raw)


@pytest.fixture(scope="module")
def real():
    """Every message of one sum."""
    from fedveil.utils.secure_sum.rehearsal import Contribution, Network, cast_of, spec_for

    cast = cast_of([f"s{place}" for place in range(3)])
    outcome = Network(cast, spec_for((), 3), {name: Contribution(None, 5) for name in cast.names}).run()
    assert {step for step, _, _ in outcome.upward} == set(ENVOY_STEPS)
    return [content for _, _, content in (*outcome.upward, *outcome.downward)]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_real_message_that_was_damaged_is_another_statement_or_malformed(real, data):
    raw = bytearray(data.draw(st.sampled_from(real)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(raw[: data.draw(st.integers(1, len(raw)))])
    with contextlib.suppress(MalformedMessageError):
        content = encoding.decode(raw)
        assert encoding.decode(encoding.encode(content)) == content


def test_what_is_beyond_the_limits_is_malformed():
    signature = bytes(64)
    deal = Signed("a", Kind.DEAL, b"", signature)
    beyond = [
        encoding.encode(s.Shares(deal, (b"",) * 129)),
        encoding.encode(s.Delivery((s.Delivered(deal, b""),) * 129)),
        encoding.encode(s.CohortCall((Signed("a", Kind.ADVERT, b"", signature),) * 129, 1)),
        encoding.encode(s.CohortCall((), 129)),
        encoding.encode(s.CohortCall((), 0)),
        encoding.encode(s.ConsentSet(b"", (s.Voice("a", signature),) * 129)),
        encoding.encode(s.ConsentSet(b"", (s.Voice("a", signature[1:]),))),
        encoding.encode(s.ConsentSet(b"", (s.Voice("../a", signature),))),
        encoding.encode(Signed("A B", Kind.ADVERT, b"", signature)),
        encoding.encode(Signed("a", Kind.ADVERT, bytes(encoding.MAX_CONTENT_BYTES), signature)),
        b"",
    ]
    for raw in beyond:
        with pytest.raises(MalformedMessageError):
            encoding.decode(raw)


def test_a_body_of_wrong_lengths_is_malformed():
    for read, raw in (
        (encoding.read_advert, encoding.advert_body(s.Advert(bytes(32), bytes(31), bytes(32)))),
        (encoding.read_advert, encoding.advert_body(s.Advert(bytes(32), bytes(32), bytes(32), (), (bytes(32),) * 65))),
        (encoding.read_piece, encoding.piece_bytes(s.Piece(b"", bytes(80), bytes(32), bytes(32), b""))),
        (encoding.read_piece, encoding.piece_bytes(s.Piece(b"x", b"", bytes(32), bytes(32), b""))),
        (encoding.read_unmasking, encoding.unmasking_body(s.Unmasking(bytes(32), bytes(32), (bytes(32),)))),
        (encoding.read_masked, encoding.masked_body(s.MaskedHeader(bytes(32), bytes(32), 0, bytes(32)))),
        (encoding.read_consent, encoding.consent_body(s.Consent(bytes(32), bytes(32), (), bytes(257)))),
    ):
        with pytest.raises(MalformedMessageError):
            read(raw)


def test_a_statement_where_another_kind_belongs_is_malformed():
    raw = encoding.encode(Signed("a", Kind.ADVERT, b"body", bytes(64)))
    other = encoding.encode(Signed("a", Kind.MASKED, b"body", bytes(64)))
    assert raw[0] != other[0]
    with pytest.raises(MalformedMessageError, match="a masked where a advert belongs"):
        encoding.decode(raw[:1] + other[1:])
    with pytest.raises(ValueError, match="does not travel alone"):
        encoding.encode(Signed("a", Kind.DEAL, b"", bytes(64)))
