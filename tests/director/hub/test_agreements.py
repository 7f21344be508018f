"""What organizations agreed to decides who may start and publish what, and until when."""

from dataclasses import replace

import pytest
from fedveil.director.hub.agreements import (
    Agreement,
    Collaboration,
    Kind,
    Permit,
    check_may_publish,
    check_may_start,
    in_force,
)
from fedveil.utils.errors import AgreementError, ConfigError
from hypothesis import given
from hypothesis import strategies as st

ORGANIZATIONS = frozenset({"north", "south", "west"})
PERMIT = Permit("MEC-2026-7", "the ethics board", "pneumonia", 100.0, 200.0, frozenset({"x-rays"}))
LUNGS = Collaboration("c1", "lungs", ORGANIZATIONS, PERMIT)
SIGNED = dict.fromkeys(ORGANIZATIONS, 50.0)
CONSORTIUM = Agreement(
    "a1", Kind.CONSORTIUM, 1, "ab" * 32, ORGANIZATIONS, "c1", 100.0,
    may_start_tasks=frozenset({"north"}), may_publish=frozenset({"south"}), signed=SIGNED,
)  # fmt: skip
PROCESSING = Agreement("a2", Kind.DATA_PROCESSING, 1, "cd" * 32, ORGANIZATIONS, "c1", 100.0, signed=SIGNED)
INFRASTRUCTURE = tuple(
    Agreement(f"i-{one}", Kind.INFRASTRUCTURE_USER, 1, "ef" * 32, frozenset({one}), None, 0.0, signed={one: 1.0})
    for one in sorted(ORGANIZATIONS)
)
ALL = (CONSORTIUM, PROCESSING, *INFRASTRUCTURE)


def start(agreements=ALL, organization="north", dataset="x-rays", now=150.0, needs=True):
    return check_may_start(LUNGS, agreements, organization, dataset, now, needs_infrastructure_user=needs)


def test_with_permit_and_all_agreements_a_task_may_start_and_which_of_data_applies_is_said():
    assert start() is PROCESSING
    joint = replace(PROCESSING, kind=Kind.JOINT_CONTROLLER)
    assert start((CONSORTIUM, joint, *INFRASTRUCTURE)) is joint


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"organization": "east"}, "not part of"),
        ({"now": 99.0}, "holds from"),
        ({"now": 200.0}, "ended on"),
        ({"dataset": "bones"}, "does not name dataset bones"),
        ({"agreements": ALL[:-1]}, "west has no infrastructure-user"),
        ({"agreements": ALL[1:]}, "no consortium agreement"),
        ({"organization": "south"}, "south may not start tasks"),
        ({"agreements": (CONSORTIUM, *INFRASTRUCTURE)}, "neither a data-processing"),
        ({"agreements": (*ALL, replace(PROCESSING, kind=Kind.JOINT_CONTROLLER))}, "both a data-processing"),
    ],
)
def test_whatever_is_missing_is_named(change, why):
    with pytest.raises(AgreementError, match=why):
        start(**change)


def test_a_federation_that_does_not_ask_for_infrastructure_user_agreements_needs_none():
    assert start((CONSORTIUM, PROCESSING), needs=False) is PROCESSING


def test_a_version_that_is_not_signed_by_all_leaves_the_one_before_it_in_force():
    later = replace(CONSORTIUM, version=2, may_start_tasks=frozenset({"west"}), signed={"north": 120.0})
    assert start((later, *ALL)) is PROCESSING
    whole = replace(later, signed=dict.fromkeys(ORGANIZATIONS, 120.0))
    with pytest.raises(AgreementError, match="north may not start tasks by version 2"):
        start((whole, *ALL))
    assert start((whole, *ALL), organization="west")


def test_only_whom_the_consortium_names_may_publish():
    assert check_may_publish(LUNGS, ALL, "south", 150.0) is CONSORTIUM
    with pytest.raises(AgreementError, match="north may not publish"):
        check_may_publish(LUNGS, ALL, "north", 150.0)
    with pytest.raises(AgreementError, match="no consortium"):
        check_may_publish(LUNGS, ALL, "south", 99.0)


@given(st.floats(0, 300), st.frozensets(st.sampled_from(sorted(ORGANIZATIONS))), st.none() | st.floats(101, 300))
def test_an_agreement_is_in_force_exactly_while_all_signed_it_and_it_lasts(now, signers, until):
    one = replace(PROCESSING, signed=dict.fromkeys(signers, 1.0), valid_until=until)
    expected = signers == ORGANIZATIONS and now >= 100 and (until is None or now < until)
    assert (in_force([one], Kind.DATA_PROCESSING, "c1", now) is one) is expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"parties": frozenset()},
        {"collaboration": None},
        {"may_start_tasks": frozenset({"east"})},
        {"kind": Kind.DATA_PROCESSING},
        {"signed": {"east": 1.0}},
        {"valid_until": 100.0},
    ],
)
def test_an_agreement_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ConfigError):
        replace(CONSORTIUM, **wrong)


def test_a_permit_without_time_or_datasets_is_refused():
    with pytest.raises(ConfigError, match="ends before it begins"):
        replace(PERMIT, ends_at=100.0)
    with pytest.raises(ConfigError, match="no dataset"):
        replace(PERMIT, datasets=frozenset())
