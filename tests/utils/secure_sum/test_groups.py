"""Groups of a run are fixed, large enough and whole; and one bad group does not decide."""

import os
from collections import Counter

import numpy as np
import pytest
from fedveil.utils.aggregation import Aggregation, Method, aggregate
from fedveil.utils.errors import ConfigError, SumRefusedError
from fedveil.utils.secure_sum import participant, summation
from fedveil.utils.secure_sum.groups import Groups, groups_of
from fedveil.utils.secure_sum.rehearsal import Contribution, Network, cast_of, spec_for
from fedveil.utils.secure_sum.rules import Promises, SumFloors
from fedveil.utils.secure_sum.terms import Suite, SumTerms
from fedveil.utils.tensors import Layout, Role
from hypothesis import given
from hypothesis import strategies as st

FLOORS = SumFloors(suites=tuple(Suite))
SEED = bytes(32)
NAMES = [f"site-{place:02d}" for place in range(15)]
ROSTER = cast_of(NAMES).roster


@given(st.integers(3, 5), st.binary(min_size=32, max_size=32))
def test_groups_are_even_hold_everybody_once_and_follow_from_roster_and_seed(count, seed):
    groups = groups_of(ROSTER, seed, count, FLOORS)
    sizes = Counter(map(len, groups.groups))
    assert set(sizes) <= {15 // count, 15 // count + 1}
    assert sorted(name for group in groups.groups for name in group) == NAMES
    assert groups == groups_of(ROSTER, seed, count, FLOORS)


def test_another_seed_draws_other_groups():
    assert len({groups_of(ROSTER, bytes([place]) * 32, 3, FLOORS) for place in range(20)}) == 20


@given(st.lists(st.integers(0, 8), min_size=15, max_size=15))
def test_an_organization_is_in_one_group_alone(places):
    places[:9] = range(9)
    owners = {name: f"org-{place}" for name, place in zip(NAMES, places, strict=True)}
    roster = cast_of(NAMES, owners).roster
    try:
        groups = groups_of(roster, SEED, 3, FLOORS)
    except ConfigError:
        return
    homes = {(owners[name], place) for place, group in enumerate(groups.groups) for name in group}
    assert len(homes) == 9
    assert Counter(place for _, place in homes) == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("count", [1, 2, 6, 15])
def test_too_few_groups_or_groups_too_small_are_refused(count):
    with pytest.raises(ConfigError):
        groups_of(ROSTER, SEED, count, FLOORS)
    with pytest.raises(ConfigError, match="one would have 4 organizations, expected 5 at least"):
        groups_of(ROSTER, SEED, 4, SumFloors(min_organizations=5))


def test_an_envoy_is_in_one_group():
    with pytest.raises(ConfigError, match="in two groups"):
        Groups((("a",), ("b",), ("a", "c")))


def test_a_group_with_too_few_organizations_there_is_not_asked():
    groups = groups_of(ROSTER, SEED, 3, FLOORS)
    first, second, third = groups.groups
    able = groups.askable({*first, *second[:3], *third[:2], "stranger"}, ROSTER, FLOORS)
    assert able == {1: frozenset(first), 2: frozenset(second[:3])}


def terms(group):
    return SumTerms(suite=Suite.X25519, bounds=(1.0,), max_weight=1000, group=group)


def test_a_sum_is_bound_to_its_group_and_without_groups_to_what_it_always_was():
    digests = {group: spec_for((6,), 3, terms(group)).digest for group in (0, 1, 2)}
    assert len(set(digests.values())) == 3
    assert digests[0] == spec_for((6,), 3).digest


class Cohort:
    """The sites of one group of one attempt, as a director that obeys no rule puts them together."""

    def __init__(self, cast, names, group, promises, **where):
        self.spec = spec_for((6,), len(names), terms(group), **where)
        self.names, self.cast, self.promises = sorted(names), cast, promises
        self.states = {}

    def called(self):
        """The cohort's call, once all have advertised."""
        gathering = summation.begin(self.spec, self.cast.roster)
        for name in self.names:
            known = self.promises.get(name, Promises(self.spec.ref.run))
            self.states[name], said = participant.advertise(self.cast.sites[name], self.spec, (), known, os.urandom)
            self.promises[name] = self.states[name].promises
            gathering = summation.take(gathering, name, said)
        return summation.close_cohort(gathering)[1]

    def shared(self, name, items):
        """One of them shares."""
        shared, _ = participant.share(self.states[name], items[name], self.promises[name], os.urandom)
        self.promises[name] = shared.promises
        return shared


def test_a_director_that_puts_a_site_into_two_groups_of_one_round_is_refused():
    """In the same attempt, in another one, and in another round: one update is in one sum, and groups stay."""
    cast, promises = cast_of(NAMES[:6]), {}
    me, first, second = NAMES[0], NAMES[:3], [NAMES[0], *NAMES[3:6]]
    one = Cohort(cast, first, 1, promises)
    one.shared(me, one.called())
    with pytest.raises(SumRefusedError, match="already shared its secrets"):
        Cohort(cast, second, 2, promises).called()
    for where in ({"attempt": 2}, {"round_number": 2}):
        two = Cohort(cast, second, 2, promises, **where)
        with pytest.raises(SumRefusedError, match="was in group 1 in round 1 and is asked to be in group 2 now"):
            two.shared(me, two.called())
    three = Cohort(cast, NAMES[:4], 0, promises, round_number=3)
    with pytest.raises(SumRefusedError, match="is asked to be in no group now"):
        three.shared(me, three.called())
    again = Cohort(cast, first, 1, promises, round_number=4)
    again.shared(me, again.called())


def test_a_promise_made_in_no_group_is_read_as_one():
    cast, promises = cast_of(NAMES[:3]), {}
    one = Cohort(cast, NAMES[:3], 2, promises)
    one.shared(NAMES[0], one.called())
    (kept,) = promises[NAMES[0]].records
    assert kept.group == 2
    assert type(kept).from_json(kept.to_json()) == kept
    before = kept.to_json().replace('"group":2,', "")
    assert type(kept).from_json(before).group == 0


class Mean:
    """A group's, to a rule."""

    def __init__(self, number, vector):
        self.envoy, self.num_examples, self.vector = f"group-{number}", 10, vector

    def read(self, start, out):
        out[:] = self.vector[start : start + out.size]


@pytest.mark.parametrize(
    "rule", [Aggregation(Method.COORDINATE_MEDIAN), Aggregation(Method.TRIMMED_MEAN, trim_fraction=0.34)]
)
def test_a_site_that_sends_huge_numbers_spoils_its_own_group_alone(rule):
    """Fifteen sites in three groups, each summed under masks; one site sends the largest numbers that it may."""
    groups = groups_of(ROSTER, SEED, 3, FLOORS)
    bad, means = NAMES[4], []
    for number, group in enumerate(groups.groups, 1):
        cast = cast_of(group)
        given_by = {name: Contribution(np.full(6, 1.0 if name == bad else 0.01, np.float32), 10) for name in cast.names}
        means.append(Mean(number, Network(cast, spec_for((6,), len(group), terms(number)), given_by).run().mean))
    out = np.empty(6, np.float32)
    aggregate(rule, Layout.of([("w", (6,), Role.PARAMETER)]), means, out)
    assert np.allclose(out, 0.01, atol=1e-6)
    assert max(mean.vector.max() for mean in means) > 0.2
