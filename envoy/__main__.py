"""The command line of an envoy: ``envoy join``, ``start``, ``status``, ``outbox``, ``data ...``.

Here things are built, and nowhere else in this room. Errors leave as one line on standard error and exit status 1.
"""

from __future__ import annotations

import datetime as dt
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..utils.command_line import errors_in_words
from ..utils.errors import ConfigError
from ..utils.logs import log_to_stderr
from .approval_commands import approve_plan, diff_plan, list_plans, reject_plan, show_plan
from .audit_commands import audit
from .doctor_commands import doctor
from .identity_commands import identity, renew
from .join_commands import join, register
from .plan_commands import plan
from .privacy_commands import privacy
from .records import describe
from .roster_commands import roster
from .splits import GivenSplits, SplitRule
from .veto_commands import stop, veto

DEFAULT_FOLDER = Path("fedveil-envoy")
_CONSOLE = Console(soft_wrap=True)

app = typer.Typer(
    help="An envoy: trains at a site, and owns everything that leaves it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Add, list and check this site's datasets.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(plan, name="plan")
app.add_typer(privacy, name="privacy")
app.add_typer(roster, name="roster")
app.add_typer(audit, name="audit")
app.add_typer(identity, name="identity")
app.command()(renew)
app.command("doctor")(doctor)
plan.command("list")(list_plans)
plan.command("show")(show_plan)
plan.command("diff")(diff_plan)
plan.command("approve")(approve_plan)
plan.command("reject")(reject_plan)
app.command()(join)
app.command()(register)
app.command()(veto)
app.command()(stop)

Folder = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]


@app.command()
def start(folder: Folder = DEFAULT_FOLDER) -> None:
    """Work for the federation until told to end (Ctrl-C, SIGTERM). Reconnects for as long as it takes."""
    from .config import load_config
    from .registration import load_access
    from .renewing import connect
    from .site import boxed_trainer, site_of

    with errors_in_words():
        config = load_config(folder)
        log_to_stderr(config.log_level)
        credentials, link, renewer = connect(folder, config, time.time())
        access = load_access(folder)
        address = config.dialled(credentials.addresses)[0] if access is None else access.url
        site = site_of(folder, config, credentials, link, *boxed_trainer(folder, config))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: site.end())
        _CONSOLE.print(f"envoy {credentials.peer.name} works for {credentials.peer.federation} at {address}")
        renewer.start()
        site.run()
        renewer.close()
        site.close()


@app.command()
def service(
    folder: Folder = DEFAULT_FOLDER,
    account: Annotated[str, typer.Option(help="As whom it runs: an account of its own.")] = "fedveil",
    own: Annotated[bool, typer.Option("--user", help="Write it into your own systemd instead.")] = False,
) -> None:
    """Print a unit for systemd that starts this envoy with the machine, walled in."""
    from ..utils.service_command import print_or_install
    from ..utils.service_unit import Side

    print_or_install(Side.ENVOY, folder, account, own=own)


@app.command()
def status(folder: Folder = DEFAULT_FOLDER) -> None:
    """What the envoy that runs in this folder does now."""
    from .control_socket import ask_status
    from .identity_commands import certificate_line

    with errors_in_words():
        reply = ask_status(folder)
        certificate = certificate_line(folder)
    last = (
        dt.datetime.fromtimestamp(reply.last_receipt_at, dt.UTC).isoformat(" ", "seconds")
        if reply.last_receipt_at
        else "never"
    )
    table = Table(show_header=False)
    table.add_row("envoy", reply.name)
    table.add_row("connected", "yes" if reply.is_connected else "no")
    table.add_row("works on", reply.task or "nothing")
    table.add_row("answers received", f"{reply.rounds_received}, last {last}")
    table.add_row("not approved", f"{reply.not_approved} tasks declined since the start")
    table.add_row("certificate", certificate)
    table.add_row("last error", reply.last_error or "none")
    _CONSOLE.print(table)


