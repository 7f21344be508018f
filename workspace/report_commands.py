"""``fedveil report privacy``: what a federation's sites have spent, in one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words

report = typer.Typer(help="Reports that are put together from what sites hand over.", no_args_is_help=True)


@report.command("privacy")
def privacy(
    files: Annotated[list[Path], typer.Argument(help="Of each site: envoy privacy report --json > SITE.json")],
    as_json: Annotated[bool, typer.Option("--json", help="All of it.")] = False,
) -> None:
    """total_epsilon with its delta, unit and mechanism; participants; secure aggregation; leakage score."""
    from .privacy_report import as_lines, combined, read_report

    with errors_in_words():
        found = combined({file.stem: read_report(file) for file in files})
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for line in as_lines(found):
        typer.echo(line)


@report.callback()
def _only() -> None:
    """Keep ``privacy`` a command of its own, though it is the only one."""
