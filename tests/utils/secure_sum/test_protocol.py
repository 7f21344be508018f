"""A secure sum is the sum, bit for bit; nothing but the sum is said; and what is said twice counts once."""

import dataclasses

import numpy as np
import pytest
from fedveil.utils.errors import DuplicateUpdateError, MalformedMessageError, NotInvitedError, ProtocolError
from fedveil.utils.messages import TaskKind
from fedveil.utils.metrics import mean_of
from fedveil.utils.secure_sum import encoding, participant, summation
from fedveil.utils.secure_sum.rehearsal import Contribution, Network, Step, cast_of, drawn, plain_total, spec_for
from fedveil.utils.secure_sum.rules import Promise, Promises
from fedveil.utils.secure_sum.terms import Suite, SumTerms
from fedveil.utils.tensors import digest_of
from hypothesis import given, settings
from hypothesis import strategies as st

SEED = bytes(32)


def weighted_mean(network, names):
    given = [network.contributions[name] for name in names]
    weight = sum(one.num_examples for one in given)
    return sum(one.payload.astype(np.float64) * one.num_examples for one in given) / weight


def is_sum_of(network, outcome, names):
    """Does the unmasked total hold exactly the integers that the sites would have summed in the clear?"""
    expected = plain_total(outcome.opened.cohort, network.contributions, names, network.seed)
    return outcome.survivors == tuple(names) and np.array_equal(outcome.total, expected)


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("count", [3, 4, 5])
def test_masked_and_unmasked_integer_sums_are_equal_bit_for_bit(network, suite, count):
    attempt = network(count, terms=SumTerms(suite=suite, bounds=(1.0, 2.0), max_weight=500))
    outcome = attempt.run()
    assert outcome.refusals == {}
    assert is_sum_of(attempt, outcome, attempt.cast.names)


