"""``director audit verify``: is this director's log whole, and the one that the sites saw?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words

audit = typer.Typer(help="Check the director's log.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]


@audit.callback()
def _group() -> None:
    """Keeps ``verify`` a command of its own."""


@audit.command("verify")
def verify_audit(
    folder: FolderOption = Path("fedveil-director"),
    heads: Annotated[
        list[Path] | None, typer.Option(help="What `envoy audit heads` printed at a site; repeat it for each site.")
    ] = None,
) -> None:
    """Is the log whole, and does it hold every head that the sites were given? Exit status 1 if not."""
    from ..utils.roster import key_fingerprint
    from .audit import LOG_FILE, read_heads, verify_log

    with errors_in_words():
        given = [head for file in heads or () for head in read_heads(file)]
        found = verify_log(folder, given)
    typer.echo(f"{folder / LOG_FILE}: {found.entries} entries, whole; last {found.hash.hex()}")
    typer.echo(f"signed by the key {key_fingerprint(found.key)}")
    against = f"holds all {found.heads} heads that the sites gave" if given else "compared with no head of a site"
    typer.echo(against)
