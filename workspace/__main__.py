"""The command line ``fedveil``: what composes director, envoys and plans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..utils.errors import FederationError

_CONSOLE = Console()

app = typer.Typer(
    help="fedveil: the demo, simulations, plans and benchmarks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
plans = typer.Typer(help="Build plans.", no_args_is_help=True)
bench = typer.Typer(help="Measure.", no_args_is_help=True)
app.add_typer(plans, name="plan")
app.add_typer(bench, name="bench")


@bench.command("round")
def bench_round(
    mb: Annotated[float, typer.Option(help="Size of the model, in 1e6 bytes.")] = 40.0,
    envoys: Annotated[int, typer.Option(help="How many.")] = 4,
    rounds: Annotated[int, typer.Option(help="How many; the first does not count.")] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """One round without training: the real director, real envoys, the full path."""
    from .benchmarks.round import as_json, measure_round

    with _errors_in_words():
        figures = json.dumps(as_json(measure_round(mb, envoys, rounds)))
    typer.echo(figures)
    if json_file:
        json_file.write_text(figures + "\n", "utf-8")


def main() -> None:
    """The console script ``fedveil``."""
    app()


@contextmanager
def _errors_in_words() -> Iterator[None]:
    try:
        yield
    except FederationError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    main()
