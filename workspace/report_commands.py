"""``fedveil report privacy`` and ``fairness``: what a federation's sites have spent, and how well models do at each."""

from __future__ import annotations

import json
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words
from ..utils.messages import NAME_PATTERN, RunId


class Form(Enum):
    """How a report is written."""

    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"


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


@report.command("fairness")
def fairness(
    run: Annotated[str, typer.Argument(help="As `director experiment list` names it.")],
    form: Annotated[Form, typer.Option(help="How it is written.")] = Form.MARKDOWN,
    folder: Annotated[Path, typer.Option("--folder", "-f", help="The director's.", envvar="FEDVEIL_DIRECTOR")] = Path(
        "fedveil-director"
    ),
    address: Annotated[str | None, typer.Option(help="host:port of a director that runs elsewhere.")] = None,
) -> None:
    """Is the model as good for each site and subgroup? Of the sites that publish it, in their last such round."""
    from ..director.fairness_pages import as_csv, as_markdown
    from ..director.fairness_report import of_view, to_json
    from ..director.operator_client import OperatorClient

    with errors_in_words(), OperatorClient(folder, address, time.time()) as client:
        found = of_view(client.show(RunId(run)))
    match form:
        case Form.MARKDOWN:
            text = as_markdown(found)
        case Form.CSV:
            text = as_csv(found)
        case Form.JSON:
            text = json.dumps(to_json(found), indent=2) + "\n"
    typer.echo(text, nl=False)
