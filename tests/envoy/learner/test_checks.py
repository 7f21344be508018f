"""A submission is checked at the site, and every fault is named: the layer, the number, the rule."""

import numpy as np
import pytest
from fedveil.envoy.gate import Outcome
from fedveil.envoy.learner.checks import CHECKS, Bounds, PrivacySituation, validated
from fedveil.envoy.learner.named_update import as_vector, by_name
from fedveil.envoy.policy import OPEN_POLICY, ProtectionPolicy, Step
from fedveil.envoy.privacy_books import Book, Budget, Spending
from fedveil.utils.errors import ConfigError, LayoutMismatchError
from fedveil.utils.messages import RunId, TaskKind, TaskRef
from fedveil.utils.privacy.events import Gaussian, Release
from fedveil.utils.privacy.values import Unit
from fedveil.utils.tensors import Layout, Role, digest_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

LAYOUT = Layout.of([("w", (2, 3), Role.PARAMETER), ("b", (3,), Role.PARAMETER), ("mean", (), Role.BUFFER)])
GOOD = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32), "mean": np.array(2, np.float32)}
SAFE = PrivacySituation(OPEN_POLICY, None, None, cohort=4, organizations=3, is_summed=True, may_be_plain=False)
UNBOUNDED = Bounds()
AUDITED = ProtectionPolicy((Step.CHECK, Step.AUDIT), max_leakage=0.1)
REF = TaskRef(RunId("study-1"), 1, 1, digest_of(b"plan"))


def report(gradients=GOOD, checks=CHECKS, bounds=UNBOUNDED, situation=SAFE):
    return validated(gradients, LAYOUT, checks, bounds, situation)


def spent(noise):
    release = Release(Gaussian(noise), Unit.SITE)
    row = Spending(1, 0.0, REF, TaskKind.TRAIN, (release,), is_bare=False)
    return Book("xrays", Budget(1.0, 1e-5, Unit.SITE), (row,))


def test_a_good_submission_is_true_and_says_how_large_each_layer_is():
    found = report()
    assert found
    assert {one.name: (one.l2, one.largest) for one in found.layers} == {
        "w": (pytest.approx(6**0.5), 1.0),
        "b": (0.0, 0.0),
        "mean": (2.0, 2.0),
    }
    assert "passed" in str(found)


@given(npst.arrays(np.float32, LAYOUT.size, elements=st.floats(-1e3, 1e3, width=32)))
def test_arrays_by_name_and_the_vector_are_the_same_numbers(vector):
    np.testing.assert_array_equal(as_vector(LAYOUT, by_name(LAYOUT, vector)), vector)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": None}, "w is missing"),
        ({"w": np.ones((3, 2), np.float32)}, r"w is float32 \(3, 2\), expected float32 \(2, 3\)"),
        ({"w": np.ones((2, 3), np.float64)}, "w is float64"),
        ({"b": [0.0, 0.0, 0.0]}, "b is list"),
        ({"other": np.zeros(1, np.float32)}, "other is no tensor of this plan"),
    ],
)
def test_what_is_not_as_the_plan_says_is_named_and_is_no_vector(changes, message):
    gradients = {name: one for name, one in {**GOOD, **changes}.items() if one is not None}
    found = report(gradients, ["bounds_check"])
    assert not found
    with pytest.raises(LayoutMismatchError, match=message):
        as_vector(LAYOUT, gradients)
    assert any(np.any([word in one.what for word in ("missing", "expected", "no tensor")]) for one in found.failures)


def test_nothing_but_a_mapping_of_arrays_is_a_submission():
    assert "expected arrays by name" in str(report([1.0], ["bounds_check"]))


def test_zeros_and_norms_beyond_float32_are_no_update():
    zeros = {name: np.zeros_like(one) for name, one in GOOD.items()}
    assert "all zeros" in str(report(zeros, ["bounds_check"]))
    huge = GOOD | {"w": np.full((2, 3), 3e38, np.float32)}
    assert "norm is beyond" in str(report(huge, ["bounds_check"]))


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_what_is_no_number_is_named_with_its_layer(value, word):
    bad = np.zeros(3, np.float32)
    bad[1] = value
    found = report(GOOD | {"b": bad}, ["nan_check"])
    assert [one.what for one in found.failures] == [f"b holds {word} in 1 of 3 numbers"]


def test_denormal_numbers_are_named_and_stop_nothing():
    found = report(GOOD | {"b": np.full(3, 1e-40, np.float32)}, ["nan_check"])
    assert found
    assert "b holds denormal numbers" in found.notes[0].what


def test_what_the_site_or_the_sum_will_cut_is_said_and_stops_nothing():
    found = report(bounds=Bounds(max_norm=1.0, clip=(0.5,)), checks=["bounds_check"])
    assert found
    assert ["clips it to 1" in found.notes[0].what, "w reaches 1" in found.notes[1].what] == [True, True]
    assert len(report(bounds=Bounds(clip=(0.5, 9.0, 9.0)), checks=["bounds_check"]).notes) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": None}, "no \\[protection\\] table"),
        ({"policy": AUDITED}, "was not made yet"),
        ({"policy": AUDITED, "leak_test": Outcome(0.5, "", 1.0)}, "shows public images"),
        ({"policy": AUDITED, "leak_test": Outcome(None, "x", 1.0)}, "cannot be measured"),
        ({"cohort": 2}, "2 sites are summed, this site asks for 3"),
        ({"is_summed": False}, "takes part in secure sums alone"),
        ({"book": spent(0.5)}, "of data set xrays is spent"),
    ],
)
def test_each_rule_of_the_sites_privacy_is_asked(changes, message):
    values = {name: getattr(SAFE, name) for name in SAFE.__slots__} | changes
    found = report(checks=["privacy_check"], situation=PrivacySituation(**values))
    assert not found
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(str(found))


def test_within_the_leak_tests_limit_and_the_budget_all_is_well():
    values = {name: getattr(SAFE, name) for name in SAFE.__slots__}
    values |= {"policy": AUDITED, "leak_test": Outcome(0.05, "", 1.0), "book": spent(20.0)}
    assert report(checks=["privacy_check"], situation=PrivacySituation(**values))


@pytest.mark.parametrize("checks", [["bound_check"], [], ["nan_check", 3], "leak_check"])
def test_a_check_that_there_is_not_is_refused(checks):
    with pytest.raises(ConfigError, match="bounds_check, nan_check, privacy_check"):
        report(checks=checks)


def test_only_what_was_asked_is_checked():
    bad = GOOD | {"b": np.full(3, np.nan, np.float32)}
    assert report(bad, ["privacy_check"])
    assert not report(bad, "nan_check")
