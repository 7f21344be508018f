"""``fedveil report privacy``: what a federation's sites have spent, in one page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words
from ..utils.messages import NAME_PATTERN, RunId

report = typer.Typer(help="Reports that are put together from what sites hand over.", no_args_is_help=True)


@report.command("privacy")
def privacy(
    sources: Annotated[
        list[str],
        typer.Argument(help="Each site's envoy privacy report --json, as files; or one run, as its director knows it."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="All of it.")] = False,
    folder: Annotated[
        Path, typer.Option("--folder", "-f", help="The director's, for a run.", envvar="FEDVEIL_DIRECTOR")
    ] = Path("fedveil-director"),
    address: Annotated[str | None, typer.Option(help="host:port of a director that runs elsewhere.")] = None,
) -> None:
    """total_epsilon with its delta, unit and mechanism; participants; secure aggregation; leakage score."""
    from ..director.operator_client import OperatorClient
    from .privacy_report import as_lines, combined, of_run, read_report

    with errors_in_words():
        if len(sources) == 1 and NAME_PATTERN.fullmatch(sources[0]) and not Path(sources[0]).exists():
            with OperatorClient(folder, address, time.time()) as client:
                found = of_run(client.show(RunId(sources[0])))
        else:
            found = combined({Path(one).stem: read_report(Path(one)) for one in sources})
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for line in as_lines(found):
        typer.echo(line)


@report.callback()
def _only() -> None:
    """Keep ``privacy`` a command of its own, though it is the only one."""
