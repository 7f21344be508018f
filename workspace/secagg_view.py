"""``fedveil secagg view``: everything that a director saw of real secure sums, as one page and as JSON.

Measures: the statistical smoke test of ``gradient_leakage/server_view`` on what arrived, beside the same
test of two broken schemes made from the same updates, which it must catch; and attacks of the benchmark on what
arrived, beside the same attacks on an undefended update and on the scalar mask. It shows that gross defects are absent.
It is no proof, and what the sum itself gives away is shown as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..gradient_leakage.attacks.defended_matching import DefendedMatching
from ..gradient_leakage.defenses.chain import Chain
from ..gradient_leakage.defenses.scalar_mask import ScalarMask, scalar_masks
from ..gradient_leakage.metrics import Scores, Truth, null_scores, score
from ..gradient_leakage.server_view import SmokeTest, correlation, smoke_test
from ..gradient_leakage.threat_model import Knowledge, LocalTraining, Observation
from ..gradient_leakage.victim import granting
from ..utils.secure_sum.fixed_point import FixedPoint
from ..utils.tensors import Vector
from .masked_update import MASKED_SUFFIX
from .recorded_update import recorded
from .secagg_run import KeptSum, OwnRun

_KNOWS = Knowledge(labels=True, defense=True, local_steps=True, learning_rate=True)
_ATTACK = DefendedMatching(iterations=200, polish=300)
_ATTACK_ON_SUM = DefendedMatching(iterations=300, polish=600)
_SEED = 0
Words: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Scheme:
    """What a director sees of the same updates under one way of masking, and what the smoke test says of it."""

    name: str
    is_real: bool  # from the run; else made here, of the same updates, to be caught
    first: Words  # what is seen of the first round, by site
    test: SmokeTest
    correlations: Mapping[str, float]  # of each site's vector of the first round with its true update

    @property
    def passes(self) -> bool:
        """Was nothing found?"""
        return not self.test.findings


@dataclass(frozen=True, slots=True, eq=False)
class Attacked:
    """One attack on what a director has of every site."""

    name: str
    words: str  # what the attacker knows and does
    scores: tuple[Scores, ...]  # by site, in order
    null_psnr: float | None  # of the same pictures beside other patients' images; None: there are none
    null_ssim: float | None

    @property
    def psnr(self) -> float:
        """Mean over the sites."""
        return float(np.mean([one.psnr.mean() for one in self.scores]))

    @property
    def ssim(self) -> float:
        """Mean over the sites."""
        return float(np.mean([one.ssim.mean() for one in self.scores]))


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """All that the page shows."""

    sums: tuple[KeptSum, ...]
    schemes: tuple[Scheme, ...]
    attacks: tuple[Attacked, ...] = ()
    own: OwnRun | None = None

    def as_json(self) -> dict[str, Any]:
        """Every figure of the page; no vector and no picture."""
        return {
            "schema": "fedveil.secagg-view/1",
            "is": "a statistical smoke test and attacks on what a director saw; no proof, and not reviewed outside",
            "sums": [
                {key: kept.told[key] for key in ("run", "round", "attempt", "kind", "cohort", "threshold", "survivors")}
                | {"outcome": kept.told["outcome"], "said": [asdict(one) for one in kept.said]}
                | {"vector_bytes": {name: vector.nbytes for name, vector in kept.vectors.items()}}
                for kept in self.sums
            ],
            "smoke_test": [
                {
                    "scheme": scheme.name,
                    "from_the_run": scheme.is_real,
                    "looks": len(scheme.test.looks),
                    "level": scheme.test.level,
                    "least_p_value": min((look.p_value for look in scheme.test.looks), default=None),
                    "findings": len(scheme.test.findings),
                    "found_by": sorted({look.kind for look in scheme.test.findings}),
                    "correlation_with_truth": dict(scheme.correlations),
                }
                for scheme in self.schemes
            ],
            "attacks": [
                {
                    "on": one.name,
                    "attacker": one.words,
                    "psnr": one.psnr,
                    "ssim": one.ssim,
                    "null_psnr": one.null_psnr,
                    "null_ssim": one.null_ssim,
                }
                for one in self.attacks
            ],
        }


def view_of_sums(sums: Sequence[KeptSum]) -> View:
    """Of a director's own folder: nobody there knows what was masked, so bytes alone are looked at."""
    groups: dict[int, list[KeptSum]] = {}
    for kept in sums:
        if kept.vectors and kept.body_words:
            groups.setdefault(kept.body_words, []).append(kept)
    schemes = []
    for group in groups.values():
        arrived = [kept.bodies for kept in group]
        schemes.append(Scheme("as it arrived", True, arrived[0], smoke_test(arrived), {}))
        if stripped := [kept.without_own for kept in group if kept.without_own]:
            name = "without the masks that the director could take away"
            schemes.append(Scheme(name, True, stripped[0], smoke_test(stripped), {}))
    return View(tuple(sums), tuple(schemes))


