"""``director backup`` and ``director restore``: the passphrase, and what a person is told."""

from __future__ import annotations

import getpass
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words, in_bytes, this_user
from ..utils.errors import PassphraseError

PASSPHRASE_VARIABLE = "FEDVEIL_BACKUP_PASSPHRASE"  # noqa: S105 - its name, not the passphrase
_LEAST_BYTES = 12

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]
PassphraseFile = Annotated[Path | None, typer.Option(help="Its first line is the backup's passphrase.")]
_FOLDER = Path("fedveil-director")


def backup(
    file: Annotated[Path, typer.Argument(help="The backup to write; it is not there yet.")],
    folder: FolderOption = _FOLDER,
    passphrase_file: PassphraseFile = None,
    unencrypted: Annotated[bool, typer.Option("--unencrypted", help="Leave all keys in it in the clear.")] = False,
) -> None:
    """Write everything that this director is into one encrypted file; it may run meanwhile. Logged."""
    from .backup.backing_up import back_up
    from .config import load_config

    with errors_in_words():
        config = load_config(folder)
        passphrase = None if unencrypted else _new_passphrase(passphrase_file)
        made = back_up(folder, config, this_user(), time.time(), file, passphrase)
    typer.echo(f"{file}: backup {made.about.backup} of {made.about.federation}, {in_bytes(file.stat().st_size)}")
    typer.echo(f"{made.files} files, {made.answers} answers of the open round; schema {made.about.schema}")
    if not made.has_open_attempt:
        typer.echo("The open round changed too quickly to be in it: a restored director repeats its last attempt.")
    for digest in made.damaged:
        typer.echo(f"WARNING: the artifact {digest[:12]} is damaged here, and so it is in the backup", err=True)
    if unencrypted:
        typer.echo("It is NOT encrypted: whoever reads it is this federation's director and operator.")


def restore(
    file: Annotated[Path, typer.Argument(help="What `director backup` wrote.")],
    folder: FolderOption = _FOLDER,
    passphrase_file: PassphraseFile = None,
    database_url: Annotated[
        str | None, typer.Option(help="Instead of the backup's; `sqlite` is a file in the folder.")
    ] = None,
    audit_log: Annotated[
        Path | None, typer.Option(help="The audit.jsonl as it was last, where it was saved: no site then complains.")
    ] = None,
) -> None:
    """Make a director of a backup, in an empty folder and an empty database. Logged in the restored log."""
    from .backup.restoring import restore as restore_backup

    with errors_in_words():
        passphrase = _passphrase_of(file, passphrase_file)
        found = restore_backup(
            file, folder, this_user(), time.time(), passphrase, database_url=database_url, newer_log=audit_log
        )
    about = found.about
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(about.made_at))
    typer.echo(f"{folder}: {about.federation} as it was at {made} (backup {about.backup})")
    typer.echo(f"Its audit log has {found.entries} entries; the last says that it was restored.")
    if audit_log is None:
        typer.echo(
            "A site that saw more of the log than the backup has does no work until its data manager, whom you tell"
            " why, says `envoy audit accept-director`."
        )
    typer.echo("What was changed after the backup is as before it: revocations, invitations, passwords, API keys.")
    for name in found.revoked_since:
        typer.echo(f'Revoked since, and not any more: {name}. Before you start: director revoke {name} --reason "..."')


def _new_passphrase(file: Path | None) -> bytes:
    passphrase = _given(file)
    if passphrase is None:
        if not sys.stdin.isatty():
            raise PassphraseError(
                f"a backup holds keys, so it is encrypted: --passphrase-file or {PASSPHRASE_VARIABLE}; or --unencrypted"
            )
        passphrase = getpass.getpass("Passphrase of the backup: ").encode()
        if passphrase != getpass.getpass("The same again: ").encode():
            raise PassphraseError("the two passphrases differ; nothing was made")
    if len(passphrase) < _LEAST_BYTES:
        raise PassphraseError(f"a backup's passphrase has at least {_LEAST_BYTES} bytes, this one {len(passphrase)}")
    return passphrase


def _passphrase_of(file: Path, given: Path | None) -> bytes | None:
    """None where the backup needs none, or nobody can be asked."""
    from .backup.sealing import is_sealed

    passphrase = _given(given)
    try:
        with file.open("rb") as content:
            is_asked = passphrase is None and is_sealed(content) and sys.stdin.isatty()
    except OSError:
        return passphrase  # said where it is read
    return getpass.getpass("Passphrase of the backup: ").encode() if is_asked else passphrase


def _given(file: Path | None) -> bytes | None:
    if file is not None:
        try:
            return file.read_bytes().split(b"\n")[0].rstrip(b"\r")
        except OSError as error:
            raise PassphraseError(f"the passphrase file {file} cannot be read: {error.strerror}") from error
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environ[PASSPHRASE_VARIABLE].encode(errors="surrogateescape")
    return None
