"""From how many code numbers on an image comes back exactly, beside what is predicted from counting pixels.

One X-ray, one gradient a round at one fixed model, codes without noise; the attacker knows every code. It matches all
rounds' codes at once, by L-BFGS in double precision from a random image, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...gradient_leakage.attacks.dlg import random_start
from ...gradient_leakage.attacks.matching import working_copy
from ...gradient_leakage.attacks.natural_images import natural_coordinates
from ...gradient_leakage.attacks.quasi_newton import Problem, Search, walk
from ...gradient_leakage.cases import draw_targets, split
from ...gradient_leakage.defenses.chain import Chain
from ...gradient_leakage.defenses.coded import Coded
from ...gradient_leakage.defenses.views import View, view_of
from ...gradient_leakage.gradients import gradient_at
from ...gradient_leakage.headlines import EXACT_DB
from ...gradient_leakage.metrics import Truth, score
from ...gradient_leakage.models import build
from ...gradient_leakage.runners import one_thread
from ...gradient_leakage.threat_model import Observation, Reconstruction
from ...gradient_leakage.vae.codec import Codec
from ...gradient_leakage.vae.fitting import fit, seeded
from ...gradient_leakage.vae.recovery import Prediction, predicted_exact_recovery
from ...gradient_leakage.victim import SiteTraining, layout_of, observe, sent_through
from ...utils.tensors import Layout
from ..leakage_data import load_pool

CASE, MODEL, _CLASSES = "pneumonia28", "tanh-cnn", 2
_FALLOFF = 0.5  # of the spectrum of natural images, in whose coordinates the attacker walks, as ``Dlg`` does


@dataclass(frozen=True, slots=True)
class Series:
    """What a site sends of one image: codes of ``numbers`` each, in some rounds with fresh directions."""

    basis: str  # "seeded" or "learned"
    numbers: int
    rounds: int = 1

    @property
    def sent(self) -> int:
        """Numbers of all rounds."""
        return self.numbers * self.rounds


@dataclass(frozen=True, slots=True)
class Recovered:
    """One image out of one series."""

    series: Series
    target: int
    psnr: float
    loss: float
    prediction: Prediction

    @property
    def is_exact(self) -> bool:
        """Did it come back?"""
        return self.psnr >= EXACT_DB


SERIES = (
    *(Series("seeded", numbers) for numbers in (196, 392, 588, 784, 980, 1176, 1568)),
    Series("seeded", 196, rounds=4),
    Series("seeded", 196, rounds=8),
    *(Series("learned", numbers) for numbers in (196, 392, 784)),
)


def recover(series: Sequence[Series], targets: int, iterations: int) -> Iterator[Recovered]:
    """Each series on the first images of the case, as it ends.

    Args:
        series: what is sent.
        targets: images, each by itself.
        iterations: evaluations of the loss, at most.
    """
    public, attacked = split(load_pool(CASE))
    model = build(MODEL, attacked.domain, 0)
    layout = layout_of(model)
    learned = max((one.numbers for one in series if one.basis == "learned"), default=0)
    updates = np.stack([*_public_gradients(model, public.at(range(learned)).truth())]) if learned else None
    with one_thread():
        for one in series:
            codecs = _codecs(one, layout, updates)
            for target, batch in enumerate(draw_targets(attacked, 1, targets)):
                found, truth = _attacked(model, batch.truth(), codecs, iterations, target)
                psnr = float(score(found, truth).psnr[0])
                prediction = predicted_exact_recovery(one.numbers, one.rounds, attacked.domain.pixels, 1)
                yield Recovered(one, target, psnr, found.loss, prediction)


def threshold_of(found: Sequence[Recovered], basis: str) -> int | None:
    """The fewest numbers from which on every image of this basis came back exactly; None where none did."""
    of_basis = [one for one in found if one.series.basis == basis]
    failed = max((one.series.sent for one in of_basis if not one.is_exact), default=0)
    return min((one.series.sent for one in of_basis if one.is_exact and one.series.sent > failed), default=None)


def as_markdown(found: Sequence[Recovered]) -> Iterator[str]:
    """A line a series, and where recovery became exact."""
    yield "| code | numbers a round | rounds | sum | of the pixels | predicted | dB |"
    yield "|---|---|---|---|---|---|---|"
    for series in dict.fromkeys(one.series for one in found):
        own = [one for one in found if one.series == series]
        prediction, psnr = own[0].prediction, ", ".join(f"{one.psnr:.1f}" for one in own)
        said = "exact" if prediction.is_exact_recovery_expected else "not exact"
        words = [series.basis, str(series.numbers), str(series.rounds), str(series.sent), f"{prediction.ratio:.2g}"]
        yield f"| {' | '.join([*words, said, psnr])} |"
    yield ""
    for basis in dict.fromkeys(one.series.basis for one in found):
        threshold, pixels = threshold_of(found, basis), found[0].prediction.unknowns
        where = f"from {threshold} numbers on ({threshold / pixels:.2g} of {pixels} pixels)" if threshold else "nowhere"
        yield f"A {basis} code gave images back exactly (over {EXACT_DB:g} dB) {where}."


def _public_gradients(model: nn.Module, public: Truth) -> Iterator[np.ndarray[tuple[int], np.dtype[np.floating]]]:
    rng = torch.Generator().manual_seed(0)
    for image, label in zip(public.images, public.labels, strict=True):
        yield observe(model, image[None], label[None], SiteTraining(), rng, _CLASSES).vector()


def _codecs(
    series: Series, layout: Layout, updates: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None
) -> list[Codec]:
    """One a round."""
    ratio = layout.size / series.numbers
    if series.basis == "learned":
        assert updates is not None
        return [fit(layout, updates, ratio, noise_variance=0.0)] * series.rounds
    return [seeded(layout, ratio).for_round(bytes([round_]) * 32) for round_ in range(series.rounds)]


def _attacked(
    model: nn.Module, truth: Truth, codecs: Sequence[Codec], iterations: int, target: int
) -> tuple[Reconstruction, Truth]:
    """Match all codes at once."""
    rng = torch.Generator().manual_seed(target)
    seen = observe(model, truth.images, truth.labels, SiteTraining(), rng, _CLASSES)
    views = [_view(seen, codec) for codec in codecs]
    found = walk(_problem(seen, views, truth.labels, rng), Search(iterations, 1, 1e-18, 0))
    return Reconstruction(found.images, truth.labels, found.loss), truth


def _view(seen: Observation, codec: Codec) -> View:
    """One round's code as its attacker sees it; nothing is drawn."""
    chain = Chain((Coded(codec),))
    return view_of(chain, sent_through(seen, chain, np.random.default_rng(0)))


def _problem(seen: Observation, views: Sequence[View], labels: Tensor, rng: torch.Generator) -> Problem:
    """Images whose gradient has these codes."""
    start, model = random_start(seen, rng), working_copy(seen.model).double()
    to_pixels = natural_coordinates(tuple(start.shape), _FALLOFF, start)
    power = torch.stack([view.observed.square().sum() for view in views]).sum()

    def images(sought: Sequence[Tensor]) -> Tensor:
        return 0.5 + to_pixels(sought[0])

    def loss(sought: Sequence[Tensor]) -> Tensor:
        gradient = gradient_at(model, images(sought), labels)
        flat = torch.cat([gradient[entry.name].flatten() for entry in seen.layout.entries])
        apart = [(view.project(flat) - view.observed).square().sum() for view in views]
        return torch.stack(apart).sum() / power

    return Problem([start], loss, images, lambda _: labels)
