"""``envoy roster show``, ``fetch`` and ``accept``: whom this site sums with, as its data manager decides."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..utils.command_line import errors_in_words, this_user
from ..utils.errors import IdentityError

if TYPE_CHECKING:
    from ..utils.roster import Roster
    from .enrolment import Credentials
    from .rest_link import RestLink

_CONSOLE = Console(soft_wrap=True)
_DEFAULT = Path("fedveil-envoy")

roster = typer.Typer(help="Show, fetch and accept whom this site sums its updates with.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]


@roster.command()
def show(folder: FolderOption = _DEFAULT) -> None:
    """The roster that this site accepted."""
    from .accepted_roster import load_roster
    from .enrolment import load_credentials

    with errors_in_words():
        credentials = load_credentials(folder, time.time())
        accepted = load_roster(folder, credentials.peer, credentials.public_identity)
    print_roster(accepted)


@roster.command()
def fetch(folder: FolderOption = _DEFAULT) -> None:
    """Ask the director for its roster, and show how it differs from the accepted one. Accepts nothing."""
    from ..utils.roster import difference, grouped
    from .accepted_roster import offer_roster
    from .config import load_config
    from .renewing import usable_credentials

    with errors_in_words():
        credentials = usable_credentials(folder, load_config(folder), time.time())
        offered, accepted = _asked(folder, credentials), _accepted(folder, credentials)
        changes = difference(accepted, offered)
        _say(*changes)
        offer_roster(folder, offered, credentials.peer, credentials.public_identity)
    if not changes:
        _say(f"No change: this site has accepted the roster {grouped(offered.digest)}.")
        return
    organizations = len(offered.organizations(offered.names))
    _say(
        f"{len(offered.entries)} envoys of {organizations} organizations; digest {grouped(offered.digest)}",
        "Nothing was accepted. Call each site that is marked above, let it read out its fingerprint"
        " (`envoy roster show` or `envoy roster fetch` prints it there), then:",
        f"  envoy roster accept {offered.digest} --folder {folder}",
    )


@roster.command()
def accept(
    digest: Annotated[str, typer.Argument(help="As `envoy roster fetch` printed it, all 64 digits.")],
    folder: FolderOption = _DEFAULT,
) -> None:
    """Accept the roster that was fetched, if it has exactly this digest: from then on this site sums with these."""
    from ..utils.certificates import read_identity_key
    from ..utils.roster import difference
    from .accepted_roster import accept_roster, check_own_entry, offered_roster
    from .audit_door import logging_to
    from .enrolment import load_credentials

    with errors_in_words():
        credentials = load_credentials(folder, time.time())
        before = _accepted(folder, credentials)
        key = read_identity_key(credentials.identity_key, "the identity key")
        accepted = check_own_entry(offered_roster(folder, digest), credentials.peer, credentials.public_identity)
        with logging_to(folder) as log:  # an acceptance that cannot be logged is not made
            log.accepted_roster(accepted.digest, accepted.names, this_user())
        accept_roster(folder, accepted, credentials.peer, key)
    _say(*difference(before, accepted))
    _say(f"{len(accepted.entries)} envoys accepted, in {folder}/. An envoy that runs reads it at its next secure sum.")


def _accepted(folder: Path, credentials: Credentials) -> Roster | None:
    """What was accepted before; one that this site did not sign counts for nothing, and is named."""
    from .accepted_roster import accepted_roster

    try:
        return accepted_roster(folder, credentials.public_identity)
    except IdentityError as error:
        _say(f"What was accepted before counts for nothing: {error}")
        return None


def print_roster(shown: Roster) -> None:
    """One line an envoy, with the fingerprint that is read out by phone; then the digest."""
    from rich.markup import escape

    from ..utils.roster import grouped

    table = Table("envoy", "organization", "fingerprint of the identity key")
    for entry in shown.entries:
        table.add_row(entry.name, escape(entry.organization), entry.fingerprint)
    _CONSOLE.print(table)
    organizations = len(shown.organizations(shown.names))
    _say(f"{len(shown.entries)} envoys of {organizations} organizations; digest {grouped(shown.digest)}")


def _asked(folder: Path, credentials: Credentials) -> Roster:
    from ..utils.roster import roster_of
    from .client import DirectorClient
    from .config import load_config
    from .renewing import dial_rest, is_over_https

    config = load_config(folder)
    client: DirectorClient | RestLink
    if is_over_https(folder):
        client = dial_rest(folder, config, credentials)
    else:
        address = config.dialled(credentials.addresses)[0]
        way = config.way_to(address, folder)
        client = DirectorClient(address, credentials.chain, credentials.leaf_key, credentials.root, way)
    try:
        return roster_of(client.roster())
    finally:
        client.close()


def _say(*lines: str) -> None:
    for line in lines:
        _CONSOLE.print(line, markup=False, highlight=False)