@app.command()
def outbox(
    folder: Folder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, with whole digests.")] = False,
) -> None:
    """What left this site, the oldest first."""
    import json

    from .journal import read_outbox

    with errors_in_words():
        departures = read_outbox(folder)
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in departures], indent=1))
        return
    columns = ("when", "task", "kind", "bytes", "digest", "passed", "score", "metrics", "received")
    _print_lines(["  ".join(cell or "-" for cell in row) for row in [columns, *(one.row() for one in departures)]])


@data.command("add")
def add_data(
    name: Annotated[str, typer.Argument(help="The name that plans ask for.")],
    path: Annotated[Path, typer.Argument(help="Image folder, zip of one, npz, CSV, TSV or Parquet.")],
    folder: Folder = DEFAULT_FOLDER,
    classes: Annotated[str, typer.Option(help="normal,pneumonia; or ill=1|2,healthy=0 where files say so.")] = "",
    patient: Annotated[str | None, typer.Option(help="Column, or pattern with a group: '(person\\d+)'.")] = None,
    label: Annotated[str | None, typer.Option(help="The label's column, of a table.")] = None,
    columns: Annotated[str, typer.Option(help="Features of a table; every numeric column by default.")] = "",
    header: Annotated[str, typer.Option(help="Column names of a table that has none.")] = "",
    split_column: Annotated[str | None, typer.Option(help="A column that says train, validation or test.")] = None,
    modality: Annotated[str, typer.Option(help="How images were made, in DICOM's words: CR, DX, MG, CT.")] = "",
    split: Annotated[str, typer.Option(help="Shares of train, validation and test.")] = "0.8,0.1,0.1",
    given: Annotated[GivenSplits, typer.Option(help="Splits that the files come with.")] = GivenSplits.KEEP,
    replace: Annotated[bool, typer.Option(help="Record a dataset of that name anew.")] = False,
) -> None:
    """Look at every example once, quarantine what cannot be read, and fix the split. Nothing is copied."""
    from .datasets import DatasetRegistry
    from .inspection import inspect
    from .records import DataOptions

    with errors_in_words():
        shares = _shares(split)
        options = DataOptions(
            classes=_listed(classes),
            patient=patient,
            label_column=label,
            columns=_listed(columns),
            header=_listed(header),
            split_column=split_column,
            modality=modality.upper(),
            rule=SplitRule(*shares, given=given),
        )
        found = inspect(name, path, options, time.time())
        DatasetRegistry(folder / "datasets").add(found.record, found.index, replace=replace)
    _print_lines(found.report.lines())
    _CONSOLE.print(_rows(describe(found.record)))


@data.command("list")
def list_data(
    folder: Folder = DEFAULT_FOLDER,
    labels: Annotated[bool, typer.Option(help="Show the counts of each class too.")] = False,
) -> None:
    """The datasets of this site."""
    from .datasets import DatasetRegistry

    with errors_in_words():
        registry = DatasetRegistry(folder / "datasets")
        tables = [_rows(describe(one, registry.index(one.name) if labels else None)) for one in registry.list()]
    for table in tables:
        _CONSOLE.print(table)
    if not tables:
        _CONSOLE.print("No dataset yet: `envoy data add NAME PATH`.")


@data.command("check")
def check_data(
    name: Annotated[str, typer.Argument(help="As `envoy data list` names it.")], folder: Folder = DEFAULT_FOLDER
) -> None:
    """Are the files still those that were recorded? Exit status 1 if any is missing or changed."""
    from .datasets import DatasetRegistry

    with errors_in_words():
        report = DatasetRegistry(folder / "datasets").check(name)
    _print_lines(report.lines())
    raise typer.Exit(0 if report.is_unchanged else 1)


def main() -> None:
    """The console script ``envoy``."""
    app()


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(piece) for piece in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--split {text!r}: expected three shares, as in 0.8,0.1,0.1") from error
    return train, validation, test


def _listed(text: str) -> tuple[str, ...]:
    return tuple(piece.strip() for piece in text.split(",") if piece.strip())


def _rows(rows: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False)
    for row in rows:
        table.add_row(*row)
    return table


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        _CONSOLE.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    main()
