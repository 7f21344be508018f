"""``director roster show``: who is in the federation, for the operator to read out. Each site accepts for itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..utils.command_line import errors_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..utils.roster import Roster
    from .identity_store import Identity

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

    with errors_in_words():
        config = load_config(folder)
        engine = open_database(config.database_url(folder), config.is_durable)
        joined = members_as_roster(config.federation, IdentityStore(engine).identities())
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


def members_as_roster(federation: str, members: Iterable[Identity]) -> Roster:
    """The envoys among the members, as a site would accept them.

    Raises:
        IdentityError: a key that is none, or that two of them have.
    """
    from ..utils.identity import Role
    from ..utils.messages import EnvoyName
    from ..utils.roster import Roster, RosterEntry

    envoys = (one for one in members if one.role == Role.ENVOY.value)
    entries = (RosterEntry(EnvoyName(one.name), one.organization, one.identity_key) for one in envoys)
    return Roster(federation, tuple(entries))
