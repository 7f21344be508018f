"""``fedveil model verify``: a model's file and its signed card, checked from the files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words

models = typer.Typer(help="Models that were downloaded.", no_args_is_help=True)


@models.callback()
def _group() -> None:
    """Keeps ``verify`` a command of its own."""


@models.command("verify")
def verify_model(
    file: Annotated[Path, typer.Argument(help="The safetensors file.")],
    card: Annotated[Path, typer.Option(help="Its signed card: GET /api/v1/models/ID/card?format=json, as it came.")],
    key: Annotated[
        str,
        typer.Option(help="Of the director's audit log: the public key in hexadecimal, its fingerprint, or a PEM."),
    ] = "",
    log: Annotated[
        Path | None,
        typer.Option(help="An envoy's own audit.jsonl, or the director's: the key must be that log's director's."),
    ] = None,
) -> None:
    """Is the file the one that a director signed the card of, and was neither changed? Exit status 1 if not."""
    from .model_check import check_model

    with errors_in_words():
        lines = check_model(file, card, key, log)
    for line in lines:
        typer.echo(line)
