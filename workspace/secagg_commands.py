"""``fedveil secagg``: what a director sees of secure sums."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..utils.command_line import errors_in_words
from ..utils.errors import StorageError

if TYPE_CHECKING:
    from .secagg_view import View

secagg = typer.Typer(help="Look at secure sums from the director's side.", no_args_is_help=True)
_CONSOLE = Console()
_PAGE, _FIGURES = "secagg.html", "secagg.json"


@secagg.callback()
def _of_secure_sums() -> None:
    """More than one command may stand here; so one alone is called by its name as well."""


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
        made = _looked_at(run)
        _write(made, out)
        for scheme in made.schemes:
            found = len(scheme.test.findings)
            _say(f"{scheme.name}: {len(scheme.test.looks)} looks, {found} found something")
        for one in made.attacks:
            null = "" if one.null_psnr is None else f" (null {one.null_psnr:.1f})"
            _say(f"attack on {one.name}: {one.psnr:.1f} dB{null}")
        _say(f"{out / _PAGE}, {out / _FIGURES}")


def _looked_at(run: Path | None) -> View:
    """Of what a director kept; else of a federation that is run here, whose truth is known."""
    from .secagg_run import read_sums, run_federation
    from .secagg_view import view_of_own, view_of_sums

    if run is not None:
        return view_of_sums(read_sums(run))
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="fedveil-secagg-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        _say("Four sites with one image each, two rounds, real processes, secure sums that are kept ...")
        own = run_federation(home)
        _say(f"Images: {own.images_are}. Looking at what the director has, and attacking it ...")
        return view_of_own(own)


def _write(made: View, out: Path) -> None:
    from .secagg_page import page_of

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _PAGE).write_text(page_of(made), "utf-8")
        (out / _FIGURES).write_text(json.dumps(made.as_json(), indent=2, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        raise StorageError(f"the page cannot be written to {out}: {error.strerror}") from error


def _say(words: str) -> None:
    _CONSOLE.print(words, soft_wrap=True, markup=False)
