"""The figure of defenses names every one of them; the gallery shows what was found."""

import io
import itertools
import math

import numpy as np
from fedveil.gradient_leakage.confidence import Interval
from fedveil.gradient_leakage.defense_pictures import Shown, TradeOff, draw_gallery, draw_tradeoff, spread
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


def size_of(png):
    return Image.open(io.BytesIO(png)).size


@given(st.lists(st.floats(0, 1), max_size=19))
def test_names_stay_apart_and_in_the_order_of_their_points(wanted):
    placed = spread(wanted, 0.05)
    in_order = sorted(placed)
    assert all(after - before >= 0.05 - 1e-9 for before, after in itertools.pairwise(in_order))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)
    assert all(placed[a] >= placed[b] for a in range(len(wanted)) for b in range(len(wanted)) if wanted[a] > wanted[b])


def test_points_without_an_interval_are_drawn_as_those_with_one():
    one = TradeOff("clip", Interval(0.95, 0.94, 0.96), Interval(0.8, math.nan, math.nan), "dlg", is_heuristic=True)
    other = TradeOff("clip-noise", Interval(0.6, 0.5, 0.7), Interval(0.01, -0.02, 0.03), "dlg", is_heuristic=False)
    width, height = size_of(draw_tradeoff([one, other], "two"))
    assert width > height > 400


def test_a_gallery_has_a_line_for_each_defense_and_room_for_the_originals(rng):
    truth = [np.full((1, 28, 28), 0.5, np.float32)] * 3
    found = [(image, "12.0 dB") for image in truth]
    line = Shown("topk-10", found, found[:1], "naive: dlg", "worst: defended-matching")
    one, two = (size_of(draw_gallery(truth, [line] * count)) for count in (1, 2))
    assert one[0] == two[0]
    assert one[1] < two[1]
