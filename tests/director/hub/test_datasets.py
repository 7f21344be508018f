"""Datasets say a range and never a count; a task that was submitted anew leaves out what was withdrawn."""

import pytest
from fedveil.director.hub.datasets import Dataset, check_offered, withdrawn_envoys, withdrawn_since
from fedveil.utils.errors import AgreementError, ConfigError
from hypothesis import given
from hypothesis import strategies as st


def dataset(envoy="north-1", **more):
    return Dataset("1" * 24, "x-rays", "north", envoy, **more)


DATASETS = st.lists(
    st.builds(dataset, st.sampled_from("abcd"), withdrawn_at=st.none() | st.floats(0, 1e9)),
    unique_by=lambda one: one.envoy,
)


@pytest.mark.parametrize("examples", ["0-99", "100-499", ">=1000", ""])
def test_a_range_may_be_said(examples):
    assert dataset(examples=examples).examples == examples


@pytest.mark.parametrize(
    "examples", ["417", "417-417", "410-418", "500-100", "-5-20", ">=0", "<10", "many", "1e3-1e4", "1-10\n", "٣-٩٩"]
)
def test_a_count_or_what_is_as_good_as_one_is_refused(examples):
    with pytest.raises(ConfigError, match="examples"):
        dataset(examples=examples)


@pytest.mark.parametrize(
    "wrong",
    [
        {"description": "a\nb"},
        {"description": "x" * 2001},
        {"modality": "x" * 64},
        {"columns": ("age", "age")},
        {"columns": ("",)},
        {"columns": ("a\0",)},
        {"digest": "ab"},
        {"digest": "AB" * 32},
    ],
)
def test_what_says_nothing_or_too_much_is_refused(wrong):
    with pytest.raises(ConfigError):
        dataset(**wrong)


def test_a_task_that_began_before_a_withdrawal_ends_and_one_submitted_after_it_goes_on_without_the_site():
    there, gone = dataset("south-1"), dataset("north-1", withdrawn_at=100.0)
    assert "north-1 was withdrawn" in str(withdrawn_since([there, gone], 99.0))
    assert withdrawn_since([there, gone], 101.0) is None
    assert withdrawn_since([there], 0.0) is None
    assert withdrawn_envoys([there, gone]) == {"north-1"}
    check_offered([there, gone])
    check_offered([there, gone], ["south-1"])


def test_a_task_that_names_a_site_that_withdrew_it_is_refused_and_so_is_one_that_nobody_could_serve():
    there, gone = dataset("south-1"), dataset("north-1", withdrawn_at=100.0)
    with pytest.raises(AgreementError, match="name the other sites alone"):
        check_offered([there, gone], ["north-1", "south-1"])
    with pytest.raises(AgreementError, match="nobody else"):
        check_offered([gone])
    check_offered([])  # nobody described it: the sites decide


@given(DATASETS, st.sets(st.sampled_from("abcd")))
def test_a_task_is_taken_just_where_a_site_that_it_may_ask_still_offers_what_was_described(found, sites):
    gone = withdrawn_envoys(found)
    offers = {one.envoy for one in found} - gone
    try:
        check_offered(found, sites)
    except AgreementError:
        assert sites & gone or (found and not offers)
    else:
        assert not sites & gone
        assert offers or not found


@given(DATASETS, st.floats(0, 1e9))
def test_a_task_goes_on_unless_something_was_withdrawn_since_it_began(found, started_at):
    since = [one for one in found if one.withdrawn_at is not None and one.withdrawn_at >= started_at]
    assert (withdrawn_since(found, started_at) is not None) is bool(since)
