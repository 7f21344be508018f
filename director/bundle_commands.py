"""``director bundle``: everything that a site installs, for a site without a way to any package registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words, in_bytes


def bundle(
    folder: Annotated[Path, typer.Argument(help="The bundle: a new folder; or one that is there, with --verify.")],
    extras: Annotated[str, typer.Option(help="Of fedveil, by commas: postgres,dp.")] = "",
    wheel: Annotated[Path | None, typer.Option(help="Of fedveil; else it is built from the checkout.")] = None,
    constraints: Annotated[Path | None, typer.Option(help="Versions to take; else the checkout's.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check a bundle instead of making one.")] = False,
    digest: Annotated[str | None, typer.Option(help="With --verify: as the bundle's maker reads it out.")] = None,
) -> None:
    """Make an offline wheelhouse for this platform and this Python, each wheel with its SHA-256; or check one."""
    from .bundle import make_bundle, verify_bundle

    with errors_in_words():
        if verify:
            found = verify_bundle(folder, digest)
        else:
            named = [extra.strip() for extra in extras.split(",") if extra.strip()]
            found = make_bundle(folder, wheel, named, constraints)
    typer.echo(f"{folder}: {found.wheels} wheels, {in_bytes(found.num_bytes)}")
    typer.echo(f"SHA-256 of requirements.txt, to be read out to sites: {found.digest}")
    if not verify:
        typer.echo("At the site, without a network: sh install.sh /opt/fedveil")
