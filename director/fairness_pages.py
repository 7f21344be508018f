"""The fairness report as Markdown and as CSV. What sites named (attributes, values) is escaped in both. Pure."""

from __future__ import annotations

import csv
import io
import re

from ..utils.fairness import WHOLE, Measured
from .fairness_report import FairnessReport, RoundFairness

_COLUMNS = (
    "task_id", "round", "attempt", "site", "attribute", "value", "people_least", "people_most", "metric", "kind",
    "figure", "low", "high",
)  # fmt: skip
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+|!~&-])")
_FORMULA = frozenset("=+-@\t\r")


def as_markdown(report: FairnessReport) -> str:
    """A page, the last round first."""
    lines = [f"# Fairness of {_text(report.run)}", "", *(f"- {note}" for note in report.notes)]
    for one in reversed(report.rounds):
        lines += ["", *_round(one)]
    return "\n".join(lines) + "\n"


def as_csv(report: FairnessReport) -> str:
    """A row for each figure: each site's, and those pooled (site empty, people left out)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in report.rounds:
        place = [report.run, one.round, one.attempt]
        for site, table in one.sites.items():
            for cell in table.cells:
                named = [no_formula(cell.attribute), no_formula(cell.value), cell.least, cell.most]
                for m in cell.measured:
                    low, high = m.bounds
                    writer.writerow(
                        [*place, site, *named, no_formula(m.name), m.kind, m.value, round(low, 6), round(high, 6)]
                    )
        for p in one.pooled:
            named = [no_formula(p.attribute), no_formula(p.value), "", ""]
            writer.writerow([*place, "", *named, no_formula(p.metric), p.kind, p.mean, p.low, p.high])
    return out.getvalue()


def _round(one: RoundFairness) -> list[str]:
    what = "the final model" if one.kind == "evaluate" else "the model that the round began with"
    silent = ", ".join(map(_text, one.silent or ())) or f"{one.num_silent} sites"
    lines = [
        f"## Round {one.round}: {what}",
        "",
        f"{len(one.sites)} of {one.answered} sites publish"
        + (f"; nothing is known of {silent}." if one.num_silent else "."),
        "",
        "| between | metric | best | worst | difference | more than rounding |",
        "|---|---|---|---|---|---|",
    ]
    for s in one.spreads:
        clear = "yes" if s.is_clear else "no"
        of = _text(s.of)
        lines.append(
            f"| {of} | {_text(s.metric)} | {_text(s.best)} | {_text(s.worst)} | {s.difference:.4g} | {clear} |"
        )
    lines += ["", "| pooled | metric | mean | between | sites |", "|---|---|---|---|---|"]
    for p in one.pooled:
        bounds = f"{p.low:.4g} to {p.high:.4g}"
        lines.append(f"| {_named(p.attribute, p.value)} | {_text(p.metric)} | {p.mean:.4g} | {bounds} | {p.sites} |")
    for site, table in one.sites.items():
        lines += [
            "",
            f"### {_text(site)}",
            "",
            f"Its {table.split} part; {table.unit}, of {table.min_cell} at least.",
            "",
            f"| cell | {table.unit} | metrics |",
            "|---|---|---|",
        ]
        for cell in table.cells:
            told = ", ".join(map(_figure, cell.measured))
            lines.append(f"| {_named(cell.attribute, cell.value)} | {cell.least} to {cell.most} | {told} |")
        lines += [f"| {_text(name)}: {number} not told | | |" for name, number in table.suppressed.items()]
    return lines


def _figure(one: Measured) -> str:
    return f"{_text(one.name)} {one.value:.4g} ± {one.step / 2:.3g}"


def _named(attribute: str, value: str) -> str:
    return "all" if attribute == WHOLE else f"{_text(attribute)} = {_text(value)}"


def _text(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def no_formula(text: str) -> str:
    """No spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in _FORMULA else text
