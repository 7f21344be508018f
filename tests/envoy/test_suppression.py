"""Cells of too few people are not told, and cannot be worked out of what is: by counts, values or other rounds."""

from __future__ import annotations

import numpy as np
import pytest
from fedveil.envoy.suppression import Scheme, plan, table
from fedveil.utils.fairness import WHOLE, FairnessTable
from fedveil.utils.metrics import auc_of, mean_of
from hypothesis import given, settings
from hypothesis import strategies as st

MIN = 10


def scheme_of(labels, *attributes, people=None, min_cell=MIN) -> Scheme:
    """Attributes are a name and the value of each example."""
    labels = np.array(labels)
    coded = []
    for name, texts in attributes:
        values = tuple(sorted(set(texts)))
        coded.append((name, values, np.array([values.index(text) + 1 for text in texts], np.uint8)))
    whose = np.arange(len(labels)) if people is None else np.array(people)
    return plan("test", "examples", whose, labels, coded, min_cell)


def told_by(scheme: Scheme, right, attributes) -> FairnessTable | None:
    """The table of a model that is right about some examples; ``attributes`` as above."""
    right = np.array(right)
    found = {(-1, 0): [mean_of("accuracy", right.sum(), len(right))]}
    for place, (_, texts) in enumerate(attributes):
        for code, value in enumerate(sorted(set(texts)), start=1):
            held = right[np.array(texts) == value]
            found[place, code] = [mean_of("accuracy", held.sum(), len(held))]
    return table(scheme, found)


def values_told(scheme: Scheme, place: int = 0) -> list[str]:
    return [one.value for one in scheme.attributes[place].cells]


# ---------------------------------------------------------------- numbers that can be followed by hand


def test_one_small_cell_takes_the_next_smallest_with_it():
    sexes = ["F"] * 40 + ["M"] * 14 + ["X"] * 6
    scheme = scheme_of([0, 1] * 30, ("sex", sexes))
    assert values_told(scheme) == ["F"]  # X has 6 of 10; alone it would be all less F and M
    assert scheme.attributes[0].examples == (40, 14, 6)
    told = told_by(scheme, [1] * 45 + [0] * 15, [("sex", sexes)])
    assert [(one.attribute, one.value, one.least, one.most) for one in told.cells] == [
        ("", "", 50, 99),
        ("sex", "F", 20, 49),
    ]
    assert told.suppressed == {"sex": 2}
    assert [(m.name, m.value, m.step) for one in told.cells for m in one.measured] == [
        ("accuracy", 0.75, 0.05),
        ("accuracy", 1.0, 0.1),
    ]


def test_small_cells_that_are_small_together_take_a_large_one_with_them():
    assert values_told(scheme_of([0] * 100, ("sex", ["F"] * 60 + ["M"] * 32 + ["X"] * 5 + ["Y"] * 3))) == ["F"]
    assert values_told(scheme_of([0] * 60, ("sex", ["F"] * 52 + ["X"] * 5 + ["Y"] * 3))) == []


def test_cells_that_are_all_large_are_all_told_and_an_attribute_with_one_value_is_not():
    scheme = scheme_of([0] * 60, ("sex", ["F"] * 50 + ["M"] * 10), ("site", ["a"] * 60))
    assert [one.name for one in scheme.attributes] == ["sex"]
    assert values_told(scheme) == ["F", "M"]


def test_of_too_few_in_all_nothing_is_told():
    scheme = scheme_of([0, 1] * 4, ("sex", ["F", "M"] * 4))
    assert scheme.whole is None
    assert told_by(scheme, [1] * 8, [("sex", ["F", "M"] * 4)]) is None


def test_ten_images_of_three_patients_are_three():
    scheme = scheme_of([0] * 40, ("sex", ["F"] * 20 + ["M"] * 20), people=[*range(20), *([20, 21, 22] * 7)[:20]])
    assert values_told(scheme) == []
    assert scheme.whole.people == 23


def test_an_auc_needs_enough_people_of_each_class_and_hides_the_others_likewise():
    labels = [0] * 20 + [1] * 20 + [0] * 35 + [1] * 4 + [0] * 11 + [1] * 10
    sexes = ["F"] * 40 + ["M"] * 39 + ["X"] * 21
    scheme = scheme_of(labels, ("sex", sexes))
    assert values_told(scheme) == ["F", "M", "X"]
    # M has 4 ill; alone it would be hidden by nothing. X is the smallest other, and M and X have 14 ill together.
    assert [one.ranks for one in scheme.cells] == [True, True, False, False]
    scores = np.linspace(0, 1, 100)
    found = {(-1, 0): [auc_of("auc", scores, labels)]}
    for code, sex in enumerate("FMX", start=1):
        held = np.array(sexes) == sex
        found[0, code] = [auc_of("auc", scores[held], np.array(labels)[held]), mean_of("accuracy", 15, held.sum())]
    told = table(scheme, found)
    assert [[m.name for m in one.measured] for one in told.cells] == [
        ["auc"],
        ["auc", "accuracy"],
        ["accuracy"],
        ["accuracy"],
    ]


def test_where_everybody_is_right_a_small_cell_could_still_have_one_wrong():
    sexes = ["F"] * 30 + ["M"] * 12 + ["X"] * 3
    told = told_by(scheme_of([0] * 45, ("sex", sexes)), [1] * 45, [("sex", sexes)])
    assert told.cells[0].measured[0].bounds[0] < 44 / 45  # 44 of 45 would look the same


# ---------------------------------------------------------------- any table