def view_of_own(own: OwnRun, *, attacks: bool = True) -> View:
    """Of a run of which all is known."""
    return View(own.sums, tuple(_schemes(own)), tuple(_attacks(own)) if attacks else (), own)


def planted_reuse(own: OwnRun) -> list[dict[str, NDArray[np.uint32]]]:
    """The run's vectors as they would have come if each site had used its masks of round 1 in round 2 again."""
    first, second = own.training_sums[:2]
    masks = {site: first.bodies[site] - _encoded(first, own.truths[0][site]) for site in first.bodies}
    again = {site: _encoded(second, own.truths[1][site]) + masks[site] for site in second.bodies}
    return [first.bodies, again]


def scalar_masked(own: OwnRun) -> list[dict[str, Vector]]:
    """The run's updates as OpenFL 1.9 would send them: one number on top of each, the same in both rounds."""
    numbers = scalar_masks(len(own.truths[0]), np.random.default_rng(_SEED))
    return [
        {site: update + np.float32(number) for (site, update), number in zip(truth.items(), numbers, strict=True)}
        for truth in own.truths
    ]


def _schemes(own: OwnRun) -> Iterable[Scheme]:
    arrived = [kept.bodies for kept in own.training_sums]
    stripped = [kept.without_own for kept in own.training_sums]
    yield _scheme("as it arrived", arrived, own, is_real=True)
    yield _scheme("without the masks that the director could take away", stripped, own, is_real=True)
    yield _scheme("broken: one number as the mask, as in OpenFL 1.9", scalar_masked(own), own, is_real=False)
    yield _scheme("broken: the masks of round 1 used in round 2 again", planted_reuse(own), own, is_real=False)


def _scheme(name: str, seen: Sequence[Words], own: OwnRun, *, is_real: bool) -> Scheme:
    found = {site: correlation(vector, own.truths[0][site]) for site, vector in seen[0].items()}
    return Scheme(name, is_real, seen[0], smoke_test(seen, own.truths), found)


def _encoded(kept: KeptSum, update: Vector) -> NDArray[np.uint32]:
    """As the site encoded it, but for the rounding of the last bit."""
    terms, sizes = kept.told["terms"], tuple(kept.told["sizes"])
    scheme = FixedPoint(sizes, tuple(terms["bounds"]), kept.told["contributors"] * terms["max_weight"])
    words = np.empty(update.size, np.uint32)
    scheme.encode(update, 0, 1, bytes(32), words, np.zeros(len(sizes), np.int64))
    return words


