"""What a site publishes by subgroups: blurred, signed by the site, and read strictly."""

from __future__ import annotations

import json
import math

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.utils import fairness
from fedveil.utils.errors import FederationError, IdentityError, MalformedMessageError
from fedveil.utils.fairness import Cell, FairnessTable, Measured, Statement, count_range, measured, step_of
from fedveil.utils.messages import EnvoyName, RunId, TaskRef
from fedveil.utils.signed_document import SignedDocument
from fedveil.utils.tensors import Digest, canonical_json
from hypothesis import given
from hypothesis import strategies as st

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
REF = TaskRef(RunId("lungs-1"), 3, 1, Digest("ab" * 32))
A = EnvoyName("site-a")
TABLE = FairnessTable(
    "test",
    "patients",
    10,
    (
        Cell("", "", 100, 199, (Measured("accuracy", "mean", 0.86, 0.02), Measured("auc", "auc", 0.9, 0.02))),
        Cell("sex", "F", 50, 99, (Measured("accuracy", "mean", 0.85, 0.05),)),
    ),
    {"sex": 2},
)
SAID = Statement("lungs", A, REF, TABLE)


@given(st.integers(1, 10**9))
def test_a_count_lies_in_its_range_and_the_range_says_nothing_else_of_it(count):
    least, most = count_range(count)
    assert least <= count <= most
    assert count_range(least) == count_range(most) == (least, most)


@given(st.integers(5, 10**6), st.floats(0, 1))
def test_a_share_is_told_so_coarsely_that_one_person_more_or_less_could_look_the_same(people, share):
    right = round(share * people)
    told = measured("accuracy", "mean", right / people, count_range(people)[0])
    low, high = told.bounds
    assert low - 1e-9 <= right / people <= high + 1e-9
    alike = [k for k in (right - 1, right, right + 1) if 0 <= k <= people and low - 1e-9 <= k / people <= high + 1e-9]
    assert len(alike) > 1


@given(st.floats(-1e12, 1e12), st.integers(1, 10**6))
def test_no_metric_has_more_digits_than_its_grid(value, least):
    told = measured("m", "mean", value, least)
    assert math.isclose(told.value / told.step, round(told.value / told.step), abs_tol=1e-3)
    assert abs(told.value - value) <= told.step / 2 * (1 + 1e-6) + 1e-6
    assert told.step >= step_of(least)
    assert told.step >= abs(value) / 100


def test_a_signed_statement_is_read_as_it_was_said():
    document = fairness.sign(SAID, KEY.sign)
    assert fairness.check(document, A, REF, "lungs", PUBLIC, 10) == SAID
    assert fairness.sign(SAID, KEY.sign) == document


@pytest.mark.parametrize(
    "other",
    [
        {"site": EnvoyName("site-b")},
        {"ref": TaskRef(RunId("lungs-2"), 3, 1, REF.plan)},
        {"ref": TaskRef(REF.run, 2, 1, REF.plan)},
        {"ref": TaskRef(REF.run, 3, 2, REF.plan)},
        {"ref": TaskRef(REF.run, 3, 1, Digest("cd" * 32))},
        {"federation": "bones"},
    ],
)
def test_a_statement_about_something_else_is_refused(other):
    document = fairness.sign(SAID, KEY.sign)
    asked = {"site": A, "ref": REF, "federation": "lungs"} | other
    with pytest.raises(MalformedMessageError, match="something else"):
        fairness.check(document, asked["site"], asked["ref"], asked["federation"], PUBLIC, 10)


def test_what_the_site_did_not_sign_is_refused():
    document = fairness.sign(SAID, KEY.sign)
    changed = document.content.replace(b"0.86", b"0.98")
    bare = KEY.sign(document.content)  # without what says what it is for
    others = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    for wrong, key in (
        (SignedDocument(changed, document.signature, b""), PUBLIC),
        (SignedDocument(document.content, bare, b""), PUBLIC),
        (document, others),
        (document, b""),
    ):
        with pytest.raises(IdentityError, match="identity key"):
            fairness.check(wrong, A, REF, "lungs", key, 10)


def test_a_cell_below_the_federations_floor_is_refused():
    document = fairness.sign(SAID, KEY.sign)
    with pytest.raises(MalformedMessageError, match="fewer than 20"):
        fairness.check(document, A, REF, "lungs", PUBLIC, 20)
    small = FairnessTable("test", "patients", 20, (TABLE.cells[0], Cell("sex", "F", 10, 19, ())))
    with pytest.raises(MalformedMessageError, match="fewer than 20"):
        fairness.check(fairness.sign(Statement("lungs", A, REF, small), KEY.sign), A, REF, "lungs", PUBLIC, 20)


def wrong_tables():
    """Each with one thing wrong."""
    whole = TABLE.to_document()
    cell = whole["cells"][1]

    def with_cell(**changes):
        return whole | {"cells": [whole["cells"][0], cell | changes]}

    return {
        "another split": whole | {"split": "train"},
        "another unit": whole | {"unit": "beds"},
        "a floor of none": whole | {"min_cell": 1},
        "a truth": whole | {"min_cell": True},
        "no whole": whole | {"cells": [cell]},
        "a cell twice": whole | {"cells": [*whole["cells"], cell]},
        "an exact count": with_cell(people=[57, 57]),
        "a wide range": with_cell(people=[10, 99]),
        "a fine grid": with_cell(metrics=[["accuracy", "mean", 0.857, 0.001]]),
        "no number": with_cell(metrics=[["accuracy", "mean", float("nan"), 0.05]]),
        "a metric twice": with_cell(metrics=[["accuracy", "mean", 0.85, 0.05]] * 2),
        "another kind": with_cell(metrics=[["accuracy", "sum", 0.85, 0.05]]),
        "two lines": with_cell(value="F\nM"),
        "a long name": with_cell(attribute="s" * 41),
        "one key more": whole | {"exact": 57},
        "none suppressed": whole | {"suppressed": {"sex": 0}},
        "a list": [],
        "nothing": None,
    }


@pytest.mark.parametrize("name", wrong_tables())
def test_a_table_that_cannot_be_is_refused(name):
    with pytest.raises(MalformedMessageError):
        FairnessTable.from_document(wrong_tables()[name])


@given(st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(
    lambda one: json.dumps(one).encode()
))  # fmt: skip
def test_other_bytes_are_refused_in_words(raw):
    with pytest.raises(FederationError):
        fairness.read(raw)


def test_the_same_words_in_another_order_or_with_more_are_refused():
    whole = json.loads(SAID.to_json())
    for raw in (json.dumps(whole, indent=1).encode(), canonical_json(whole | {"more": 1}), SAID.to_json() + b" "):
        with pytest.raises(MalformedMessageError):
            fairness.read(raw)


def test_metrics_that_may_not_leave_are_taken_out_and_counted():
    kept = TABLE.only(["auc"])
    assert [(one.value, [m.name for m in one.measured]) for one in kept.cells] == [("", ["auc"])]
    assert kept.suppressed == {"sex": 3}
    assert TABLE.only(["loss"]) is None
    assert TABLE.only(["accuracy", "auc"]) == TABLE
