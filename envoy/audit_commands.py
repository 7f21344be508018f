"""``envoy audit verify``, ``heads`` and ``accept-director``: this site's own log, and what it saw of the director's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words

audit = typer.Typer(help="Check this site's log, and what it saw of the director's.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]
_DEFAULT = Path("fedveil-envoy")


@audit.command("verify")
def verify_audit(folder: FolderOption = _DEFAULT) -> None:
    """Is this site's log whole, and do the director's heads in it go forward? Exit status 1 if not."""
    from .audit import LOG_FILE, verify_log
    from .enrolment import load_credentials

    with errors_in_words():
        credentials = load_credentials(folder, time.time())
        found, heads = verify_log(folder, credentials.public_identity)
    typer.echo(f"{folder / LOG_FILE}: {found.entries} entries, whole, signed by this site; last {found.hash.hex()}")
    typer.echo(
        f"{heads} heads of the director's log, none that goes back. Whether all sites saw one log is shown by the"
        " director's own: `envoy audit heads` at each site, then `director audit verify --heads FILE`"
    )


@audit.command("heads")
def list_heads(folder: FolderOption = _DEFAULT) -> None:
    """Every head of the director's log that this site saw and found right, one a line: for `audit verify --heads`."""
    from .audit import heads_in

    with errors_in_words():
        for head in heads_in(folder):
            typer.echo(head.to_bytes().hex())


@audit.command("accept-director")
def accept_director(folder: FolderOption = _DEFAULT) -> None:
    """Take the director's log as it is now: it begins anew or goes back, and its operator said why. Logged."""
    from .audit_door import logging_to

    with errors_in_words(), logging_to(folder) as log:
        log.take_anew()
    typer.echo("From now on the director's log is compared with nothing that came before. This is logged.")
