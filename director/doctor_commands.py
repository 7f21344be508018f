"""``director doctor``: is everything here that a director needs, and what is to be done where it is not?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]


def doctor(
    folder: FolderOption = Path("fedveil-director"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array of findings.")] = False,
) -> None:
    """Check all that this director needs, and say how to repair what is not well. Exit status 1 if anything fails."""
    from ..utils.diagnosis import in_json, in_lines, is_well
    from .doctor import examine

    found = list(examine(folder, time.time))
    if as_json:
        typer.echo(in_json(found))
    else:
        for line in in_lines(found):
            typer.echo(line)
    raise typer.Exit(0 if is_well(found) else 1)
