"""What the three command lines share: an error leaves as one line on standard error and exit status 1; words for sizes.

Plumbing, like ``config`` and ``logs``: ``director``, ``envoy`` and ``fedveil`` are typed side by side in one
shell, and a script that looks at their exit status or last line need not know which of them it called.
"""

from __future__ import annotations

import getpass
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from .errors import FederationError, TrainingError


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turn an expected error into its line; where a plan's own code raised, its traceback comes before.

    Raises:
        typer.Exit: with status 1, in place of a ``FederationError``.
    """
    try:
        yield
    except FederationError as error:
        if isinstance(error, TrainingError) and error.__cause__ is not None:  # the researcher's own code
            typer.echo("".join(traceback.format_exception(error.__cause__)), err=True, nl=False)
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error


def in_bytes(count: int) -> str:
    """A number of bytes in words.

    >>> in_bytes(21_600), in_bytes(2_838_000), in_bytes(59_554_300_000)
    ('21.6 kB', '2.8 MB', '59.6 GB')
    """
    if count >= 10_000_000_000:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:,.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"


def this_user() -> str:
    """Who types a command, by the name that this machine knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry in passwd
        return "unknown"
