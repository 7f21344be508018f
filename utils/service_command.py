"""``director service`` and ``envoy service``: print the unit, or put it into one's own systemd. Starts nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from .command_line import errors_in_words
from .errors import StorageError
from .service_unit import Service, Side


def print_or_install(side: Side, folder: Path, account: str, *, own: bool) -> None:
    """Print a unit for the machine's systemd, or write one into the caller's own.

    Args:
        side: whose.
        folder: of the director or envoy.
        account: as whom the machine's systemd runs it.
        own: write it into the caller's own systemd instead.
    """
    with errors_in_words():
        service = Service(side, Path(sys.executable), Path(os.path.abspath(folder)), "" if own else account)  # noqa: PTH100
        if not own:
            typer.echo(service.text(), nl=False)
            return
        path = _install(service)
    typer.echo(f"{path}: written. It starts with:")
    typer.echo(f"  systemctl --user daemon-reload && systemctl --user enable --now {service.name}")
    typer.echo("and goes on after you log out once `loginctl enable-linger` was said. ProtectSystem and an account of")
    typer.echo("its own are only in a unit of the machine's systemd: without --user.")


def _install(service: Service) -> Path:
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = home / "systemd" / "user" / service.name
    try:
        if path.exists() and path.read_text("utf-8") != service.text():
            raise StorageError(f"{path}: there is another one already; nothing was overwritten. Move it away first")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(service.text(), "utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    return path
