"""``director roster show``: who is in the federation, for the operator to read out. Each site accepts for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..utils.command_line import errors_in_words

roster = typer.Typer(help="Show who is in the federation.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]


@roster.callback()
def _group() -> None:
    """Keeps ``show`` a command of its own."""


@roster.command()
def show(folder: FolderOption = Path("fedveil-director")) -> None:
    """The envoys that joined, with the fingerprints of their keys, and the digest that sites accept."""
    from ..utils.roster import grouped
    from .config import load_config
    from .database import open_database
    from .identity_store import IdentityStore
    from .membership import roster_of

    with errors_in_words():
        config = load_config(folder)
        engine = open_database(config.database_url(folder), config.is_durable)
        joined = roster_of(config.federation, IdentityStore(engine).identities())
        engine.dispose()
    table = Table("envoy", "organization", "fingerprint of the identity key")
    for entry in joined.entries:
        table.add_row(entry.name, entry.organization, entry.fingerprint)
    console = Console(soft_wrap=True)
    console.print(table)
    organizations = len(joined.organizations(joined.names))
    console.print(
        f"{len(joined.entries)} envoys of {organizations} organizations; digest {grouped(joined.digest)}",
        highlight=False,
    )
