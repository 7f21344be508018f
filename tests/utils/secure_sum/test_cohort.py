"""The transcript is another one whenever anything is; what is derived from it fits nowhere else."""

from dataclasses import replace

import pytest
from fedveil.utils.errors import ConfigError, SumRefusedError
from fedveil.utils.messages import PayloadKind, Task, TaskKind
from fedveil.utils.secure_sum import encoding
from fedveil.utils.secure_sum.cohort import cohort_of, framed
from fedveil.utils.secure_sum.participant import advertise
from fedveil.utils.secure_sum.rehearsal import FEDERATION, cast_of, drawn, spec_for
from fedveil.utils.secure_sum.rules import Promises
from fedveil.utils.secure_sum.signed import Kind, check_signed, signed, to_be_signed
from fedveil.utils.secure_sum.spec import SumSpec, rounding_key, spec_of
from fedveil.utils.secure_sum.statements import CohortCall
from fedveil.utils.secure_sum.terms import Suite, SumTerms
from fedveil.utils.tensors import digest_of
from hypothesis import given
from hypothesis import strategies as st

CAST = cast_of([f"site-{place:02d}" for place in range(9)])
SPEC = spec_for((4, 2), 9)


def call(spec=SPEC, threshold=7, seed=b"", names=CAST.names):
    adverts = []
    for name in names:
        random = drawn(seed + name.encode())
        _, said = advertise(CAST.sites[name], spec, (), Promises(spec.ref.run), random)
        adverts.append(encoding.decode(said))
    return CohortCall(tuple(adverts), threshold)


def transcript(spec=SPEC, **changes):
    return cohort_of(spec, CAST.roster, call(spec, **changes)).transcript


def test_the_transcript_is_the_same_for_whoever_was_told_the_same():
    assert transcript() == transcript()


def test_whatever_differs_gives_another_transcript():
    ref = SPEC.ref
    others = [
        transcript(threshold=8),
        transcript(seed=b"other keys of the sites"),
        transcript(names=CAST.names[:8]),
        transcript(replace(SPEC, federation="other")),
        transcript(replace(SPEC, ref=replace(ref, run="another-run"))),
        transcript(replace(SPEC, ref=replace(ref, round=2))),
        transcript(replace(SPEC, ref=replace(ref, attempt=2))),
        transcript(replace(SPEC, ref=replace(ref, plan=digest_of(b"x")))),
        transcript(replace(SPEC, kind=TaskKind.EVALUATE)),
        transcript(replace(SPEC, model=digest_of(b"x"))),
        transcript(replace(SPEC, layout=digest_of(b"x"))),
        transcript(replace(SPEC, codec=digest_of(b"x"))),
        transcript(replace(SPEC, sizes=(2, 4))),
        transcript(replace(SPEC, contributors=10)),
        transcript(replace(SPEC, terms=replace(SPEC.terms, bounds=(1.5,)))),
        transcript(replace(SPEC, terms=replace(SPEC.terms, max_weight=999))),
        transcript(replace(SPEC, terms=replace(SPEC.terms, aggregator="site-01"))),
        transcript(replace(SPEC, terms=replace(SPEC.terms, histogram=True))),
        transcript(replace(SPEC, terms=replace(SPEC.terms, max_weight=1, equal_weights=True))),
    ]
    assert len({transcript(), *others}) == 1 + len(others)


def test_keys_commitments_and_boxes_of_another_sum_purpose_or_pair_are_others():
    one = cohort_of(SPEC, CAST.roster, call())
    two = cohort_of(SPEC, CAST.roster, call(threshold=8))
    secret, (a, b, c) = b"s" * 32, CAST.names[:3]
    made = [
        *(cohort.self_mask(secret, name) for cohort in (one, two) for name in (a, b)),
        *(cohort.pair_mask(secret, *pair) for cohort in (one, two) for pair in ((a, b), (a, c), (b, c))),
        *(cohort.commitment(secret, label, a) for cohort in (one, two) for label in ("mask secret", "self secret")),
        *(
            cohort.box_info(label, x, y)
            for cohort in (one, two)
            for label in ("shares", "pair seed")
            for x, y in ((a, b), (b, a))
        ),
    ]
    assert len(set(made)) == len(made)
    assert one.pair_mask(secret, a, b) == one.pair_mask(secret, b, a)


