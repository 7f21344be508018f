"""Pictures of reconstructions: originals above what was found, curves, and a reconstruction as it emerges.

Only draws; it computes no figure. One channel is drawn grey, three in colour; pixels are enlarged without smoothing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_TILE = 128  # pixels a side, about
_GAP = 10
_LINE = 17
_MARGIN = 84  # for the words beside the lines of pictures
_INK, _FAINT, _ATTACK, _NULL, _BASELINE = "#1d2733", "#6b7785", "#b3261e", "#8a94a0", "#2f6f9f"
_MOVING_TILE, _FRAMES = 168, 24
_FRAME_MILLISECONDS, _LAST_MILLISECONDS = 160, 2500

Pixels = NDArray[np.floating] | NDArray[np.uint8]
"""(channels, height, width): floats in [0, 1], or uint8."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One original beside what was found of it."""

    truth: Pixels
    found: Pixels | None
    caption: tuple[str, ...]  # lines under the pair


def drawn(pixels: Pixels, side: int = _TILE) -> Image.Image:
    """One image, enlarged to about ``side`` pixels by whole factors (large ones are shrunk instead).

    Raises:
        ValueError: neither one channel nor three.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in {1, 3}:
        raise ValueError(f"an image of shape {pixels.shape}: expected one channel or three")
    levels = pixels if pixels.dtype == np.uint8 else np.nan_to_num(np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    largest = max(picture.size)
    if largest > 2 * side:
        return picture.resize((picture.width * side // largest, picture.height * side // largest), Image.Resampling.BOX)
    factor = max(1, round(side / largest))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def draw_pairs(pairs: Sequence[Pair], sides: tuple[str, str] = ("original", "found")) -> bytes:
    """Originals in the upper line, reconstructions below them, captions under both; a PNG."""
    tiles = [(drawn(pair.truth), None if pair.found is None else drawn(pair.found)) for pair in pairs]
    width, height = tiles[0][0].size
    lines = max(len(pair.caption) for pair in pairs)
    canvas = Image.new(
        "RGB",
        (_MARGIN + len(pairs) * (width + _GAP), 2 * (height + _GAP) + lines * _LINE + _GAP),
        "white",
    )
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for line, word in enumerate(sides):
        pen.text((_GAP, _GAP + line * (height + _GAP) + height / 2 - 8), word, _FAINT, font)
    for column, ((truth, found), pair) in enumerate(zip(tiles, pairs, strict=True)):
        left = _MARGIN + column * (width + _GAP)
        canvas.paste(truth, (left, _GAP))
        if found is None:
            pen.text((left + 6, 2 * _GAP + height * 1.5 - 8), "not sought", _FAINT, font)
        else:
            canvas.paste(found, (left, 2 * _GAP + height))
        for line, words in enumerate(pair.caption):
            pen.text((left, 2 * (height + _GAP) + 4 + line * _LINE), words, _INK, font)
    return _png(canvas)


def draw_emerging(truth: Pixels, frames: Sequence[Pixels], words: Sequence[str]) -> bytes:
    """The original on the left, the reconstruction as it emerges on the right; an animated GIF that repeats.

    Args:
        truth: what is sought.
        frames: of the reconstruction, in order; at least one. Of many, some are drawn, the first and last among them.
        words: under each frame, such as its iteration.
    """
    left, font = drawn(truth, _MOVING_TILE), ImageFont.load_default(14)
    width, height = left.size
    shown = np.unique(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int))
    pages = []
    for frame, word in [(frames[place], words[place]) for place in shown]:
        page = Image.new("RGB", (2 * width + 3 * _GAP, height + 2 * _GAP + 24), "white")
        page.paste(left, (_GAP, _GAP))
        page.paste(drawn(frame, _MOVING_TILE), (2 * _GAP + width, _GAP))
        pen = ImageDraw.Draw(page)
        pen.text((_GAP, height + _GAP + 6), "original", _FAINT, font)
        pen.text((2 * _GAP + width, height + _GAP + 6), word, _INK, font)
        pages.append(page.convert("L") if len(truth) == 1 else page.quantize(256))
    durations = [_FRAME_MILLISECONDS] * (len(pages) - 1) + [_LAST_MILLISECONDS]
    file = io.BytesIO()
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)
    return file.getvalue()


def draw_curves(traces: Sequence[Sequence[tuple[int, float]]]) -> bytes:
    """The attacker's own loss over the iterations, a line a run; a PNG."""
    figure = Figure(figsize=(5.2, 2.5), layout="constrained")
    axes = figure.subplots()
    points = [[(i, value) for i, value in trace if math.isfinite(value)] for trace in traces]
    for trace in points:
        axes.plot(*zip(*trace, strict=True) if trace else ([], []), color=_ATTACK, linewidth=1, alpha=0.75)
    if all(value > 0 for trace in points for _, value in trace):
        axes.set_yscale("log")
    axes.set_xlabel("iteration", fontsize=8)
    axes.set_ylabel("the attacker's loss", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return _figure_png(figure)


@dataclass(frozen=True, slots=True)
class Span:
    """One line of the overview: an attack beside its null and the baseline, in SSIM."""

    label: str
    ssim: float
    interval: tuple[float, float] | None
    null: float | None
    baseline: float | None


def draw_overview(spans: Sequence[Span]) -> bytes:
    """SSIM of each cell beside the same attack on another patient's update; a PNG."""
    figure = Figure(figsize=(10, 1.1 + 0.24 * len(spans)), layout="constrained")
    axes = figure.subplots()
    for line, span in enumerate(spans):
        if span.null is not None:
            axes.plot([span.null, span.ssim], [line, line], color=_ATTACK, linewidth=1.2, alpha=0.45)
            axes.plot(span.null, line, "o", color="white", markeredgecolor=_NULL, markersize=5)
        if span.baseline is not None:
            axes.plot(span.baseline, line, "|", color=_BASELINE, markersize=9)
        if span.interval is not None:
            axes.plot(span.interval, [line, line], color=_ATTACK, linewidth=3.5, alpha=0.3, solid_capstyle="butt")
        axes.plot(span.ssim, line, "o", color=_ATTACK, markersize=5)
    axes.set_yticks(range(len(spans)), [span.label for span in spans], fontsize=7.5)
    axes.set_ylim(len(spans) - 0.4, -0.6)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel("SSIM", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    legend = (
        "dot: the attack (bar: 95 % interval)    ring: the same attack on another patient's update    "
        "tick: the public mean image"
    )
    figure.suptitle(legend, fontsize=8, color=_FAINT, x=0.01, ha="left")
    return _figure_png(figure)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _figure_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()
