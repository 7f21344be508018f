"""The page of ``fedveil secagg view``: one HTML file that needs nothing else. Only draws; it computes no figure."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..gradient_leakage.pictures import drawn
from ..gradient_leakage.server_view import LEVEL, SmokeTest, least_correlation
from .secagg_run import KeptSum, OwnRun
from .secagg_view import Attacked, Scheme, View

_STAGES = {
    ("advert", "up"): "two public keys, signed over this very sum",
    ("shares", "down"): "the cohort: everybody's advert, and the threshold",
    ("shares", "up"): "sealed shares and pair seeds, with commitments",
    ("masked", "down"): "what the others dealt to this one",
    ("masked", "up"): "length and digest of the masked vector",
    ("consent", "down"): "who is in the sum",
    ("consent", "up"): "the signed consent to that",
    ("unmasking", "down"): "all consents",
    ("unmasking", "up"): "one share of each site: of its own mask, or of the secret of one that dropped out",
}
_PICTURE_SIDE = 132


def page_of(view: View) -> str:
    """The whole page."""
    return "".join(_parts(view))


def _parts(view: View) -> Iterator[str]:
    yield _HEAD
    yield _intro(view)
    if view.own is not None:
        yield "<h2>One image a site, and what each scheme gives away of it</h2>"
        yield _attacks(view.own, view.attacks)
        yield "<h2>What was masked, and what arrived</h2>"
        yield _vectors(view.own, view.schemes)
    yield "<h2>The smoke test</h2>"
    yield _smoke_tests(view)
    yield "<h2>What came and went</h2>"
    yield _stages(next((kept for kept in view.sums if kept.vectors), view.sums[0]))
    yield "<h2>What the director learns nevertheless</h2>"
    yield _learns(view)
    yield "</main></html>\n"


def _intro(view: View) -> str:
    sums, first = len(view.sums), view.sums[0].told
    where = (
        f"Four real sites, a real director, {sums} secure sums of run {escape(str(first['run']))}. Each site has one "
        "image and takes one plain step, which is the easiest update there is to attack; and all four are ours, so the "
        "truth is known."
        if view.own
        else f"{sums} secure sums of run {escape(str(first['run']))}, from a director's own folder: the truth is not "
        "known here, so only the evenness of bytes can be looked at."
    )
    return (
        f"<p>{where}</p><div class=read><b>How to read this.</b> A statistical smoke test and some attacks, <b>and no "
        "proof</b>. That nothing is found shows that gross defects are absent. Masks from a short seed would pass as "
        "well, and so would masks whose keys the director knows. Why masks hide is argued in the project's "
        "SECURITY.md; <b>the protocol is our own code, and nobody outside has reviewed it.</b></div>"
    )


def _attacks(own: OwnRun, attacks: Sequence[Attacked]) -> str:
    if not attacks:
        return "<p>No attack was run.</p>"
    sites = list(own.images)
    head = "".join(f"<th>{escape(one.name)}<br><span class=faint>{escape(one.words)}</span></th>" for one in attacks)
    rows = []
    for place, site in enumerate(sites):
        cells = [f"<td>{_img(_tile(own.images[site].images[0].numpy()), site)}<br><b>{site}</b></td>"]
        for one in attacks:
            scores, at = (one.scores[0], place) if len(one.scores) == 1 else (one.scores[place], 0)
            if scores.images is None:
                cells.append("<td>nothing</td>")
                continue
            picture = _img(_tile(np.clip(scores.images[at].float().numpy(), 0, 1)), f"{one.name}, {site}")
            cells.append(f"<td>{picture}<br>{scores.psnr[at]:.1f} dB, SSIM {scores.ssim[at]:.2f}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    means = "".join(f"<td><b>{one.psnr:.1f} dB</b>, SSIM {one.ssim:.2f}{_null_of(one)}</td>" for one in attacks)
    return (
        f"<div class=wide><table class=pictures><tr><th>original</th>{head}</tr>{''.join(rows)}"
        f"<tr><td>mean</td>{means}</tr></table></div>"
        "<p>The attacker is told labels, plan, model, learning rate and scheme (gradient matching, "
        "<code>defended-matching</code>). <b>Null</b>: the same pictures beside images of other patients of the class. "
        "A masked vector is worth its null. The sum is what the director is <i>meant</i> to have, and says something "
        "about everybody in it; against that secure aggregation does nothing, and calibrated noise does.</p>"
    )


def _null_of(one: Attacked) -> str:
    if one.null_psnr is None or one.null_ssim is None:
        return ""
    return f"<br><span class=faint>null {one.null_psnr:.1f} dB, SSIM {one.null_ssim:.2f}</span>"


def _vectors(own: OwnRun, schemes: Sequence[Scheme]) -> str:
    shown = [scheme for scheme in schemes if not scheme.name.startswith("broken: the masks")]
    head = "".join(f"<th>{escape(scheme.name)}</th>" for scheme in shown)
    rows = []
    for site, update in own.truths[0].items():
        cells = [f"<td>{_img(_texture(update), site)}<br><b>{site}</b></td>"]
        for scheme in shown:
            picture = _img(_texture(scheme.first[site]), f"{site}, {scheme.name}")
            cells.append(f"<td>{picture}<br>correlation with the update {scheme.correlations[site]:+.4f}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    size = next(iter(own.truths[0].values())).size
    return (
        f"<div class=wide><table class=pictures><tr><th>the update itself</th>{head}</tr>{''.join(rows)}</table></div>"
        f"<p>{size:,} numbers each, drawn row by row (grey is the middle; an update is scaled so that its structure "
        f"shows). By chance alone a correlation is within &plusmn;{3 / size**0.5:.4f} (three standard deviations).</p>"
    )


def _smoke_tests(view: View) -> str:
    if not view.schemes:
        return "<p>No masked vector was kept.</p>"
    kinds = list(dict.fromkeys(kind for scheme in view.schemes for kind in scheme.test.by_kind()))
    head = "".join(f"<th>{escape(scheme.name)}</th>" for scheme in view.schemes)
    rows = []
    for kind in kinds:
        cells = "".join(_kind_cell(scheme.test, kind) for scheme in view.schemes)
        rows.append(f"<tr><td>{escape(kind)}</td>{cells}</tr>")
    verdicts = "".join(_verdict(scheme) for scheme in view.schemes)
    size = max((look.size for scheme in view.schemes for look in scheme.test.looks), default=0)
    looks = max(len(scheme.test.looks) for scheme in view.schemes)
    power = (
        "" if not size else f" A correlation of {least_correlation(size, looks):.3f} would be found nine times of ten."
    )
    return (
        f"<div class=wide><table><tr><th>looks at</th>{head}</tr>{''.join(rows)}"
        f"<tr><td><b>verdict</b></td>{verdicts}</tr></table></div>"
        f"<p>Of each kind: the least p-value, how many looks, and how many found something (Holm; chance of one false "
        f"alarm in a column {LEVEL:g}).{power} What else it finds, and from which size on, stands with its tests in "
        "<code>gradient_leakage/server_view.py</code>. It does not find a short seed.</p>"
    )


def _kind_cell(test: SmokeTest, kind: str) -> str:
    looks = test.by_kind().get(kind, ())
    if not looks:
        return "<td class=faint>not looked at</td>"
    found = sum(look.kind == kind for look in test.findings)
    least = min(look.p_value for look in looks)
    words = f"p &ge; {least:.2g}, {len(looks)} looks" if not found else f"<b>{found} of {len(looks)} looks found it</b>"
    return f"<td class={'bad' if found else 'good'}>{words}</td>"


def _verdict(scheme: Scheme) -> str:
    if scheme.passes:
        return "<td class=good><b>nothing found</b></td>"
    words = "caught, as it must be" if not scheme.is_real else "NOT independent of the updates"
    return f"<td class=bad><b>{words}</b></td>"


def _stages(kept: KeptSum) -> str:
    sites, summing = list(kept.told["cohort"]), str(kept.told["terms"]["aggregator"])
    elsewhere = (
        f" {escape(summing)} sums: the director relays sealed boxes, and holds no masked vector." if summing else ""
    )
    rows = []
    for stage, way in dict.fromkeys((one.stage, one.way) for one in kept.said if one.way != "here"):
        sizes = {one.envoy: one for one in kept.said if (one.stage, one.way) == (stage, way)}
        cells = "".join(
            f"<td class=number>{sizes[site].size:,} B<br><span class=faint>{sizes[site].seconds:.2f} s</span></td>"
            if site in sizes
            else "<td></td>"
            for site in sites
        )
        arrow = "to the director" if way == "up" else "to the sites"
        rows.append(f"<tr><td><b>{escape(stage)}</b>, {arrow}<br>{_said(stage, way)}</td>{cells}</tr>")
    vectors = "".join(
        f"<td class=number><b>{kept.vectors[s].nbytes:,} B</b></td>" if s in kept.vectors else "<td></td>"
        for s in sites
    )
    head = "".join(f"<th>{escape(site)}</th>" for site in sites)
    return (
        f"<p>{escape(kept.name)}: cohort of {len(sites)}, threshold {kept.told['threshold']}, "
        f"{escape(str(kept.told['outcome']))}. Seconds since the first statement; an empty cell was not waited for."
        f"{elsewhere}</p>"
        f"<div class=wide><table><tr><th>stage</th>{head}</tr>{''.join(rows)}"
        f"<tr><td><b>masked vector</b>, to the director<br><span class=faint>{kept.body_words:,} words of the update, "
        f"and tallies behind them (weight, cuts, metrics)</span></td>{vectors}</tr></table></div>"
    )


def _said(stage: str, way: str) -> str:
    return f"<span class=faint>{escape(_STAGES.get((stage, way), ''))}</span>"


def _learns(view: View) -> str:
    first = view.sums[0]
    items = [
        "the <b>sum</b> of the updates of those who survived, their total weight, and sums of their metrics: by design",
        f"<b>who</b> took part ({', '.join(escape(s) for s in first.told['survivors'])}) and who did not, each round",
        "<b>when</b> each answered: training times tell of the amount of data and the machine",
        "<b>sizes</b> of messages: those of masked vectors follow from the plan, and are the same for all",
        "the <b>names</b> of metrics that each site offers; not its values",
        "the plan, the global model, clip bounds and how many numbers all sites together had cut",
        "over rounds with changing cohorts, <b>differences of sums</b>: a site's policy bounds how many; noise helps",
    ]
    if view.own is not None:
        weights = [one.sum.total_weight for one in view.own.view.rounds if one.sum is not None and one.sum.total_weight]
        items.insert(1, f"here: a total weight of {' and '.join(map(str, weights))}, one image a site")
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _tile(pixels: NDArray[Any]) -> Image.Image:
    return drawn(pixels, 84)


def _texture(values: NDArray[Any]) -> Image.Image:
    """A vector as rows of grey: words by their highest byte, floats about their middle."""
    if values.dtype == np.uint32:
        grey = (values >> np.uint32(24)).astype(np.uint8) ^ np.uint8(128)
    else:
        centred = values - np.median(values)
        grey = (np.clip(centred / (np.quantile(np.abs(centred), 0.97) or 1.0), -1, 1) * 127 + 128).astype(np.uint8)
    side = int(grey.size**0.5)
    return Image.fromarray(grey[: side * side].reshape(side, side)).resize(
        (_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.NEAREST
    )


def _img(picture: Image.Image, words: str) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    source = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{source}" alt="{escape(words)}">'


_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What the director sees</title>
<style>
body { margin: 0; background: #f4f5f7; color: #1d2733; font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 32px 48px; background: #fff; }
h1 { margin: 0 0 8px; font-size: 28px; }
h2 { margin: 40px 0 8px; padding-top: 14px; border-top: 2px solid #1d2733; font-size: 21px; }
p, li { margin: 4px 0 10px; max-width: 96ch; }
.faint { color: #6b7785; font-size: 11.5px; font-weight: normal; }
.read { background: #f4f5f7; border-left: 4px solid #b3261e; padding: 10px 18px; margin: 18px 0; max-width: 96ch; }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 12.5px; line-height: 1.4; }
th { text-align: left; vertical-align: bottom; border-bottom: 1.5px solid #1d2733; padding: 4px 10px; }
th { max-width: 170px; }
td { vertical-align: top; border-bottom: 1px solid #dfe3e8; padding: 5px 10px; }
.pictures img { display: inline-block; }
.pictures td { white-space: nowrap; }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; text-align: right; }
.good { color: #1d6b3a; }
.bad { color: #b3261e; }
code { background: #eef0f3; padding: 0 3px; }
</style>
<main><h1>What the director sees</h1>
"""
