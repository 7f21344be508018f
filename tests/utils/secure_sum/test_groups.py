"""Groups of a run are fixed, large enough and whole; and one bad group does not decide."""

from collections import Counter

import numpy as np
import pytest
from fedveil.utils.errors import ConfigError, EmptyRoundError, SumRefusedError
from fedveil.utils.messages import RunId
from fedveil.utils.secure_sum.groups import Groups, Middle, check_group, cut_of, groups_of, middle
from fedveil.utils.secure_sum.rehearsal import Contribution, Network, cast_of, spec_for
from fedveil.utils.secure_sum.rules import SumFloors
from fedveil.utils.secure_sum.terms import Suite
from hypothesis import given
from hypothesis import strategies as st

FLOORS = SumFloors(suites=tuple(Suite))
RUN = RunId("lungs-1")
NAMES = [f"site-{place:02d}" for place in range(15)]
ROSTER = cast_of(NAMES).roster
numbers = st.floats(-100, 100, width=32)


@given(st.integers(3, 5), st.text("abc-1", min_size=1, max_size=8))
def test_groups_are_even_hold_everybody_once_and_follow_from_roster_and_run(count, run):
    groups = groups_of(ROSTER, RunId(run), count, FLOORS)
    sizes = Counter(map(len, groups.groups))
    assert set(sizes) <= {15 // count, 15 // count + 1}
    assert sorted(name for group in groups.groups for name in group) == NAMES
    assert groups == groups_of(ROSTER, RunId(run), count, FLOORS)


def test_another_run_has_other_groups():
    assert len({groups_of(ROSTER, RunId(f"run-{place}"), 3, FLOORS).digest for place in range(20)}) == 20


def test_an_organization_is_in_one_group_alone():
    owners = {name: f"org-{place % 9}" for place, name in enumerate(NAMES)}
    roster = cast_of(NAMES, owners).roster
    groups = groups_of(roster, RUN, 3, FLOORS)
    homes = {(owners[name], place) for place, group in enumerate(groups.groups) for name in group}
    assert len(homes) == 9


@pytest.mark.parametrize("count", [1, 2, 6, 15])
def test_too_few_groups_or_groups_too_small_are_refused(count):
    with pytest.raises(ConfigError):
        groups_of(ROSTER, RUN, count, FLOORS)
    with pytest.raises(ConfigError):
        groups_of(ROSTER, RUN, 4, SumFloors(min_organizations=5))


def test_a_cohort_beyond_the_sites_own_group_is_refused():
    groups = groups_of(ROSTER, RUN, 3, FLOORS)
    mine, other = groups.groups[0], groups.groups[1]
    check_group(groups, mine[0], mine)
    check_group(groups, mine[0], mine[:4])
    with pytest.raises(SumRefusedError, match="groups stay as they are"):
        check_group(groups, mine[0], (*mine[:4], other[0]))
    with pytest.raises(SumRefusedError, match="in no group"):
        check_group(groups, "stranger", mine)


def test_an_envoy_is_in_one_group():
    with pytest.raises(ConfigError, match="in two groups"):
        Groups((("a",), ("b",), ("a", "c")))


@given(st.data(), st.integers(3, 9), st.sampled_from(Middle))
def test_fewer_bad_groups_than_decide_leave_every_number_between_those_of_the_others(data, count, rule):
    bad = data.draw(st.integers(0, cut_of(count) if rule is Middle.TRIMMED_MEAN else (count - 1) // 2))
    honest = [np.array(data.draw(st.lists(numbers, min_size=4, max_size=4)), np.float32) for _ in range(count - bad)]
    spoiled = [np.full(4, data.draw(st.sampled_from([-1e30, 1e30, 3.0])), np.float32) for _ in range(bad)]
    out, again = np.empty(4, np.float32), np.empty(4, np.float32)
    middle([*spoiled, *honest], rule, out)
    middle([*honest, *spoiled], rule, again)
    assert np.array_equal(out, again)
    assert (out >= np.min(honest, axis=0) - 1e-4).all()
    assert (out <= np.max(honest, axis=0) + 1e-4).all()


def test_worked_numbers():
    means = [np.array([value], np.float32) for value in (5, 1, 9, 2)]
    out = np.empty(1, np.float32)
    middle(means, Middle.MEDIAN, out)
    assert out[0] == 3.5
    middle(means, Middle.TRIMMED_MEAN, out)
    assert out[0] == 3.5
    middle(means[:3], Middle.MEDIAN, out)
    assert out[0] == 5
    with pytest.raises(EmptyRoundError):
        middle(means[:2], Middle.MEDIAN, out)


def test_a_site_that_sends_huge_numbers_spoils_its_own_group_alone():
    """Fifteen sites in three groups, each summed under masks; one site sends the largest numbers that it may."""
    groups = groups_of(ROSTER, RUN, 3, FLOORS)
    bad, means = NAMES[4], []
    for group in groups.groups:
        cast = cast_of(group)
        given_by = {name: Contribution(np.full(6, 1.0 if name == bad else 0.01, np.float32), 10) for name in cast.names}
        means.append(Network(cast, spec_for((6,), len(group)), given_by).run().mean)
    out = np.empty(6, np.float32)
    middle(means, Middle.MEDIAN, out)
    assert np.allclose(out, 0.01, atol=1e-6)
    assert np.max(means) > 0.2
