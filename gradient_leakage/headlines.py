"""From rows to what is said of each defense: its best naive attacker, and the worst attacker that there is.

An attacker is ranked by the SSIM gain over the null, under one set of conditions. The same targets choose the attacker
and tell its figure, so a headline with few targets is a lower estimate of nothing: only ``claims`` speaks of safety.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .cells import Cell
from .report import CellRows, cells_of
from .rows import Row

EXACT_DB = 60.0
"""From which mean PSNR on a reconstruction is called exact: an error of 1/1000 of the range."""


@dataclass(frozen=True, slots=True)
class Headline:
    """One defense under one set of conditions."""

    defense: str
    naive: CellRows | None  # the best attacker that does not know of the defense; None where none sought an image
    adaptive: CellRows | None  # the best that does

    @property
    def worst(self) -> CellRows | None:
        """Whichever of both is worse for the site; a tie goes to the adaptive one."""
        both = [group for group in (self.adaptive, self.naive) if group is not None]
        return max(both, key=_badness, default=None)


def gain_of(group: CellRows) -> float:
    """Mean SSIM gain over the null; minus infinity where it was not measured."""
    gain = group.ssim_gain()
    return -math.inf if gain is None or math.isnan(gain.value) else gain.value


def _badness(group: CellRows) -> tuple[float, float]:
    """The gain to a thousandth, then PSNR: what is exact is told apart by its error alone."""
    psnr = group.mean("psnr")
    return round(gain_of(group), 3) if math.isfinite(gain_of(group)) else -math.inf, psnr.value if psnr else -math.inf


def headlines(rows: Iterable[Row], defenses: Sequence[str], like: Cell) -> list[Headline]:
    """The headline of each defense, in the order of ``defenses``.

    Args:
        rows: of any cells.
        defenses: names.
        like: whose case, model, state, batch and local steps the cells must share; attacks on other conditions are not
            compared with them.
    """
    groups = [group for group in cells_of(rows) if _conditions(group.cell) == _conditions(like)]
    found = []
    for name in defenses:
        of_this = [group for group in groups if group.cell.defense == name and group.mean("ssim") is not None]
        naive = max((group for group in of_this if not group.cell.adaptive), key=_badness, default=None)
        adaptive = max((group for group in of_this if group.cell.adaptive), key=_badness, default=None)
        found.append(Headline(name, naive, adaptive))
    return found


def _conditions(cell: Cell) -> tuple[object, ...]:
    return cell.case, cell.model, cell.state, cell.batch, cell.local_steps
