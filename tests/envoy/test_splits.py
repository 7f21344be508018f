import math

import pytest
from fedveil.envoy.splits import GivenSplits, Split, SplitRule, assign, split_named
from fedveil.utils.errors import DatasetError
from hypothesis import given, settings
from hypothesis import strategies as st

groups = st.lists(st.text(max_size=5), max_size=30)
rules = st.builds(
    lambda train, share, seed, given: SplitRule(train, (1 - train) * share, (1 - train) * (1 - share), seed, given),
    st.floats(0.1, 1),
    st.floats(0, 1),
    st.integers(0, 5),
    st.sampled_from(GivenSplits),
)


@given(groups, rules)
def test_all_examples_of_a_patient_are_in_one_split(patients, rule):
    splits = assign("xrays", [(patient, None) for patient in patients], rule)
    assert len(set(zip(patients, splits, strict=True))) == len(set(patients))


@given(groups, groups, rules)
def test_examples_added_later_move_no_other(before, later, rule):
    first = assign("xrays", [(group, None) for group in before], rule)
    both = assign("xrays", [(group, None) for group in later + before], rule)
    assert both[len(later) :] == first


@given(st.lists(st.tuples(st.text(max_size=3), st.sampled_from(Split)), max_size=30), rules)
def test_a_given_test_part_is_kept_and_never_trained_on(examples, rule):
    splits = assign("xrays", examples, rule)
    tests = [split for (_, came), split in zip(examples, splits, strict=True) if came is Split.TEST]
    others = [split for (_, came), split in zip(examples, splits, strict=True) if came is not Split.TEST]
    if rule.given is not GivenSplits.IGNORE and tests:
        assert set(tests) == {Split.TEST}
        assert Split.TEST not in others


@settings(deadline=None)
@given(st.integers(0, 20))
def test_shares_come_out_as_asked(seed):
    splits = assign("xrays", [(str(n), None) for n in range(4000)], SplitRule(0.7, 0.2, 0.1, seed))
    for split, share in zip(Split, (0.7, 0.2, 0.1), strict=True):
        assert splits.count(split) == pytest.approx(4000 * share, abs=6 * math.sqrt(4000 * share * (1 - share)))


def test_given_parts_stay_and_a_missing_validation_part_comes_out_of_training():
    examples = [(str(n), Split.TRAIN) for n in range(400)] + [("t", Split.TEST)]
    splits = assign("xrays", examples, SplitRule())
    assert splits[-1] is Split.TEST
    assert splits.count(Split.TEST) == 1
    assert splits.count(Split.VALIDATION) == pytest.approx(400 / 9, abs=25)  # 0.1 of 0.8 + 0.1


def test_complete_given_parts_are_kept_as_they_are():
    examples = [("a", Split.TRAIN), ("b", Split.VALIDATION), ("c", Split.TEST), ("d", Split.VALIDATION)]
    assert assign("xrays", examples, SplitRule()) == [split for _, split in examples]


def test_a_split_is_the_same_on_every_machine():
    splits = assign("xrays", [(f"person{n}", None) for n in range(8)], SplitRule(0.5, 0.25, 0.25, seed=3))
    # SHA-256 of ["xrays",3,"person0"] is 0.168 of the way: below 0.25 is test, below 0.5 validation
    assert [int(split) for split in splits] == [2, 0, 0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.2), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (math.nan, 0.5, 0.5)])
def test_shares_that_are_no_shares_are_refused(shares):
    with pytest.raises(DatasetError, match="train"):
        SplitRule(*shares)


def test_words_for_splits():
    assert [split_named(word) for word in ("Train", "val", "testing", "0", "other")] == [0, 1, 2, 0, None]
