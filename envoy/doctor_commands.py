"""``envoy doctor``: is everything here that a site needs, and what is to be done where it is not?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]


def doctor(
    folder: FolderOption = Path("fedveil-envoy"),
    join: Annotated[Path | None, typer.Option(help="Before joining: the join file. It is not used up.")] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Hosts and ports, and the firewall request for IT.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array of findings.")] = False,
) -> None:
    """Check all that this site needs, and say how to repair what is not well. Exit status 1 if anything fails."""
    from ..utils.diagnosis import in_json, in_lines, is_well
    from .doctor import Surroundings, examine

    if network:
        _print_request(folder, join)
        return
    found = list(examine(folder, join, Surroundings(os.environ)))
    if as_json:
        typer.echo(in_json(found))
    else:
        for line in in_lines(found):
            typer.echo(line)
    raise typer.Exit(0 if is_well(found) else 1)


def _print_request(folder: Path, join: Path | None) -> None:
    from ..utils.probes import reach
    from .doctor import directors_of, proxy_to, source_of
    from .firewall import firewall_request

    with errors_in_words():
        federation, directors = directors_of(folder, join)
        proxy = proxy_to(folder, directors[0], os.environ)
    typer.echo("Needed from this machine, outbound; each is tried now:")
    for target in (proxy.address,) if proxy is not None else directors:
        answers = reach(target).stop is None
        typer.echo(f"  {target}  TCP  {'answers' if answers else 'is NOT reached'}")
    if proxy is not None:
        typer.echo(f"  through it: {', '.join(map(str, directors))}; `envoy doctor` tries the tunnel")
    typer.echo("\nThe request, for a ticket:\n")
    typer.echo(firewall_request(source_of(proxy.address if proxy else directors[0]), federation, directors, proxy))
