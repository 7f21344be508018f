"""``envoy identity show`` and ``envoy renew``: what this site shows to the director, until when, and another of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words

identity = typer.Typer(help="What this site is known by.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]
_FOLDER = Path("fedveil-envoy")


@identity.callback()
def _group() -> None:
    """Keeps ``show`` a command of its own."""


@identity.command()
def show(folder: FolderOption = _FOLDER) -> None:
    """Who this site is, until when each of its certificates is good, and its fingerprint to read out."""
    from ..utils.identity import expires_at, fingerprint, read_certificate, when
    from ..utils.roster import key_fingerprint
    from .enrolment import load_credentials

    with errors_in_words():
        held = load_credentials(folder, time.time())
        certified = read_certificate(held.identity_certificate, "the identity certificate")
        by = held.renewal_certificate
        lines = [
            f"{held.peer} ({held.organization})",
            f"identity key      {key_fingerprint(held.public_identity)}",
            f"identity          until {when(expires_at(certified))}",
            f"certificate       {certificate_line(folder)}",
            f"to renew by       {f'until {when(expires_at(by))}' if by else 'none yet: `envoy renew` gets one'}",
            f"federation's root {fingerprint(held.root)}",
        ]
    for line in lines:
        typer.echo(line)


def renew(folder: FolderOption = _FOLDER) -> None:
    """Get new certificates now. An envoy that runs does so by itself, and takes these up within a minute."""
    from ..utils.identity import when
    from .config import load_config
    from .enrolment import load_credentials
    from .renewing import over_the_network
    from .renewing import renew as renewed

    with errors_in_words():
        now = time.time()
        held = load_credentials(folder, now)
        new = renewed(folder, held, over_the_network(held, load_config(folder), folder), now)
    typer.echo(f"{new.peer} is certified until {when(new.expires_at)}.")


def certificate_line(folder: Path) -> str:
    """Until when this site's certificate is good, and from when on it is renewed.

    Raises:
        IdentityError: the folder has not joined, or what is there is damaged.
    """
    from ..utils.identity import when
    from .enrolment import load_credentials
    from .renewal import renewal_due

    now = time.time()
    held = load_credentials(folder, now)
    if now > held.expires_at:
        return f"expired on {when(held.expires_at)}; renewed at the next start, or by `envoy renew`"
    return f"until {when(held.expires_at)}, renewed from {when(renewal_due(held))} on"
