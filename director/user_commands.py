"""``director user add``: the first people of the hub, made at the director's folder. All others: the REST API."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words, this_user
from ..utils.errors import ConfigError

users = typer.Typer(help="People who use the REST API.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]
_FOLDER = Path("fedveil-director")


@users.callback()
def _group() -> None:
    """Keeps ``add`` a command of its own."""


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="To sign in with.")],
    organization: Annotated[str, typer.Option(help="Whom the user acts for; it is made where there is none.")],
    role: Annotated[list[str] | None, typer.Option(help="One of the presets; repeat it.")] = None,
    full_name: Annotated[str, typer.Option(help="For people.")] = "",
    password_file: Annotated[Path | None, typer.Option(help="Holds the password; else it is asked for.")] = None,
    folder: FolderOption = _FOLDER,
) -> None:
    """Add a user; beside a director that runs, or without one."""
    from .audit import DirectorAudit
    from .config import load_config
    from .database import open_database
    from .hub.bootstrap import add_first_user

    with errors_in_words():
        config = load_config(folder)
        password = _password(password_file)
        engine = open_database(config.database_url(folder), config.is_durable)
        audit = DirectorAudit.open(folder, config.federation)
        try:
            user = add_first_user(
                engine, audit, config.federation, name, full_name, organization, role or (), password, this_user()
            )
        finally:
            audit.close()
            engine.dispose()
    typer.echo(f"{user.name} ({organization}) may sign in. An authenticator app: POST /api/v1/users/{user.id}/codes")


def _password(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text("utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--password-file {file}: cannot be read") from error
    if not sys.stdin.isatty():
        raise ConfigError("no terminal to ask for the password at; give it with --password-file")
    password = getpass.getpass("Password: ")
    if password != getpass.getpass("The same again: "):
        raise ConfigError("the two passwords differ; nothing was made")
    return password