@st.composite
def tables(draw):
    """Held-out examples of a site: two attributes, whose examples they are, and what a model is right about."""
    size = draw(st.integers(12, 60))
    attributes = []
    for name, values in (("sex", "FMX"), ("age", "0123")):
        weights = draw(st.lists(st.sampled_from([1, 1, 2, 8, 20]), min_size=len(values), max_size=len(values)))
        bag = [value for value, weight in zip(values, weights, strict=True) for _ in range(weight)]
        attributes.append((name, draw(st.lists(st.sampled_from(bag), min_size=size, max_size=size))))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    wrong = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    right = [int(draw(st.floats(0, 1)) >= wrong) for _ in range(size)]
    return labels, attributes, right


@given(tables(), st.integers(5, 12))
def test_what_is_told_is_large_and_what_is_not_hides_in_a_crowd(drawn, min_cell):
    labels, attributes, _ = drawn
    scheme = scheme_of(labels, *attributes, min_cell=min_cell)
    for attribute in scheme.attributes:
        texts = dict(attributes)[attribute.name]
        counts = {value: texts.count(value) for value in sorted(set(texts))}
        assert list(counts.values()) == list(attribute.examples)
        for ranked in (False, True):
            told = {one.value for one in attribute.cells if one.ranks or not ranked}
            hidden = counts.keys() - told
            assert all(counts[value] >= min_cell for value in told)
            assert len(hidden) != 1
            classes = [
                [label for label, text in zip(labels, texts, strict=True) if text in group]
                for group in ([{value} for value in told] + ([hidden] if told and hidden else []))
            ]
            assert all(len(one) >= min_cell for one in classes)
            if ranked:
                assert all(one.count(label) >= min_cell for one in classes for label in set(labels))


def numerators(cell, metric, examples):
    """Every number of right answers that a cell can have, for somebody who knows how many examples it has."""
    if cell is None:
        return set(range(examples + 1))
    low, high = cell
    return {k for k in range(examples + 1) if low - 1e-9 <= k / examples <= high + 1e-9}


def sums(sets):
    """All totals of one number of each set."""
    totals = {0}
    for one in sets:
        totals = {a + b for a in totals for b in one}
    return totals


def possible(told: FairnessTable, size: int, attributes) -> dict[tuple[str, str], set[int]]:
    """Of each cell that is not told, every numerator that fits all that is: an attacker who knows every count."""
    shown = {(one.attribute, one.value): m.bounds for one in told.cells for m in one.measured}
    held = {
        name: {v: numerators(shown.get((name, v)), "accuracy", texts.count(v)) for v in set(texts)}
        for name, texts in attributes
    }
    whole = numerators(shown.get((WHOLE, WHOLE)), "accuracy", size)
    for cells in held.values():
        whole &= sums(cells.values())
    found = {}
    for name, cells in held.items():
        if not any(place[0] == name for place in shown):
            continue  # nothing of it is told: there is nothing but the whole to go by
        for value, mine in cells.items():
            if (name, value) not in shown:
                others = sums(other for v, other in cells.items() if v != value)
                found[name, value] = {k for k in mine if any(k + rest in whole for rest in others)}
    return found


@settings(max_examples=60)
@given(tables(), st.integers(5, 12))
def test_an_attacker_who_knows_every_count_cannot_solve_a_cell_that_is_not_told(drawn, min_cell):
    labels, attributes, right = drawn
    told = told_by(scheme_of(labels, *attributes, min_cell=min_cell), right, attributes)
    if told is not None:
        assert FairnessTable.from_document(told.to_document()) == told
        for cell, numbers in possible(told, len(labels), attributes).items():
            truth = sum(r for r, v in zip(right, dict(attributes)[cell[0]], strict=True) if v == cell[1])
            assert truth in numbers
            assert len(numbers) > 1, cell


@given(tables(), st.data())
def test_another_round_tells_of_no_cell_that_the_first_one_hid(drawn, data):
    labels, attributes, right = drawn
    scheme = scheme_of(labels, *attributes)
    later = data.draw(st.lists(st.integers(0, 1), min_size=len(right), max_size=len(right)))
    named = {name: {one.value for one in a.cells} for a in scheme.attributes for name in [a.name]}
    for answers in (right, later):
        told = told_by(scheme, answers, attributes)
        for one in told.cells[1:] if told is not None else ():
            assert one.value in named[one.attribute]
            assert (one.least, one.most) == next(
                (c.least, c.most) for c in told.cells if (c.attribute, c.value) == (one.attribute, one.value)
            )


def test_where_the_values_themselves_would_give_a_suppressed_cell_away_its_attribute_is_not_told():
    """2 of 43 right is told as 0.0, which is at most 2; 2 of 23 as 0.1, which is at least 2: nobody else was right."""
    sexes = ["F"] * 23 + ["M"] * 14 + ["X"] * 6
    scheme = scheme_of([0] * 43, ("sex", sexes))
    assert values_told(scheme) == ["F"]
    told = told_by(scheme, [1, 1] + [0] * 41, [("sex", sexes)])
    assert [one.value for one in told.cells] == [WHOLE]
    assert told.suppressed == {"sex": 3}
    three = told_by(scheme, [1, 1, 1] + [0] * 40, [("sex", sexes)])  # 0.1 both: 0 to 4 of the others
    assert [one.value for one in three.cells] == [WHOLE, "F"]
    assert possible(three, 43, [("sex", sexes)]) == {("sex", "M"): {0, 1, 2, 3, 4}, ("sex", "X"): {0, 1, 2, 3, 4}}


@pytest.mark.parametrize("value", [1e13, float("nan")])
def test_a_metric_that_is_no_figure_is_not_told(value):
    scheme = scheme_of([0] * 20, ("sex", ["F", "M"] * 10))
    if np.isfinite(value):
        assert table(scheme, {(-1, 0): [mean_of("big", value, 1)]}) is None
    else:
        assert table(scheme, {(-1, 0): [mean_of("none", 0.0, 0)]}) is None
