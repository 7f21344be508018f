"""A sum that another organization's envoy opens: the same integers, and nothing for the director to open it with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import (
    BadShareError,
    FederationError,
    IdentityError,
    MalformedMessageError,
    SumAbortedError,
    SumRefusedError,
)
from fedveil.utils.messages import EnvoyName
from fedveil.utils.metrics import MetricKind, MetricSum
from fedveil.utils.roster import Roster, RosterEntry
from fedveil.utils.secure_sum import sealing, summation
from fedveil.utils.secure_sum.case import Case, Tried, tried
from fedveil.utils.secure_sum.opened import decode, tallies
from fedveil.utils.secure_sum.rehearsal import (
    Cast,
    Contribution,
    Network,
    Outcome,
    Step,
    cast_of,
    identity_of,
    plain_total,
    spec_for,
)
from fedveil.utils.secure_sum.relayed import (
    check_total,
    open_total,
    open_unmasking,
    opening_key,
    seal_key,
    seal_unmasking,
    sign_total,
    vector_binding,
    without_masks,
)
from fedveil.utils.secure_sum.sealed_stream import Sealer, open_stream
from fedveil.utils.secure_sum.terms import NoiseTerms, Suite, SumTerms
from fedveil.utils.tensors import digest_of
from hypothesis import given
from hypothesis import strategies as st

AGGREGATOR = EnvoyName("university")
SITES = ("a", "b", "c", "d", "e")
SIZE = 300_001  # two parts, the tallies in the second, and a word of padding
KEY = opening_key(identity_of(AGGREGATOR))
SEED = bytes(32)


def cast() -> Cast:
    return cast_of((*SITES, AGGREGATOR))


def contributions() -> dict[EnvoyName, Contribution]:
    rng = np.random.default_rng(5)
    return {
        EnvoyName(name): Contribution(
            rng.normal(0, 0.2, SIZE).astype(np.float32),
            10 * place + 3,
            (MetricSum("loss", MetricKind.MEAN, (1.5 * place,), 10.0),),
        )
        for place, name in enumerate(SITES)
    }


def rehearsed(**changes: object) -> Outcome:
    terms = SumTerms(suite=Suite.X25519, bounds=(1.0,), max_weight=1000, aggregator=AGGREGATOR)
    spec = spec_for((SIZE,), len(SITES), terms)
    return Network(cast(), spec, contributions(), audit_head=b"head", **changes).run()  # type: ignore[arg-type]


@dataclass
class Relay:
    """What a director has of a sum whose aggregator is elsewhere."""

    case: Case
    streams: dict[EnvoyName, bytes]


def said(outcome: Outcome, step: Step) -> dict[EnvoyName, bytes]:
    return {by: content for up, by, content in outcome.upward if up is step}


def relayed(outcome: Outcome) -> Relay:
    """As if the sites had sealed what they said."""
    opened, roster = outcome.opened, cast().roster
    assert opened is not None
    streams = {}
    for name in opened.survivors:
        raw = outcome.vectors[name].tobytes()
        sealer = Sealer(vector_binding(opened.cohort, name), seal_key(roster, AGGREGATOR), os.urandom)
        streams[name] = b"".join(sealer.stream(lambda start, end, raw=raw: raw[start:end]))
    unmaskings = {
        by: seal_unmasking(opened.cohort, by, content, roster) for by, content in said(outcome, Step.UNMASKING).items()
    }
    case = Case(
        spec=outcome.spec,
        rules=summation.SumRules(),
        adverts=said(outcome, Step.ADVERT),
        cohort=opened.cohort.names,
        shares=said(outcome, Step.SHARES),
        headers=said(outcome, Step.MASKED),
        survivors=opened.survivors,
        audit_head=b"head",
        consents=said(outcome, Step.CONSENT),
        unmaskings=unmaskings,
        vectors={name: digest_of(stream) for name, stream in streams.items()},
    )
    return Relay(case, streams)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return rehearsed()


@pytest.fixture(scope="module")
def relay(outcome: Outcome) -> Relay:
    return relayed(outcome)


def summed(relay: Relay, held: Tried | None = None) -> np.ndarray:
    held = held or tried(relay.case, AGGREGATOR, cast().roster, KEY)

    def pieces(name: EnvoyName) -> Iterator[bytes]:
        stream = relay.streams[name]
        return (stream[start : start + 100_000] for start in range(0, len(stream), 100_000))

    return open_total(held.opened, held.announced, pieces, KEY)


def test_the_total_is_bit_for_bit_that_of_a_director_that_aggregates_and_of_a_plain_sum(outcome, relay):
    total = summed(relay)
    assert outcome.total is not None
    assert outcome.opened is not None
    assert np.array_equal(total, outcome.total)
    assert np.array_equal(total, plain_total(outcome.opened.cohort, contributions(), SITES, SEED))


def test_the_director_reads_mean_and_tallies_from_the_total_alone(outcome, relay):
    assert outcome.opened is not None
    bare = without_masks(outcome.opened)
    assert (bare.plus, bare.minus) == ((), ())
    total, mean = summed(relay), np.zeros(SIZE, np.float32)
    decode(bare, total, tallies(bare, total).num_examples, mean)
    assert np.array_equal(mean, outcome.mean)


@pytest.mark.parametrize("step", [Step.ADVERT, Step.SHARES, Step.MASKED, Step.CONSENT, Step.UNMASKING])
def test_a_site_that_drops_out_at_any_step_changes_nothing_of_that(step):
    outcome = rehearsed(drops={EnvoyName("c"): step})
    assert outcome.aborted is None
    assert np.array_equal(summed(relayed(outcome)), outcome.total)


def test_a_case_travels_as_bytes(relay):
    raw = relay.case.to_bytes()
    assert Case.from_bytes(raw) == relay.case
    assert Case.from_bytes(raw).to_bytes() == raw
    noise = NoiseTerms(1.0, 0.7, 2)
    terms = replace(relay.case.spec.terms, bounds=(noise.bound,), max_weight=1, equal_weights=True, noise=noise)
    noised = replace(relay.case, spec=replace(relay.case.spec, terms=terms))
    assert Case.from_bytes(noised.to_bytes()) == noised


@given(st.binary(max_size=100))
def test_bytes_that_are_no_case_are_refused(raw):
    with pytest.raises(MalformedMessageError):
        Case.from_bytes(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "fedveil-sum-case/2"),
        ("spec", {}),
        ("terms", []),
        ("rules", [1, -2, 3]),
        ("rules", [True, 2, 3]),
        ("cohort", ["A"]),
        ("cohort", 3),
        ("audit_head", "zz"),
        ("adverts", {"a": "no base64!"}),
        ("adverts", {f"s{number}": "" for number in range(200)}),
        ("vectors", {"a": "ab"}),
        ("vectors", None),
    ],
)
def test_a_document_that_is_no_case_is_refused(relay, key, value):
    document = json.loads(relay.case.to_bytes())
    with pytest.raises(MalformedMessageError):
        Case.from_bytes(json.dumps(document | {key: value}).encode())


def test_neither_the_director_nor_a_site_opens_what_is_sealed_to_the_aggregator(outcome, relay):
    assert outcome.opened is not None
    for other in (opening_key(identity_of("a")), X25519PrivateKey.generate()):
        with pytest.raises(MalformedMessageError):
            next(open_stream(vector_binding(outcome.opened.cohort, EnvoyName("a")), other, [relay.streams["a"]]))
        with pytest.raises(MalformedMessageError):
            open_unmasking(outcome.opened.cohort, EnvoyName("a"), relay.case.unmaskings[EnvoyName("a")], other)
        with pytest.raises(SumAbortedError, match="0 of 5 envoys"):
            tried(relay.case, AGGREGATOR, cast().roster, other)


def _swapped(case: Case, name: str) -> Case:
    said = dict(getattr(case, name))
    said["a"], said["b"] = said["b"], said["a"]
    return replace(case, **{name: said})


@pytest.mark.parametrize(
    "change",
    [
        lambda case: replace(case, spec=replace(case.spec, model=digest_of(b"another"))),
        lambda case: replace(case, spec=replace(case.spec, ref=replace(case.spec.ref, attempt=2))),
        lambda case: replace(case, spec=replace(case.spec, federation="hearts")),
        lambda case: replace(case, spec=replace(case.spec, terms=replace(case.spec.terms, aggregator="a"))),
        lambda case: replace(case, spec=replace(case.spec, terms=replace(case.spec.terms, bounds=(2.0,)))),
        lambda case: replace(case, rules=summation.SumRules(2, 3)),
        lambda case: replace(case, cohort=case.cohort[:-1]),
        lambda case: replace(case, survivors=case.survivors[:-1]),
        lambda case: replace(
            case,
            survivors=case.survivors[:-1],
            vectors={name: case.vectors[name] for name in case.survivors[:-1]},
        ),
        lambda case: replace(case, audit_head=b"another"),
        lambda case: replace(case, consents=dict(list(case.consents.items())[:3])),
        lambda case: _swapped(case, "adverts"),
        lambda case: _swapped(case, "shares"),
        lambda case: _swapped(case, "headers"),
        lambda case: _swapped(case, "consents"),
    ],
)
def test_what_a_director_changes_in_a_case_does_not_fit(relay, change):
    with pytest.raises(FederationError):
        tried(change(relay.case), AGGREGATOR, cast().roster, KEY)


def test_a_case_with_a_site_that_the_aggregators_own_roster_does_not_have_is_refused(relay):
    known = cast().roster
    without = Roster(known.federation, tuple(entry for entry in known.entries if entry.name != "a"))
    with pytest.raises(SumRefusedError, match="a is not in the roster"):
        tried(relay.case, AGGREGATOR, without, KEY)


def test_an_unmasking_that_is_not_its_sites_is_left_out_and_said(relay):
    name, other = EnvoyName("a"), EnvoyName("b")
    changed = relay.case.unmaskings | {name: relay.case.unmaskings[other]}
    held = tried(replace(relay.case, unmaskings=changed), AGGREGATOR, cast().roster, KEY)
    assert list(held.spoilt) == [name]
    assert np.array_equal(summed(relay, held), summed(relay))


def test_too_few_unmaskings_open_nothing(relay):
    few = {name: relay.case.unmaskings[name] for name in ("a", "b")}
    with pytest.raises(SumAbortedError):
        tried(replace(relay.case, unmaskings=few), AGGREGATOR, cast().roster, KEY)


def test_a_site_that_seals_another_vector_than_it_signed_for_is_named(outcome, relay):
    assert outcome.opened is not None
    name = EnvoyName("b")
    raw = outcome.vectors[name].copy()
    raw[7] += 1
    sealer = Sealer(vector_binding(outcome.opened.cohort, name), seal_key(cast().roster, AGGREGATOR), os.urandom)
    stream = b"".join(sealer.stream(lambda start, end: raw.tobytes()[start:end]))
    with pytest.raises(BadShareError, match="b sealed another") as caught:
        summed(Relay(relay.case, relay.streams | {name: stream}))
    assert caught.value.site == name


@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: s + b"x", lambda s: s[:500] + bytes([s[500] ^ 1]) + s[501:]]
)
def test_a_stream_that_the_director_cut_or_changed_does_not_open(relay, change):
    name = EnvoyName("b")
    with pytest.raises(MalformedMessageError, match="b: "):
        summed(Relay(relay.case, relay.streams | {name: change(relay.streams[name])}))


def test_the_streams_of_two_sites_cannot_be_exchanged(relay):
    a, b = EnvoyName("a"), EnvoyName("b")
    with pytest.raises(MalformedMessageError):
        summed(Relay(relay.case, relay.streams | {a: relay.streams[b], b: relay.streams[a]}))


def test_a_total_counts_with_the_aggregators_signature_for_this_very_sum_alone(outcome, relay):
    opened, roster = outcome.opened, cast().roster
    assert opened is not None
    total = digest_of(summed(relay).tobytes())
    signature = sign_total(opened, total, identity_of(AGGREGATOR).sign)
    check_total(opened, total, signature, roster)
    for other, digest, by in (
        (opened, digest_of(b"another total"), AGGREGATOR),
        (replace(opened, evidence=b"other consents"), total, AGGREGATOR),
        (opened, total, "a"),
    ):
        forged = signature if by == AGGREGATOR else sign_total(opened, total, identity_of(by).sign)
        with pytest.raises(SumRefusedError, match="not signed by university"):
            check_total(other, digest, forged, roster)


def test_what_is_sealed_to_an_identity_its_owner_opens():
    for name in SITES:
        identity = identity_of(name)
        roster = Roster("lungs", (RosterEntry(EnvoyName(name), "H", public_bytes(identity.public_key())),))
        public = seal_key(roster, EnvoyName(name))
        assert opening_key(identity).public_key().public_bytes_raw() == public
        box = sealing.seal(Suite.X25519, public, b"shares", b"info")
        assert sealing.open_box(Suite.X25519, opening_key(identity), box, b"info") == b"shares"


def test_nothing_is_sealed_to_a_name_that_the_site_has_not_accepted():
    with pytest.raises(IdentityError, match="envoy roster fetch"):
        seal_key(cast().roster, EnvoyName("stranger"))


def test_a_sum_that_the_director_opens_has_nothing_to_seal():
    given = {EnvoyName(name): Contribution(np.zeros(4, np.float32), 1) for name in SITES}
    opened = Network(cast(), spec_for((4,), 5), given).run().opened
    assert opened is not None
    with pytest.raises(ValueError, match="summed by the director"):
        vector_binding(opened.cohort, EnvoyName("a"))
