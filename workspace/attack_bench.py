"""``fedveil attack bench`` and ``fedveil attack report``: the benchmark on real images, watched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..gradient_leakage.benchmark import run_cells
from ..gradient_leakage.cells import Cell
from ..gradient_leakage.claims import worst_of
from ..gradient_leakage.confidence import MIN_TARGETS
from ..gradient_leakage.report import CellRows, cells_of, write_report
from ..gradient_leakage.rows import Outcome, Row, RunStore
from ..gradient_leakage.runners import InProcesses, in_this_process, one_thread
from ..utils.errors import StorageError
from .leakage_laboratory import RealLaboratory

OUT = Path("runs/leakage")


def cells_table(suite: str, cells: Sequence[Cell]) -> Table:
    """What a suite will run, before it runs."""
    table = Table(
        box=SIMPLE, title=f"suite {suite}: {len(cells)} cells, {sum(cell.targets for cell in cells)} attacked updates"
    )
    table.add_column("targets", justify="right")
    for heading in ("case", "cell", "the attacker knows"):
        table.add_column(heading, overflow="fold")
    for cell in cells:
        table.add_row(str(cell.targets), cell.case, Text(cell.title), ", ".join(cell.knowledge))
    return table


def run_bench(cells: Sequence[Cell], out: Path, workers: int, console: Console) -> tuple[Row, ...]:
    """Run what is missing of these cells; Ctrl-C keeps what had ended.

    Args:
        cells: of a suite.
        out: takes the store and the trained models.
        workers: processes; 0 runs all in this one.
        console: shows how far it is.

    Raises:
        StorageError: the folder cannot be written, or another benchmark writes there.
        DatasetError: a case's images are not there.
    """
    laboratory = RealLaboratory(out / "models")
    with RunStore(out, writing=True) as store, _progress(console) as progress, one_thread():
        runs = {run.key: run for cell in cells for run in cell.runs()}
        kept = store.keys() & runs.keys()
        missing = [cell for cell in cells if any(run.key not in kept for run in cell.runs())]
        task = progress.add_task("training models", total=len(runs), completed=len(kept))
        laboratory.train_for(missing)
        progress.update(task, description="attacking")

        def told(outcome: Outcome) -> None:
            progress.update(task, advance=1, description=runs[outcome.key].cell.title)

        runner = InProcesses(workers) if workers else in_this_process
        return run_cells(cells, laboratory, store, runner, told)


def summary_of(rows: Sequence[Row]) -> Table:
    """A line a cell, case by case; the page has the rest."""
    table = Table(caption="n: attacked updates. Read the gain over the null, not the SSIM.", box=SIMPLE, pad_edge=False)
    table.add_column("cell", overflow="fold")
    for heading in ("n", "PSNR dB", "SSIM", "null", "rank@1", "labels", "CPU-s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case, groups in groupby(cells_of(rows), key=lambda group: group.cell.case):
        table.add_row(Text(case, "bold"))
        for group in groups:
            measures = ("psnr", "ssim", "null_ssim", "reid_rank1", "label_recovery", "cpu_seconds")
            means = [group.mean(name) for name in measures]
            figures = ["-" if mean is None else f"{mean.value:.2f}" for mean in means]
            errors = sorted({f" - {row.error}" for row in group.rows if row.error})
            table.add_row(Text(group.cell.title + "".join(errors)), str(len(group.rows)), *figures)
        table.add_section()
    return table


def verdicts_of(rows: Sequence[Row]) -> Iterator[str]:
    """Of each chain that was attacked often enough for a claim: may it be said that nothing measurable leaks?"""
    chains: dict[tuple[object, ...], list[CellRows]] = {}
    for group in cells_of(rows):
        cell = group.cell
        if len(group.rows) >= MIN_TARGETS and group.mean("ssim") is not None:
            chain = (cell.case, cell.model, cell.state, cell.batch, cell.local_steps, cell.defense)
            chains.setdefault(chain, []).append(group)
    for named, groups in chains.items():
        test = worst_of(group.rows for group in groups)
        said = "no measurable leakage" if test.holds else f"no such claim: {'; '.join(test.objections)}"
        yield f"{' '.join(map(str, named))}, worst of {len(groups)} attacks: {said}"


def write_rows(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """The rows as a JSON list, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StorageError(f"the rows cannot be written to {path}: {error.strerror}") from error


def draw_report(out: Path, console: Console, *, gif: bool) -> Path:
    """Write the page and its pictures beside the store.

    Raises:
        StorageError: there is no store, no complete cell, or no room.
    """
    with RunStore(out, writing=False) as store, _progress(console) as progress:
        task = progress.add_task("drawing", total=len(cells_of(store.rows())))
        return write_report(store, out, gif=gif, told=lambda _: progress.advance(task))


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
