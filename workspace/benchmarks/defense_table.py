"""The table of defenses, made from rows: naive and adaptive attackers, utility, and what breaks each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...gradient_leakage.confidence import Interval
from ...gradient_leakage.defense_suites import UNDEFENDED
from ...gradient_leakage.defenses.registry import Registered
from ...gradient_leakage.headlines import Headline
from ...gradient_leakage.report import FEASIBILITY, CellRows


@dataclass(frozen=True, slots=True)
class Utility:
    """What the federated model is worth under one defense."""

    auc: Interval
    lost: Interval | None  # to no defense, paired; None of no defense itself
    numbers_up: int  # in an update
    rounds: int
    seeds: int


def table_of(
    found: Sequence[Headline], defenses: Mapping[str, Registered], utility: Mapping[str, Utility]
) -> Iterator[str]:
    """Markdown, a line a defense, with what its figures mean."""
    figures = ["dB", "SSIM gain", "found"]
    columns = ["defense", "naive attacker", *figures, "worst adaptive attacker", *figures]
    columns += ["test AUC", "lost", "sent", "what breaks it"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for headline in found:
        of_defense, worth = defenses[headline.defense], utility.get(headline.defense)
        heuristic = ", a heuristic" if of_defense.is_heuristic and of_defense.name != UNDEFENDED else ""
        cells = [
            f"{of_defense.title} (`{of_defense.name}`){heuristic}",
            *_attacker(headline.naive),
            *_attacker(headline.adaptive),
            *_worth(worth),
            of_defense.weakness,
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from _how_to_read(found, utility)


def _attacker(group: CellRows | None) -> list[str]:
    if group is None:
        return ["-"] * 4
    psnr = group.mean("psnr")
    hits = [row.reid_rank1 for row in group.rows if row.reid_rank1 is not None]
    return [
        group.cell.attack,
        f"{psnr.value:.1f}" if psnr else "-",
        _interval(group.ssim_gain(), 2),
        f"{round(sum(hits) * group.cell.batch)} of {len(hits) * group.cell.batch}" if hits else "-",
    ]


def _worth(worth: Utility | None) -> list[str]:
    if worth is None:
        return ["-"] * 3
    lost = "" if worth.lost is None else _interval(worth.lost, 3)
    return [_interval(worth.auc, 3), lost, f"{worth.numbers_up:,}"]


def _interval(found: Interval | None, digits: int) -> str:
    if found is None or math.isnan(found.value):
        return "-"
    if math.isnan(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _how_to_read(found: Sequence[Headline], utility: Mapping[str, Utility]) -> Iterator[str]:
    groups = [group for headline in found for group in (headline.naive, headline.adaptive) if group]
    if groups:
        cell, images = groups[0].cell, min(group.images for group in groups)
        steps = f"{cell.local_steps} local steps" if cell.local_steps else "one gradient"
        few = "" if images >= FEASIBILITY else f" Under {FEASIBILITY} images this is feasibility, not evidence."
        yield (
            f"Leakage: {cell.case}, `{cell.model}` {cell.state}, batch {cell.batch}, {steps}, at least {images} images "
            f"an attacker, labels known.{few} SSIM gain: over the same attack on another patient's update. Found: so "
            f"many were picked first among {cell.gallery} images of their class, by pixels. The attacker is the one "
            "with the largest gain on these very targets. No line claims that nothing leaks."
        )
    if utility:
        one = next(iter(utility.values()))
        yield ""
        yield (
            f"Utility: three sites, the demo's plan, PneumoniaMNIST less a public tenth, {one.rounds} rounds, "
            f"{one.seeds} of each, the 624 test images; intervals by bootstrap over images and seeds; lost: AUC to no "
            "defense, paired. Sent: numbers in an update. The plan trains another network than the attacked one, an "
            "epoch of Adam a round: the two halves of a line are of one defense, not of one update."
        )
