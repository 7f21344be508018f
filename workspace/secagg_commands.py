"""``fedveil secagg``: what a director sees of secure sums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..utils.command_line import errors_in_words

secagg = typer.Typer(help="Look at secure sums from the director's side.", no_args_is_help=True)
_CONSOLE = Console()


@secagg.callback()
def _of_secure_sums() -> None:
    """More than one command will stand here."""


@secagg.command("view")
def view(
    out: Annotated[Path, typer.Option(help="Takes secagg.html and secagg.json.")] = Path("runs/secagg"),
    run: Annotated[
        Path | None,
        typer.Option(help="sums/RUN of a director with keep_sums = true; by default a federation of four is run here."),
    ] = None,
) -> None:
    """Everything that a director saw of real secure sums, tested and attacked: one page. A smoke test, and no proof."""
    with errors_in_words():
        from .secagg_view import FIGURES, PAGE, make_page

        made = make_page(out, run, _CONSOLE)
        for scheme in made.schemes:
            found = len(scheme.test.findings)
            _CONSOLE.print(
                f"{scheme.name}: {len(scheme.test.looks)} looks, {found} found something", soft_wrap=True, markup=False
            )
        for one in made.attacks:
            null = "" if one.null_psnr is None else f" (null {one.null_psnr:.1f})"
            _CONSOLE.print(f"attack on {one.name}: {one.psnr:.1f} dB{null}", soft_wrap=True, markup=False)
        _CONSOLE.print(f"{out / PAGE}, {out / FIGURES}", soft_wrap=True, markup=False)
