"""``fedveil attack bench --defenses``: attacks, utility, one figure, a gallery and the table, from rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..gradient_leakage.cells import Cell
from ..gradient_leakage.defense_pictures import Shown, TradeOff, draw_gallery, draw_tradeoff
from ..gradient_leakage.defense_suites import UNDEFENDED
from ..gradient_leakage.defenses.registry import DEFENSES
from ..gradient_leakage.headlines import Headline, headlines
from ..gradient_leakage.pictures import Pixels
from ..gradient_leakage.report import CellRows
from ..gradient_leakage.rows import Row, RunStore
from ..gradient_leakage.tabulation import scores_of, truth_of
from ..utils.errors import StorageError
from .benchmarks.auc_intervals import auc_difference, auc_interval
from .benchmarks.defense_table import Utility, table_of
from .benchmarks.defense_utility import UtilityRow, measure, open_federation
from .benchmarks.marked_text import put_between_markers

_SHOWN = 4  # images in the gallery
FIGURE, GALLERY, TABLE, UTILITY = "defenses.png", "defenses-gallery.png", "defenses.md", "utility.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """All that the figure and the table are made of."""

    headlines: tuple[Headline, ...]
    utility: Mapping[str, Utility]  # by defense; empty where it was not asked for


def compare(
    names: Sequence[str],
    cells: Sequence[Cell],
    rows: Sequence[Row],
    out: Path,
    readme: Path | None,
    console: Console,
    trained: tuple[int, Sequence[int]] | None,
) -> tuple[list[dict[str, object]], list[Path]]:
    """Measure utility, and write figure, gallery and table of what was attacked.

    Args:
        names: of the defenses.
        cells: of their suite; its first conditions are those under which they are compared.
        rows: of the cells.
        out: holds the store, keeps what utility was measured, and takes the pictures.
        readme: takes the table between its markers.
        console: shows how far it is.
        trained: rounds of each federation, and its seeds; None: no figure, and no columns of utility.

    Returns:
        The rows with the AUC of their defense, and the files that were written.

    Raises:
        FederationError: images or files that cannot be used.
    """
    utility = measured_utility(names, out, console, *trained) if trained else {}
    measured = Measured(tuple(headlines(rows, names, cells[0])), utility)
    return rows_with_utility(rows, utility), write_comparison(measured, out, readme)


def measured_utility(
    names: Sequence[str], out: Path, console: Console, rounds: int, seeds: Sequence[int]
) -> Mapping[str, Utility]:
    """Train the federations that are missing, in this process; no defense at all is always among them.

    Raises:
        FederationError: images that cannot be used, or a training that failed.
    """
    every = [UNDEFENDED, *(name for name in names if name != UNDEFENDED)]
    with console.status("training federations") as status:

        def told(row: UtilityRow) -> None:
            status.update(f"trained {row.defense}, seed {row.seed}, in {row.cpu_seconds:.0f} CPU-s")

        federation = open_federation(out / "federation")
        rows = measure(every, federation, out / UTILITY, rounds=rounds, seeds=seeds, told=told)
    by_name = {name: [row for row in rows if row.defense == name] for name in every}
    plain = [row.scores for row in by_name[UNDEFENDED]]
    labels = federation.test.labels
    return {
        name: Utility(
            auc=auc_interval(labels, [row.scores for row in by_name[name]]),
            lost=None if name == UNDEFENDED else auc_difference(labels, [row.scores for row in by_name[name]], plain),
            numbers_up=by_name[name][0].numbers_up,
            rounds=rounds,
            seeds=len(by_name[name]),
        )
        for name in names
    }


def write_comparison(measured: Measured, out: Path, readme: Path | None) -> list[Path]:
    """The figure (where there is utility), the gallery and the table; the table also between the markers of a README.

    Raises:
        StorageError: a file cannot be written.
    """
    lines = list(table_of(measured.headlines, DEFENSES, measured.utility))
    made = {out / TABLE: ("\n".join(lines) + "\n").encode()}
    points = _points(measured)
    if points:
        made[out / FIGURE] = draw_tradeoff(points, _title(measured))
    with RunStore(out, writing=False) as store:
        gallery = _gallery(measured.headlines, store)
    if gallery is not None:
        made[out / GALLERY] = gallery
    for path, content in made.items():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    if readme is not None:
        put_between_markers(readme, "defenses", lines)
    return sorted(made)


def rows_with_utility(rows: Sequence[Row], utility: Mapping[str, Utility]) -> list[dict[str, object]]:
    """Each row with the test AUC of its defense, and its interval; None where none was measured."""
    found = []
    for row in rows:
        worth = utility.get(row.defense)
        auc = (worth.auc.value, worth.auc.low, worth.auc.high) if worth else (None,) * 3
        found.append(row.as_json() | dict(zip(("auc", "auc_low", "auc_high"), auc, strict=True)))
    return found


def _points(measured: Measured) -> list[TradeOff]:
    points = []
    for headline in measured.headlines:
        worst, worth = headline.worst, measured.utility.get(headline.defense)
        gain = worst.ssim_gain() if worst else None
        if worst and gain and worth:
            is_heuristic = DEFENSES[headline.defense].is_heuristic
            points.append(TradeOff(headline.defense, worth.auc, gain, worst.cell.attack, is_heuristic))
    return points


def _title(measured: Measured) -> str:
    worst = [headline.worst for headline in measured.headlines if headline.worst]
    cell, images = worst[0].cell, min(group.images for group in worst)
    return (
        f"A defense under its worst attacker ({cell.case}, {cell.model} {cell.state}, batch {cell.batch}, "
        f"at least {images} images each),\nand what the federated model is worth under it. "
        "Red: heuristics. Bars: 95 % intervals."
    )


def _gallery(found: Sequence[Headline], store: RunStore) -> bytes | None:
    """The first images with what the naive and the worst attacker found of them, a line a defense."""
    truth: list[Pixels] = []
    lines = []
    for headline in found:
        worst = _pictures(headline.worst, store)
        if headline.worst is None or not worst:
            continue
        truth = truth or [original for original, _, _ in worst]
        naive = [(picture, caption) for _, picture, caption in _pictures(headline.naive, store)]
        by = headline.naive.cell.attack if headline.naive else "nobody"
        both = (naive, [(picture, caption) for _, picture, caption in worst])
        lines.append(Shown(headline.defense, *both, f"naive: {by}", f"worst: {headline.worst.cell.attack}"))
    return draw_gallery(truth, lines) if lines else None


def _pictures(group: CellRows | None, store: RunStore) -> list[tuple[Pixels, Pixels, str]]:
    """Original, what was found of it, and its PSNR, of the first image of the first updates."""
    shown = []
    for row in group.rows[:_SHOWN] if group else ():
        outcome = store.outcome(row.run)
        if outcome is None:
            continue
        truth, scores = truth_of(outcome.arrays), scores_of(outcome.arrays)
        if scores.images is not None:
            shown.append((truth.images[0].numpy(), scores.images[0].numpy(), f"{scores.psnr[0]:.1f} dB"))
    return shown
