"""A page about what updates gave away, made from rows and runs alone: HTML that needs nothing else, and PNG files."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from ..utils.errors import StorageError
from .cases import STATES
from .cells import Cell
from .claims import equivalence_of
from .confidence import MIN_TARGETS, Equivalence, Interval, Rate, bootstrap_mean
from .pictures import Pair, Span, draw_curves, draw_emerging, draw_overview, draw_pairs
from .rows import Outcome, Row, RunStore
from .tabulation import scores_of, truth_of

FEASIBILITY = 30  # images of a cell below which its figures are no evidence
PAGE = "report.html"
_MOST_PAIRS = 8  # of pictures beside each other
_MOST_CURVES = 12
_GRANTS = {"malicious": "the model it chose", "public_data": "public images"}


@dataclass(frozen=True, slots=True)
class CellRows:
    """A cell with its rows, in the order of its targets."""

    cell: Cell
    rows: tuple[Row, ...]

    @property
    def images(self) -> int:
        """Attacked images, in all."""
        return len(self.rows) * self.cell.batch

    @property
    def file_name(self) -> str:
        """Without a suffix; no two cells share one."""
        cell = self.cell
        words = (cell.case, cell.attack, cell.model, cell.state, f"b{cell.batch}", f"s{cell.local_steps}", cell.defense)
        return _safe("-".join((*words, self.rows[0].key[:8])))

    def mean(self, column: str) -> Interval | None:
        """Of one column over the updates, with its interval; None where nothing was measured."""
        values = [getattr(row, column) for row in self.rows]
        measured = [value for value in values if value is not None]
        return bootstrap_mean(measured, np.random.default_rng(0)) if measured else None

    def ssim_gain(self) -> Interval | None:
        """Over the null of the same target, with its interval."""
        gains = [row.ssim - row.null_ssim for row in self.rows if row.ssim is not None and row.null_ssim is not None]
        return bootstrap_mean(gains, np.random.default_rng(0)) if gains else None


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def cells_of(rows: Iterable[Row]) -> list[CellRows]:
    """Rows by cell: by case and model, from fresh to converged, and from small batches to large."""
    groups: dict[Cell, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.cell(), []).append(row)
    cells = [CellRows(cell, tuple(sorted(group, key=lambda row: row.target))) for cell, group in groups.items()]
    return sorted(cells, key=lambda group: _place(group.cell))


def _place(cell: Cell) -> tuple[object, ...]:
    steps = (cell.batch, cell.local_steps, cell.learning_rate)
    return cell.case, cell.model, [*STATES].index(cell.state), *steps, cell.defense, cell.attack


def write_report(
    store: RunStore, folder: Path, *, gif: bool = True, told: Callable[[CellRows], None] = lambda _: None
) -> Path:
    """Write ``report.html`` and the pictures in it as files of their own, under ``pictures/``.

    Args:
        store: of a benchmark.
        folder: takes the page.
        gif: also draw each iterative attack's first reconstruction as it emerges.
        told: is given each cell that was drawn.

    Raises:
        StorageError: there is no row yet, or the folder cannot be written.
    """
    cells = cells_of(store.rows())
    if not cells:
        raise StorageError(f"no cell is complete yet, so there is nothing to report in {folder}")
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        page = "".join(_page(cells, store, folder / "pictures", gif, told))
        path = folder / PAGE
        path.write_text(page, "utf-8")
    except OSError as error:
        raise StorageError(f"the report cannot be written to {folder}: {error.strerror}") from error
    return path


def _page(
    cells: Sequence[CellRows], store: RunStore, folder: Path, gif: bool, told: Callable[[CellRows], None]
) -> Iterator[str]:
    count = sum(len(group.rows) for group in cells)
    images = sum(group.images for group in cells)
    yield _HEAD
    yield f"<p class=faint>{len(cells)} cells, {count} attacked updates, {images} images.</p>"
    yield _HOW_TO_READ
    versions: set[str] = set()
    for case, of_case in groupby(cells, key=lambda group: group.cell.case):
        groups = list(of_case)
        yield f"<h2>{escape(case)}</h2>"
        yield _overview(groups, folder / f"{_safe(case)}.png")
        yield _table(groups)
        for group in groups:
            outcomes = [found for row in group.rows[:_MOST_CURVES] if (found := store.outcome(row.run)) is not None]
            versions |= {", ".join(f"{name} {number}" for name, number in one.versions.items()) for one in outcomes}
            yield _section(group, outcomes, folder, gif)
            told(group)
    yield f"<footer>Measured with {escape('; '.join(sorted(versions)))}.</footer></main></html>\n"


def _overview(cells: Sequence[CellRows], path: Path) -> str:
    spans = []
    for group in cells:
        found = group.mean("ssim")
        if found is not None:
            bounds = None if math.isnan(found.low) else (found.low, found.high)
            beside = [mean.value if (mean := group.mean(name)) else None for name in ("null_ssim", "baseline_ssim")]
            spans.append(Span(f"{group.cell.title} (n = {group.images})", found.value, bounds, *beside))
    return _kept(path, draw_overview(spans), "SSIM of each attack beside its null") if spans else ""


def _table(cells: Sequence[CellRows]) -> str:
    figures = (
        *("SSIM", "its null", "gain over null", "mean image", "PSNR dB", "its null", "mean image"),
        *("rank@1<br>by pixels", "rank@1<br>by network", "labels<br>found", "CPU-s"),
    )
    head = "".join(f"<th>{name}</th>" for name in ("attack", "n", *figures))
    return (
        f"<div class=wide><table><tr>{head}</tr>{''.join(_line(group, len(figures)) for group in cells)}</table></div>"
    )


def _line(group: CellRows, columns: int) -> str:
    cell = group.cell
    known = ", ".join(_GRANTS.get(name, name.replace("_", " ")) for name in cell.knowledge)
    attack, _, where = cell.title.partition(": ")
    words = f"<td><b>{escape(attack)}</b> {escape(where)}"
    words += f"<br><span class=faint>knows {escape(known or 'nothing more')}</span></td>"
    words += f"<td class=number>{len(group.rows)}{'' if cell.batch == 1 else f' x {cell.batch}'}"
    pictured = group.mean("pictured")
    if pictured is not None and pictured.value < 1:
        words += f"<br><span class=faint>pictures: {round(pictured.value * group.images)}</span>"
    words += "</td>"
    errors = sorted({row.error for row in group.rows if row.error})
    if errors:
        return f"<tr>{words}<td colspan={columns} class=faint>cannot be run: {escape('; '.join(errors))}</td></tr>"
    figures = [
        _figure(group.mean("ssim"), 3, "not sought"),
        *(_figure(mean, 3) for mean in (group.mean("null_ssim"), group.ssim_gain(), group.mean("baseline_ssim"))),
        _figure(group.mean("psnr"), 1, "not sought") + _best(group),
        *(_figure(group.mean(name), 1) for name in ("null_psnr", "baseline_psnr")),
        *(_hits(group, name) for name in ("reid_rank1", "network_rank1")),
        _figure(group.mean("label_recovery"), 2, "known" if "labels" in cell.knowledge else "not sought"),
        _figure(group.mean("cpu_seconds"), 2),
    ]
    return f"<tr>{words}{''.join(f'<td class=number>{figure}</td>' for figure in figures)}</tr>"


def _figure(found: Interval | None, digits: int, missing: str = "not measurable") -> str:
    """A mean, with its interval where there is one."""
    if found is None:
        return _absent(missing)
    if math.isnan(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f}<br><span class=faint>{found.low:.{digits}f} to {found.high:.{digits}f}</span>"


def _best(group: CellRows) -> str:
    """Of the images that were attacked together, where there are several."""
    best = [row.psnr_best for row in group.rows if row.psnr_best is not None]
    return f"<br><span class=faint>best {max(best):.1f}</span>" if best and group.cell.batch > 1 else ""


def _hits(group: CellRows, column: str) -> str:
    """How many images were recognised, of those that could be; the exact interval where each is an update."""
    shares = [value for row in group.rows if (value := getattr(row, column)) is not None]
    if not shares:
        return _absent("not measurable")
    rate = Rate(round(sum(shares) * group.cell.batch), len(shares) * group.cell.batch)
    words = f"{rate.successes} of {rate.trials}<br><span class=faint>"
    if group.cell.batch == 1:
        words += f"{rate.interval.low:.2f} to {rate.interval.high:.2f}<br>"
    return words + f"chance {1 / group.cell.gallery:.2f}</span>"


def _absent(words: str) -> str:
    return f"<span class=faint>{words.replace(' ', '<br>')}</span>"


def _section(group: CellRows, outcomes: Sequence[Outcome], folder: Path, gif: bool) -> str:
    pairs = sorted(_pairs(outcomes), key=lambda pair: len(pair.caption))[:_MOST_PAIRS]  # first those that were found
    traces = [outcome.trace for outcome in outcomes if len(outcome.trace) > 1]
    if not pairs and not traces:
        return ""
    evidence = "" if group.images >= FEASIBILITY else f" {group.images} images a cell: feasibility, not evidence."
    named = ", ".join(f"{name} {value}" for name, value in group.cell.options)
    options = f" Options: {escape(named)}." if named else ""
    parts = [f"<h3>{escape(group.cell.title)}</h3><p class=faint>n = {group.images} images.{evidence}{options}</p>"]
    if len(group.rows) >= MIN_TARGETS:
        parts.append(f"<p>{escape(_claim(equivalence_of(group.rows)))}</p>")
    if pairs:
        shown = f"originals beside reconstructions, {len(pairs)} of {group.images}"
        parts.append(_kept(folder / f"{group.file_name}.png", draw_pairs(pairs), shown))
    beside = []
    if traces:
        shown = f"loss over iterations, {len(traces)} of {len(group.rows)} updates"
        beside.append(_kept(folder / f"{group.file_name}-loss.png", draw_curves(traces), shown))
    if gif and "frames" in outcomes[0].arrays:
        arrays = outcomes[0].arrays
        words = [f"iteration {iteration}" for iteration in arrays["frame_iterations"].tolist()]
        drawn = draw_emerging(truth_of(arrays).images[0].numpy(), list(arrays["frames"]), words)
        beside.append(_kept(folder / f"{group.file_name}.gif", drawn, "the first reconstruction as it emerges"))
    return f"<section>{''.join(parts)}<div class=beside>{''.join(beside)}</div></section>"


def _claim(test: Equivalence) -> str:
    bounds = (
        f"SSIM gain at most {test.ssim_gain_upper:.3f}, rank@1 at most {test.rank1_upper:.2%} (one-sided 95 % bounds; "
        f"chance {test.chance:.2%})"
    )
    if test.holds:
        return f"No measurable leakage to this attack on {test.targets} targets: {bounds}."
    return f"It may not be said that nothing measurable leaks: {'; '.join(test.objections)}. {bounds}."


def _pairs(outcomes: Sequence[Outcome]) -> Iterator[Pair]:
    for outcome in outcomes:
        truth, scores = truth_of(outcome.arrays), scores_of(outcome.arrays)
        if scores.images is None:
            continue
        for place in range(len(truth.images)):
            words = (f"{scores.psnr[place]:.1f} dB", f"SSIM {scores.ssim[place]:.3f}")
            missing = () if scores.found[place] else ("no picture",)
            yield Pair(truth.images[place].numpy(), scores.images[place].numpy(), (*words, *missing))


def _kept(path: Path, drawn: bytes, words: str) -> str:
    """The picture as a file, and within the page."""
    path.write_bytes(drawn)
    source = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(drawn).decode('ascii')}"
    return f'<figure><img src="{source}" alt="{escape(words)}"><figcaption>{escape(words)}</figcaption></figure>'


_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What an update gives away</title>
<style>
body { margin: 0; background: #f4f5f7; color: #1d2733; font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 32px 48px; background: #fff; }
h1 { margin: 0; font-size: 28px; }
h2 { margin: 44px 0 8px; padding-top: 14px; border-top: 2px solid #1d2733; font-size: 21px; }
h3 { margin: 0; font-size: 15px; }
p { margin: 4px 0 10px; max-width: 88ch; }
section { margin: 30px 0; }
figure { margin: 6px 0; }
figcaption, .faint, footer { color: #6b7785; font-size: 12px; }
img { max-width: 100%; display: block; }
.beside { display: flex; flex-wrap: wrap; gap: 28px; align-items: flex-start; }
.beside img { max-height: 300px; }
.read { background: #f4f5f7; border-left: 4px solid #b3261e; padding: 10px 18px; margin: 18px 0; }
.read li { max-width: 88ch; margin: 3px 0; }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 12px; line-height: 1.35; width: 100%; }
th { text-align: left; vertical-align: bottom; border-bottom: 1.5px solid #1d2733; padding: 3px 8px; }
td { vertical-align: top; border-bottom: 1px solid #dfe3e8; padding: 3px 8px; }
td:first-child { min-width: 210px; }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
td .faint { font-size: 10.5px; }
</style>
<main><h1>What an update gives away</h1>
"""

_HOW_TO_READ = f"""<div class=read><b>How to read this.</b> Absolute PSNR and SSIM mean nothing here; the excess over
the null and re-identification do.
<ul>
<li><b>Null</b>: what the same attack finds in the update of another patient of the same class. Another patient's X-ray
already looks much like this one.</li>
<li><b>Mean image</b>: the mean of the attacker's public images, without any attack.</li>
<li><b>rank@1</b>: how many reconstructions pick their own original from a gallery of other patients' images of the same
class; by pixels, and by a verification network where there is one. Chance is one over the gallery.</li>
<li><b>n</b>: attacked updates (x images in each). An image without a picture counts as mid-grey. Small grey
figures are 95 % intervals over the updates. Under
{FEASIBILITY} images a cell shows that something can be done, and is no evidence of how often.</li>
<li>The attacker chooses between restarts by its own loss, never by the truth. What no attack of this page finds may
still be found by another.</li>
</ul></div>
"""
