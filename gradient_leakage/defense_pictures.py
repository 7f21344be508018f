"""Pictures of defenses beside each other: utility against leakage, and what was found of the same images.

Only draws; it computes no figure.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from .confidence import Interval
from .pictures import Pixels, drawn

_INK, _FAINT, _HEURISTIC, _FORMAL = "#1d2733", "#6b7785", "#b3261e", "#2f6f9f"
_LABEL_HEIGHT = 0.052  # of the axes, of one line of text
_TILE, _GAP, _NAME_WIDTH, _LINE = 84, 8, 190, 15


@dataclass(frozen=True, slots=True)
class TradeOff:
    """One defense as a point."""

    name: str
    auc: Interval
    gain: Interval  # of SSIM over the null, by the worst attacker; NaN bounds where there are none
    attack: str
    is_heuristic: bool


def draw_tradeoff(points: Sequence[TradeOff], title: str) -> bytes:
    """Test AUC against the worst attacker's excess, one point a defense, each named at the right; a PNG."""
    figure = Figure(figsize=(12, 7))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.07, right=0.67, top=0.92, bottom=0.08)
    axes.axvline(0, color=_FAINT, linewidth=0.8, linestyle=":")
    for point in points:
        colour = _HEURISTIC if point.is_heuristic else _FORMAL
        axes.plot(point.gain.value, point.auc.value, "o", color=colour, markersize=7, zorder=3)
        axes.plot([point.gain.low, point.gain.high], [point.auc.value] * 2, color=colour, linewidth=1.2, alpha=0.5)
        axes.plot([point.gain.value] * 2, [point.auc.low, point.auc.high], color=colour, linewidth=1.2, alpha=0.5)
    axes.set_xlabel("SSIM gain of the worst attacker over its null (left is better: less is given away)", fontsize=9)
    axes.set_ylabel("test AUC of the federated model (up is better)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    low, high = axes.get_ylim()
    heights = spread([(point.auc.value - low) / (high - low) for point in points], _LABEL_HEIGHT)
    for point, height in zip(points, heights, strict=True):
        colour = _HEURISTIC if point.is_heuristic else _FORMAL
        axes.annotate(
            f"{point.name}: {point.attack}",
            (point.gain.value, point.auc.value),
            (1.03, height),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.45, "relpos": (0, 0.5)},
            annotation_clip=False,
            fontsize=8,
            color=colour,
            va="center",
        )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def spread(wanted: Sequence[float], apart: float) -> list[float]:
    """Heights near the wanted ones, at least ``apart`` from each other, from 0 to 1 where there is room.

    >>> [round(height, 2) for height in spread([0.5, 0.5, 0.9], 0.1)]
    [0.5, 0.4, 0.9]
    """
    order = sorted(range(len(wanted)), key=lambda place: -wanted[place])
    placed = [0.0] * len(wanted)
    above = 1.0 + apart
    for place in order:
        placed[place] = above = min(wanted[place], above - apart)
    below = -apart
    for place in reversed(order):
        placed[place] = below = max(placed[place], below + apart)
    return placed


@dataclass(frozen=True, slots=True)
class Shown:
    """One line of the gallery: what was found of the same images by two attackers, with a caption under each."""

    name: str
    naive: Sequence[tuple[Pixels, str]]
    worst: Sequence[tuple[Pixels, str]]
    naive_title: str
    worst_title: str


def draw_gallery(truth: Sequence[Pixels], lines: Sequence[Shown]) -> bytes:
    """Originals on top; under them, a line a defense: left by an attacker that ignores it, right by the worst; a PNG.

    A line may have fewer pictures than there are originals; further ones are left out.
    """
    tiles = [drawn(image, _TILE) for image in truth]
    width, height = tiles[0].size
    block = len(tiles) * (width + _GAP)
    step = height + 2 * _LINE + 2 * _GAP
    canvas = Image.new("RGB", (_NAME_WIDTH + 2 * block + 4 * _GAP, (len(lines) + 1) * step + _GAP), "white")
    pen, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(13), ImageFont.load_default(11)
    pen.text((_GAP, _GAP + height / 2), "original", _INK, font)
    for left in (_NAME_WIDTH, _NAME_WIDTH + block + 3 * _GAP):
        for column, tile in enumerate(tiles):
            canvas.paste(tile, (left + column * (width + _GAP), _GAP))
    for number, line in enumerate(lines, 1):
        top = number * step
        pen.text((_GAP, top + _LINE + height / 2), line.name, _INK, font)
        both = (
            (_NAME_WIDTH, line.naive_title, line.naive),
            (_NAME_WIDTH + block + 3 * _GAP, line.worst_title, line.worst),
        )
        for left, title, pictures in both:
            pen.text((left, top), title, _FAINT, small)
            for column, (found, caption) in enumerate(pictures[: len(tiles)]):
                across = left + column * (width + _GAP)
                canvas.paste(drawn(found, _TILE), (across, top + _LINE))
                pen.text((across, top + _LINE + height + 1), caption, _INK, small)
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()
