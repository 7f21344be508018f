"""The fairness report: figures of two sites by hand, bounds that hold whatever the counts, and who is silent."""

from __future__ import annotations

import csv
import io

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.fairness_pages import as_csv, as_markdown
from fedveil.director.fairness_report import FairnessReport, _round, pool, summary, to_json
from fedveil.utils import fairness
from fedveil.utils.fairness import Cell, FairnessTable, Statement, count_range, measured
from fedveil.utils.messages import EnvoyName, RunId, TaskRef
from fedveil.utils.tensors import Digest
from hypothesis import given
from hypothesis import strategies as st

RUN = RunId("lungs-1")
REF = TaskRef(RUN, 2, 1, Digest("ab" * 32))
A, B, C, D = map(EnvoyName, ("site-a", "site-b", "site-c", "site-d"))
KEY = Ed25519PrivateKey.generate()


def cell(attribute: str, value: str, people: int, **metrics: float) -> Cell:
    least, most = count_range(people)
    kinds = {"auc": "auc"}
    told = tuple(measured(name, kinds.get(name, "mean"), figure, least) for name, figure in metrics.items())
    return Cell(attribute, value, least, most, told)


SITE_A = FairnessTable(
    "test",
    "patients",
    10,
    (
        cell("", "", 250, accuracy=0.92, loss=0.3),
        cell("sex", "F", 150, accuracy=0.96),
        cell("sex", "M", 100, accuracy=0.86),
    ),
)
SITE_B = FairnessTable(
    "validation",
    "examples",
    20,
    (
        cell("", "", 120, accuracy=0.8, loss=0.5),
        cell("sex", "F", 60, accuracy=0.9),
        cell("sex", "M", 55, accuracy=0.7),
        cell("=age|<band>", "80+", 30, accuracy=0.6),
    ),
    {"=age|<band>": 2},
)


def report(*, answered: int = 4, silent=(C, D), sites=None) -> FairnessReport:
    documents = {
        site: fairness.sign(Statement("lungs", site, REF, table), KEY.sign)
        for site, table in (sites or {A: SITE_A, B: SITE_B}).items()
    }
    return FairnessReport(RUN, (_round((2, 1, "evaluate"), answered, silent, documents),))


def test_subgroups_are_pooled_by_the_middles_of_their_counts():
    pooled = {(one.value, one.metric): one for one in pool({A: SITE_A, B: SITE_B})}
    women, men = pooled["F", "accuracy"], pooled["M", "accuracy"]
    # A: 100 to 199 people, 149.5 in the middle, 0.96; B: 50 to 99, 74.5, 0.9
    assert women.mean == round((149.5 * 0.96 + 74.5 * 0.9) / 224, 4)
    assert men.mean == round((149.5 * 0.86 + 74.5 * 0.7) / 224, 4)
    assert women.low <= (100 * 0.95 + 99 * 0.875) / 199 + 1e-4
    assert women.low <= women.mean <= women.high
    assert ("80+", "accuracy") not in pooled  # of one site alone: it stands under that site's name


@given(st.data())
def test_a_pooled_figure_lies_within_its_bounds_whatever_the_counts_and_values_were(data):
    """The true federated share, of counts and numerators that nobody told."""
    sites, right, everybody = {}, 0, 0
    for name in ("a", "b", "c")[: data.draw(st.integers(2, 3))]:
        people = data.draw(st.integers(10, 5000))
        share = data.draw(st.integers(0, people))
        right, everybody = right + share, everybody + people
        sites[EnvoyName(name)] = FairnessTable("test", "examples", 10, (cell("", "", people, accuracy=share / people),))
    (one,) = pool(sites)
    assert one.low - 1e-4 <= right / everybody <= one.high + 1e-4
    assert one.low <= one.mean <= one.high


