"""``fedveil attack``: what an update gives away, measured from the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..utils.command_line import errors_in_words

if TYPE_CHECKING:
    from ..gradient_leakage.cells import Cell

_CONSOLE = Console()

attack = typer.Typer(help="Attack updates, and measure what they give away.", no_args_is_help=True)


@attack.command("list")
def list_attacks() -> None:
    """Every attack: its paper, who could mount it, and what it must know."""
    from .attack_run import attack_lines

    with errors_in_words():
        for line in attack_lines():
            typer.echo(line)


@attack.command("run")
def run(
    attack_name: Annotated[str, typer.Option("--attack", help="One of `fedveil attack list`.")],
    images: Annotated[
        Path | None, typer.Option(help="npz (images, labels) or folder of images by class; each is attacked.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A network of the benchmark, or module:callable; by default tanh-cnn.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images an update; by default 1.")] = None,
    local_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of plain SGD at the site; by default it sends a gradient.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the local steps; by default 0.01.")] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Of the model; by default as the labels ask for.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=3, help="Resize a folder's images to so many pixels a side.")
    ] = None,
    know: Annotated[
        str | None, typer.Option(help="What the attacker knows, by commas; by default what the attack needs.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="name=value, of the attack; may come again.")] = None,
    public: Annotated[Path | None, typer.Option(help="The attacker's own images, as --images.")] = None,
    update: Annotated[
        Path | None,
        typer.Option(
            help="A recorded update: an envoy's update.f32, a director's NAME.spool, or NAME.masked of a secure sum."
        ),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="The bundle of the plan whose update it is.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The model of that round, safetensors; by default the bundle's first.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Images that made the recorded update.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, as envoys send, or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write truth and reconstruction here, npz.")] = None,
    gif: Annotated[Path | None, typer.Option(help="Write the first image as it emerges here.")] = None,
) -> None:
    """Attack your own images and model, or a recorded update, and score what was found."""
    from .attack_outputs import Outputs
    from .attack_run import AttackRun, run_attack

    with errors_in_words():
        asked = AttackRun(
            attack=attack_name,
            images=images,
            model=model,
            batch=batch,
            local_steps=local_steps,
            learning_rate=learning_rate,
            classes=classes,
            image_size=image_size,
            know=know,
            options=tuple(option or ()),
            public=public,
            update=update,
            plan=plan,
            weights=weights,
            examples=examples,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        try:
            run_attack(asked, Outputs(json_file, save, gif), _CONSOLE)
        except KeyboardInterrupt as interrupt:
            typer.echo(str(interrupt) or "interrupted", err=True)
            raise typer.Exit(130) from None


@attack.command("bench")
def bench(
    suite: Annotated[str, typer.Option(help="smoke (minutes), full (an hour on two cores) or claim.")] = "smoke",
    out: Annotated[Path, typer.Option(help="Keeps runs and rows; the same folder goes on where it ended.")] = Path(
        "runs/leakage"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here, as a list.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes; by default one a core, 0 for none but this.")
    ] = None,
    gif: Annotated[bool, typer.Option("--gif", help="Draw reconstructions as they emerge, too.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the suite's cells and run nothing.")] = False,
    targets: Annotated[
        int | None, typer.Option(min=1, help="Attacked updates a cell; by default as the suite says.")
    ] = None,
    defenses: Annotated[
        str | None, typer.Option(help="all, or names by commas: the suite of these defenses, naive and adaptive.")
    ] = None,
    utility: Annotated[bool, typer.Option(help="With --defenses: also train the demo's federation under each.")] = True,
    utility_rounds: Annotated[int, typer.Option(min=1, help="Of each of these trainings.")] = 6,
    utility_seeds: Annotated[int, typer.Option(min=1, help="How many of these trainings for each defense.")] = 3,
    readme: Annotated[
        Path | None, typer.Option(help="With --defenses: write the table here too, between its markers.")
    ] = None,
) -> None:
    """Attack the cells of a suite, and write rows, pictures and a page; with --defenses also a figure and a table."""
    from .attack_bench import cells_table, draw_report, run_bench, summary_of, verdicts_of, write_rows

    with errors_in_words():
        names = _defenses(defenses)
        cells = _cells(suite, names, targets)
        if list_:
            _CONSOLE.print(cells_table(suite, cells))
            return
        made: list[Path] = []
        try:
            rows = run_bench(cells, out, len(os.sched_getaffinity(0)) if workers is None else workers, _CONSOLE)
            described: list[dict[str, object]] = [row.as_json() for row in rows]
            if names:
                from .defense_bench import compare

                trained = (utility_rounds, range(utility_seeds)) if utility else None
                described, made = compare(names, cells, rows, out, readme, _CONSOLE, trained)
            if json_file:
                write_rows(described, json_file)
            made.append(draw_report(out, _CONSOLE, gif=gif))
        except KeyboardInterrupt:
            typer.echo(f"Interrupted. What had ended is in {out}; the same command goes on from there.", err=True)
            raise typer.Exit(130) from None
        _CONSOLE.print(summary_of(rows))
        for verdict in verdicts_of(rows):
            _CONSOLE.print(verdict, soft_wrap=True)
        for path in made:
            _CONSOLE.print(str(path), soft_wrap=True)


def _defenses(asked: str | None) -> tuple[str, ...]:
    """The names of ``--defenses``; none where it was not given."""
    from ..gradient_leakage.defense_suites import chosen

    return () if asked is None else chosen(asked)


def _cells(suite: str, defenses: tuple[str, ...], targets: int | None) -> tuple[Cell, ...]:
    from dataclasses import replace

    from ..gradient_leakage.defense_suites import defense_cells
    from ..gradient_leakage.suites import suite_named

    cells = defense_cells(defenses, suite) if defenses else suite_named(suite)
    return cells if targets is None else tuple(replace(cell, targets=targets) for cell in cells)


@attack.command("report")
def report(
    out: Annotated[Path, typer.Option(help="The folder of a benchmark; the page is written there.")] = Path(
        "runs/leakage"
    ),
    gif: Annotated[bool, typer.Option(help="Draw reconstructions as they emerge.")] = True,
) -> None:
    """Write the page and the pictures of what a benchmark found so far."""
    from .attack_bench import draw_report

    with errors_in_words():
        _CONSOLE.print(str(draw_report(out, _CONSOLE, gif=gif)), soft_wrap=True)