def _attacks(own: OwnRun) -> Iterable[Attacked]:
    """Each thing that a director might have, by the attacker who is told how it was made."""
    torch.set_num_threads(1)
    kept, truth = own.training_sums[0], own.truths[0]
    plan = own.folder / "plan"

    def given(content: bytes, suffix: str) -> Observation:
        path = own.sum_folder(kept) / f"attacked{suffix}"
        path.write_bytes(content)
        try:
            return recorded(path, plan, None, 1, torch.device("cpu")).observation
        finally:
            path.unlink()

    undefended = {site: given(update.tobytes(), ".f32") for site, update in truth.items()}
    scalar = {site: given(update.tobytes(), ".f32") for site, update in scalar_masked(own)[0].items()}
    arrived = {site: given(vector.tobytes(), MASKED_SUFFIX) for site, vector in kept.vectors.items()}
    stripped = {}
    for site, body in kept.without_own.items():
        whole = kept.vectors[site].copy()
        whole[: body.size] = body
        stripped[site] = given(whole.tobytes(), MASKED_SUFFIX)
    knows_scalar = Chain((ScalarMask(sites=len(truth)),))
    yield _attacked(own, "undefended", "the update in the clear", undefended, Chain())
    yield _attacked(own, "scalar mask, taken for the update", "knows of no mask", scalar, Chain())
    yield _attacked(own, "scalar mask", "knows the scheme: takes the mean away", scalar, knows_scalar)
    yield _attacked(own, "masked, as it arrived", "reads the words as fixed point", arrived, Chain())
    words = "took away every mask that the revealed shares open"
    yield _attacked(own, "masked, less the sites' own masks", words, stripped, Chain())
    yield _attack_on_sum(own, kept)


def _attacked(own: OwnRun, name: str, words: str, seen: Mapping[str, Observation], chain: Chain) -> Attacked:
    truths = [own.images[site] for site in seen]
    scores = []
    for (site, one), truth in zip(seen.items(), truths, strict=True):
        del site
        observed = granting(one, labels=truth.labels, defense=chain).limited_to(_KNOWS)
        scores.append(score(_ATTACK(observed, _KNOWS, torch.Generator().manual_seed(_SEED)), truth))
    return _with_null(name, words, scores, truths)


def _attack_on_sum(own: OwnRun, kept: KeptSum) -> Attacked:
    """What a director is given by design: the mean update of all sites, attacked as one batch."""
    total = np.zeros(kept.body_words, np.uint32)
    for body in kept.without_own.values():
        total += body
    terms, sizes = kept.told["terms"], tuple(kept.told["sizes"])
    scheme = FixedPoint(sizes, tuple(terms["bounds"]), kept.told["contributors"] * terms["max_weight"])
    mean = np.empty(total.size, np.float32)
    scheme.decode(total, len(kept.without_own), mean)  # each site has one image
    path = own.sum_folder(kept) / "attacked.f32"
    path.write_bytes(mean.tobytes())
    try:
        seen = recorded(path, own.folder / "plan", None, len(own.images), torch.device("cpu")).observation
    finally:
        path.unlink()
    truth = Truth(
        torch.cat([one.images for one in own.images.values()]),
        torch.cat([one.labels for one in own.images.values()]),
        tuple(own.images),
    )
    seen = granting(seen, labels=truth.labels, defense=Chain(), local_steps=LocalTraining(1, len(own.images)))
    found = score(_ATTACK_ON_SUM(seen.limited_to(_KNOWS), _KNOWS, torch.Generator().manual_seed(_SEED)), truth)
    words = "has the mean update, as it is meant to; matches all images at once"
    return _with_null("the sum of all four", words, [found], [truth])


def _with_null(name: str, words: str, scores: Sequence[Scores], truths: Sequence[Truth]) -> Attacked:
    nulls = null_scores(scores, truths, np.random.default_rng(_SEED)) if len(truths) > 1 else []
    psnr = [float(np.nanmean(one.psnr)) for one in nulls if not np.isnan(one.psnr).all()]
    ssim = [float(np.nanmean(one.ssim)) for one in nulls if not np.isnan(one.ssim).all()]
    means = (float(np.mean(psnr)), float(np.mean(ssim))) if psnr else (None, None)
    return Attacked(name, words, tuple(scores), *means)