def test_the_worst_site_and_the_worst_subgroup_are_named_and_so_is_what_rounding_may_have_made():
    spreads = {(one.of, one.metric): one for one in report().rounds[0].spreads}
    sites = spreads["sites", "accuracy"]
    assert (sites.best, sites.worst, sites.difference, sites.is_clear) == ("site-a", "site-b", 0.12, True)
    assert spreads["sites", "loss"].worst == "site-b"  # less of a loss is better
    sexes = spreads["sex", "accuracy"]
    assert (sexes.best, sexes.worst) == ("F", "M")
    near = FairnessTable("test", "patients", 10, (cell("", "", 120, accuracy=0.9),))
    few = FairnessTable("test", "patients", 10, (cell("", "", 15, accuracy=0.8),))
    (alike,) = report(sites={A: near, B: few}).rounds[0].spreads
    assert not alike.is_clear  # 0.8 of 10 to 19 people is 0.7 to 0.9


def test_who_publishes_nothing_is_said():
    two = report()
    assert any("2 of 4 sites of round 2 publish nothing" in note for note in two.notes)
    assert not any("estimated" in note for note in two.notes)
    one = report(answered=3, silent=(C,))
    assert any("that one's figures as a whole can be estimated" in note for note in one.notes)
    assert FairnessReport(RUN, ()).notes == (
        "No site of this run published by subgroups; nothing is known of its fairness.",
    )
    assert summary(FairnessReport(RUN, ()))["publishing"] == 0
    assert (summary(one)["publishing"], summary(one)["answered"], summary(one)["round"]) == (2, 3, 2)


def test_pages_say_the_same_and_nothing_that_a_site_named_becomes_a_formula_or_a_tag():
    page, rows = as_markdown(report()), list(csv.DictReader(io.StringIO(as_csv(report()))))
    assert "nothing is known of site\\-c, site\\-d" in page
    assert "<band>" not in page
    assert "\\=age" not in page
    assert "=age\\|\\<band\\>" in page
    figures = [(row["site"], row["value"], row["metric"], row["figure"]) for row in rows]
    assert ("site-b", "M", "accuracy", "0.7") in figures
    assert {row["attribute"] for row in rows} == {"", "sex", "'=age|<band>"}
    pooled = [row for row in rows if not row["site"]]
    assert {(row["value"], row["people_least"]) for row in pooled} == {("", ""), ("F", ""), ("M", "")}


def test_its_json_holds_ranges_and_no_count():
    (one,) = to_json(report())["rounds"]
    assert one["silent"] == ["site-c", "site-d"]
    (first, second) = one["sites"]
    assert first["cells"][1] == {
        "attribute": "sex",
        "value": "F",
        "people": [100, 199],
        "metrics": [["accuracy", "mean", 0.96, 0.02]],
    }
    assert second["suppressed"] == {"=age|<band>": 2}


def test_of_the_one_site_that_is_silent_the_federations_figures_leave_a_wide_range():
    """What remains, by numbers: the federation's accuracy is exact, and so can be its number of examples.

    Site C had 80 right of 100. From 0.86 over 470 examples less what A (250) and B (120) published, somebody can say
    that C has at most 320 examples; and of 100 examples, if that is known, 67 to 93 of them right.
    """
    of_a, of_b = (next(m for m in one.cells[0].measured if m.name == "accuracy") for one in (SITE_A, SITE_B))
    total = 230 + 96 + 80
    low = total - 250 * of_a.bounds[1] - 120 * of_b.bounds[1]
    high = total - 250 * of_a.bounds[0] - 120 * of_b.bounds[0]
    assert low < 80 < high  # with every count known
    assert high - low > 4
    possible = {
        (round(total - a * va - b * vb), 470 - a - b)
        for a in range(200, 500, 10)
        for b in range(100, 200, 10)
        for va in of_a.bounds
        for vb in of_b.bounds
        if 0 <= total - a * va - b * vb <= 470 - a - b
    }
    shares = [right / people for right, people in possible if people]
    assert max(shares) - min(shares) > 0.3  # with counts as they are told


def test_a_metric_that_a_site_named_as_a_formula_is_none_in_a_table():
    table = FairnessTable("test", "patients", 10, (cell("", "", 250, **{"=1+1": 0.5}),))
    rows = csv.DictReader(io.StringIO(as_csv(report(sites={A: table}))))
    assert {row["metric"] for row in rows} == {"'=1+1"}