def test_of_two_sites_one_deals_the_seed_and_each_deals_about_half_of_its_own():
    cohort = cohort_of(SPEC, CAST.roster, call())
    for one in cohort.names:
        assert not cohort.deals(one, one)
        assert all(cohort.deals(one, o) != cohort.deals(o, one) for o in cohort.names if o != one)
        assert sum(cohort.deals(one, other) for other in cohort.names) == 4


@given(st.lists(st.binary(max_size=12), max_size=4), st.lists(st.binary(max_size=12), max_size=4))
def test_no_two_lists_of_parts_are_framed_alike(one, other):
    assert (framed(*one) == framed(*other)) == (one == other)


@given(st.sampled_from(Kind), st.sampled_from(Kind), st.binary(max_size=40), st.binary(max_size=40))
def test_no_statement_passes_for_another(kind, other, body, another):
    assert (to_be_signed(kind, body) == to_be_signed(other, another)) == ((kind, body) == (other, another))


def test_a_statement_is_checked_against_the_key_that_the_roster_has():
    site = CAST.sites["site-00"]
    statement = signed("site-00", Kind.MASKED, b"body", site.sign)
    assert check_signed(statement, Kind.MASKED, CAST.roster) == b"body"
    for wrong in (
        replace(statement, body=b"other"),
        replace(statement, by="site-01"),
        replace(statement, by="stranger"),
        replace(statement, signature=bytes(64)),
        replace(statement, kind=Kind.CONSENT),
    ):
        with pytest.raises(SumRefusedError):
            check_signed(wrong, wrong.kind, CAST.roster)
    with pytest.raises(SumRefusedError, match="expected consent"):
        check_signed(statement, Kind.CONSENT, CAST.roster)


def test_the_spec_of_a_task_takes_all_that_matters_from_it():
    task = Task(
        ref=SPEC.ref,
        kind=TaskKind.TRAIN,
        model=SPEC.model,
        model_bytes=10,
        layout=SPEC.layout,
        seed=bytes(32),
        seconds_left=5.0,
        min_participants=3,
        cohort=CAST.names,
        payload=PayloadKind.PLAIN,
        sum=SPEC.terms,
    )
    spec = spec_of(FEDERATION, task, (4, 2))
    assert spec == replace(SPEC, orders=spec.orders)
    assert spec_of(FEDERATION, replace(task, seconds_left=1.0), (4, 2)).digest == spec.digest
    assert spec_of(FEDERATION, replace(task, kind=TaskKind.EVALUATE), (4, 2)).sizes == ()
    with pytest.raises(ConfigError, match="asks for no secure sum"):
        spec_of(FEDERATION, replace(task, sum=None), (4, 2))


def test_a_spec_with_bounds_that_fit_no_tensors_or_of_nobody_is_refused():
    with pytest.raises(ConfigError, match="3 clip bounds for 2 tensors"):
        replace(SPEC, terms=SumTerms(suite=Suite.X25519, bounds=(1.0, 2.0, 3.0)))
    with pytest.raises(ConfigError, match="0 envoys"):
        replace(SPEC, contributors=0)
    assert SPEC.bounds == (1.0, 1.0)
    assert isinstance(SPEC, SumSpec)


def test_the_rounding_follows_from_seed_run_and_round_and_not_from_the_attempt():
    ref = SPEC.ref
    key = rounding_key(bytes(32), ref)
    assert rounding_key(bytes(32), replace(ref, attempt=2)) == key
    others = {
        rounding_key(b"1" * 32, ref),
        rounding_key(bytes(32), replace(ref, round=2)),
        rounding_key(bytes(32), replace(ref, run="other")),
    }
    assert len(others | {key}) == 4