def test_the_mean_is_the_weighted_mean_to_the_last_place(network):
    attempt = network(10)
    outcome = attempt.run()
    step = 1.0 / (1 << 30) * attempt.spec.max_total / outcome.tallies.num_examples
    clipped = {n: dataclasses.replace(c, payload=np.clip(c.payload, -1, 1)) for n, c in attempt.contributions.items()}
    expected = weighted_mean(dataclasses.replace(attempt, contributions=clipped), attempt.cast.names)
    assert np.abs(outcome.mean - expected).max() <= 10 * step + 1e-7


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), max_size=4).map(tuple),
    count=st.integers(3, 6),
    seed=st.binary(min_size=32, max_size=32),
    part=st.integers(1, 64),
)
def test_any_sizes_and_any_parts_give_the_sum_of_the_integers(sizes, count, seed, part):
    cast, rng = cast_of([f"s{i}" for i in range(count)]), np.random.default_rng(seed[0])
    given_by = {n: Contribution(rng.normal(0, 1, sum(sizes)).astype(np.float32), 9) for n in cast.names}
    attempt = Network(cast, spec_for(sizes, count), given_by, seed=seed)
    outcome = attempt.run()
    assert is_sum_of(attempt, outcome, cast.names)
    ready = ready_states(attempt)
    name = cast.names[0]
    whole = np.concatenate([p.copy() for p in participant.stream(ready[name], given_by[name].payload, 9, (), seed)])
    for start in {0, 1, whole.size // 2, whole.size}:
        parts = participant.stream(ready[name], given_by[name].payload, 9, (), seed, start, part)
        rest = [one.copy() for one in parts]
        assert all(one.size <= part for one in rest)
        assert np.array_equal(np.concatenate([np.zeros(0, np.uint32), *rest]), whole[start:])


def ready_states(attempt):
    """Every site just before its vector leaves."""
    promises = Promises(attempt.spec.ref.run)
    random = {n: drawn(n.encode()) for n in attempt.cast.names}
    stage = summation.begin(attempt.spec, attempt.cast.roster)
    states = {}
    for name, site in attempt.cast.sites.items():
        states[name], said = participant.advertise(site, attempt.spec, (), promises, random[name])
        stage = summation.take(stage, name, said)
    stage, items = summation.close_cohort(stage)
    for name, item in items.items():
        states[name], said = participant.share(states[name], item, promises, random[name])
        stage = summation.take(stage, name, said)
    stage, items = summation.deliver(stage)
    return {name: participant.receive(states[name], item, states[name].promises) for name, item in items.items()}


def test_weights_and_metrics_come_out_as_sums_alone(network):
    outcome = network(5).run()
    assert outcome.tallies.num_examples == sum(50 + 7 * place for place in range(5))
    assert outcome.tallies.contributions == 5
    assert outcome.tallies.metrics == (mean_of("loss", 3.0 * (0 + 1 + 2 + 3 + 4), 250.0),)


def test_a_metric_that_one_site_lacks_is_in_no_sum(network):
    names = {one.name for one in network(4).run().tallies.metrics}
    assert names == {"loss"}


def test_a_site_with_more_examples_than_may_count_counts_as_many_as_may(network):
    attempt = network(4, terms=SumTerms(suite=Suite.X25519, bounds=(1.0,), max_weight=60))
    assert attempt.run().tallies.num_examples == 50 + 57 + 60 + 60


def test_bounds_that_leave_little_but_signs_let_nothing_be_announced(network):
    """Of four sites all cut, a sum is +-50 +-57 +-64 +-71 times the bound: whose sign is whose can be read off it."""
    tight = {"suite": Suite.X25519, "bounds": (1e-9,)}
    outcome = network(4, sizes=(100, 3), terms=SumTerms(max_weight=1000, **tight)).run()
    assert outcome.opened is None
    assert len(outcome.refusals) == 4
    for error in outcome.refusals.values():
        assert "tensor 0, 1e-09, cuts more than 1/64 of this site's numbers" in str(error)
    equal = SumTerms(max_weight=1, equal_weights=True, **tight)
    assert network(4, sizes=(100, 3), terms=equal).run().opened is not None


def test_every_site_rounds_a_number_by_the_same_draw(network):
    """With draws of their own, known to all, a number that only one site's draw could round up would be that site's."""
    coarse = SumTerms(suite=Suite.X25519, bounds=(2e7,), max_weight=1000)
    attempt = network(4, sizes=(3000,), terms=coarse)
    attempt.contributions.update({n: Contribution(np.ones(3000, np.float32), 10) for n in attempt.cast.names})
    total = attempt.run().total[:3000]
    assert set(np.unique(total).tolist()) == {0, 4}


def test_equal_weights_are_equal_and_say_nothing_of_metrics(network):
    terms = SumTerms(suite=Suite.X25519, bounds=(4.0,), max_weight=1, equal_weights=True)
    attempt = network(4, terms=terms)
    outcome = attempt.run()
    assert outcome.tallies.num_examples == 4
    assert outcome.tallies.metrics == ()
    mean = np.mean([one.payload for one in attempt.contributions.values()], axis=0)
    assert np.allclose(outcome.mean, mean, atol=1e-7)


def test_an_evaluation_is_a_sum_without_a_body(network):
    outcome = network(4, sizes=()).run()
    assert outcome.spec.kind is TaskKind.EVALUATE
    assert outcome.mean.size == 0
    assert outcome.tallies.metrics == (mean_of("loss", 18.0, 200.0),)


def test_a_histogram_of_norms_is_summed_from_twenty_sites_on_alone(network):
    terms = SumTerms(suite=Suite.X25519, bounds=(1.0,), max_weight=500, histogram=True)
    assert network(19, sizes=(3,), terms=terms).run().tallies.histogram == ()
    assert sum(network(20, sizes=(3,), terms=terms).run().tallies.histogram) == 20


def test_clipped_numbers_are_counted_in_the_sum_for_each_tensor(network):
    attempt = network(4, terms=SumTerms(suite=Suite.X25519, bounds=(0.25, 50.0), max_weight=500))
    outcome = attempt.run()
    first = sum(int((np.abs(one.payload[:23]) > 0.25).sum()) for one in attempt.contributions.values())
    assert outcome.tallies.clipped == (first, 0)


def test_one_payload_masked_in_two_attempts_has_no_word_in_common_and_the_same_sum(network):
    first = network(5, sizes=(2000,)).run()
    second = network(5, spec=spec_for((2000,), 5, attempt=2), sizes=(2000,), seed=SEED).run()
    assert np.array_equal(first.total, second.total)
    for name in first.survivors:
        assert np.mean(first.vectors[name] == second.vectors[name]) < 0.002


def test_no_state_shows_a_secret(network):
    attempt = network(4)
    name, site = next(iter(attempt.cast.sites.items()))
    state, _ = participant.advertise(site, attempt.spec, (), Promises(attempt.spec.ref.run), drawn(b"x"))
    ready = ready_states(attempt)[name]
    masked, _ = participant.announce(ready, digest_of(b""))
    secrets = [
        state.mask_secret,
        state.self_secret,
        *ready.plus,
        *ready.minus,
        *(s for b in ready.held.values() for s in b),
    ]
    for shown in map(repr, (state, ready, masked)):
        assert not [one for one in secrets if one.hex() in shown or repr(one)[2:-1] in shown]
        assert "PrivateKey" not in shown


def test_what_was_said_taken_again_in_its_order_leads_to_the_same_bytes(network):
    outcome = network(5, drops={"site-01": Step.MASKED}).run()
    said = {step: [(n, c) for s, n, c in outcome.upward if s is step] for step in Step}
    told = {step: {n: c for s, n, c in outcome.downward if s is step} for step in Step}

    def heard(stage, step):
        for name, content in said[step]:
            stage = summation.take(stage, name, content)
            assert summation.take(stage, name, content) is stage
        return stage

    def agrees(items, step):
        return told[step].items() <= dict(items).items()

    stage = heard(summation.begin(outcome.spec, network(5).cast.roster), Step.ADVERT)
    stage, items = summation.close_cohort(stage)
    assert agrees(items, Step.COHORT)
    stage, items = summation.deliver(heard(stage, Step.SHARES))
    assert agrees(items, Step.DELIVERY)
    stage = heard(stage, Step.MASKED)
    stage, items = summation.call_survivors(stage, stage.announced)
    assert agrees(items, Step.SURVIVORS)
    stage, items = summation.reveal(heard(stage, Step.CONSENT))
    assert agrees(items, Step.CONSENTS)
    assert summation.open_sum(heard(stage, Step.UNMASKING)) == outcome.opened


def test_a_statement_of_an_earlier_step_may_come_again_after_its_step_is_over(network):
    outcome = network(4).run()
    stage = summation.begin(outcome.spec, network(4).cast.roster)
    adverts = [(n, c) for s, n, c in outcome.upward if s is Step.ADVERT]
    for name, content in adverts:
        stage = summation.take(stage, name, content)
    stage, _ = summation.close_cohort(stage)
    assert summation.take(stage, *adverts[0]) is stage


def test_a_stranger_to_a_step_and_another_envoys_statement_are_refused(network):
    attempt = network(4)
    outcome, stage = attempt.run(), summation.begin(attempt.spec, attempt.cast.roster)
    said = {step: {n: c for s, n, c in outcome.upward if s is step} for step in (Step.ADVERT, Step.SHARES)}
    with pytest.raises(ProtocolError, match="gave a statement of site-01"):
        summation.take(stage, "site-00", said[Step.ADVERT]["site-01"])
    for name, content in said[Step.ADVERT].items():
        stage = summation.take(stage, name, content)
    stage, items = summation.close_cohort(stage, ["site-00", "site-01", "site-02"])
    assert set(items) == {"site-00", "site-01", "site-02"}
    with pytest.raises(NotInvitedError):
        summation.take(stage, "site-03", said[Step.SHARES]["site-03"])
    with pytest.raises(ProtocolError, match="came where"):
        summation.take(stage, "site-00", items["site-00"])
    with pytest.raises(MalformedMessageError):
        summation.take(stage, "site-00", b"\xff\xff")


def test_another_deal_of_the_same_site_is_a_second_answer(network):
    attempt = network(4)
    random, promises = drawn(b"a"), Promises(attempt.spec.ref.run)
    stage, states = summation.begin(attempt.spec, attempt.cast.roster), {}
    for name, site in attempt.cast.sites.items():
        states[name], said = participant.advertise(site, attempt.spec, (), promises, random)
        stage = summation.take(stage, name, said)
    stage, items = summation.close_cohort(stage)
    for _ in range(2):
        _, said = participant.share(states["site-00"], items["site-00"], promises, random)
        if "site-00" not in stage.heard:
            stage = summation.take(stage, "site-00", said)
    with pytest.raises(DuplicateUpdateError):
        summation.take(stage, "site-00", said)


def test_a_site_that_restarts_before_the_cohort_closes_advertises_once_more(network):
    attempt = network(4)
    promises, stage = Promises(attempt.spec.ref.run), summation.begin(attempt.spec, attempt.cast.roster)
    for place, (name, site) in enumerate([*attempt.cast.sites.items(), ("site-01", attempt.cast.sites["site-01"])]):
        state, said = participant.advertise(site, attempt.spec, (), promises, drawn(bytes([place])))
        stage = summation.take(stage, name, said)
    _, items = summation.close_cohort(stage)
    shared, _ = participant.share(state, items["site-01"], promises, drawn(b""))
    assert shared.cohort.names == attempt.cast.names


def test_after_any_number_of_attempts_an_advert_names_the_latest_that_fit(network):
    attempt = network(4, spec=spec_for((23, 8), 4, attempt=90))
    site = attempt.cast.sites["site-00"]
    records = tuple(Promise(1, n, bytes([n]) * 32, attempt.cast.names, 3, 1, masked=True) for n in range(1, 90))
    _, said = participant.advertise(site, attempt.spec, (), Promises(attempt.spec.ref.run, records), drawn(b""))
    given_up = encoding.read_advert(encoding.decode(said).body).given_up
    assert given_up == tuple(bytes([n]) * 32 for n in range(26, 90))
