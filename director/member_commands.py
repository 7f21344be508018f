"""``director members``, ``director revoke`` and ``director ca renew``: who is here, who is not any more, who issues."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words
from ..utils.errors import ConfigError
from ..utils.identity import PeerId, Role, when

authority = typer.Typer(help="The federation's authorities.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]
_FOLDER = Path("fedveil-director")


@authority.callback()
def _group() -> None:
    """Keeps ``renew`` a command of its own."""


def members(folder: FolderOption = _FOLDER) -> None:
    """Who joined, until when their certificates are good, who was revoked, and which join files are out."""
    from .config import load_config
    from .database import open_database
    from .identity_store import IdentityStore
    from .revocations import Revocations

    with errors_in_words():
        config, now = load_config(folder), time.time()
        engine = open_database(config.database_url(folder), config.is_durable)
        store, revocations = IdentityStore(engine), Revocations(engine)
        revoked = {one.name: one for one in revocations.all() if one.lifted_at is None}
        rows = [("name", "role", "organization", "joined", "good until", "state")]
        for one in store.all_identities():
            leaves = [cert.expires_at for cert in store.certificates(one.name, now) if cert.role == one.role]
            gone = revoked.get(one.name)
            until = "-" if gone else when(max(leaves)) if leaves else "renews when it is back"
            state = f"revoked on {when(gone.revoked_at)}: {gone.reason}" if gone else "member"
            rows.append((one.name, one.role, one.organization, when(one.joined_at), until, state))
        for file in store.invitations(now):
            state = f"join file until {when(file.expires_at)}"
            rows.append((file.name, file.role, file.organization, "-", "-", state))
        engine.dispose()
    for row in rows:
        typer.echo("  ".join(row))


def revoke(
    name: Annotated[str, typer.Argument(help="As `director members` names it.")],
    reason: Annotated[str, typer.Option(help="Kept with the federation's records; not told to the one revoked.")],
    folder: FolderOption = _FOLDER,
) -> None:
    """Shut a member out, from its next call on: no call, no renewal, no place in the roster. Its join files too."""
    from .audit import DirectorAudit
    from .config import load_config
    from .database import open_database
    from .founding import OPERATOR_NAME
    from .revocations import Revocations

    with errors_in_words():
        if not (0 < len(reason.strip()) <= 500 and reason.isprintable()):
            raise ConfigError("--reason: expected one line of at most 500 characters")
        config = load_config(folder)
        if name == OPERATOR_NAME:
            raise ConfigError(
                "the operator of this folder is not revoked by name: whoever holds its keys holds the issuer's, which"
                " lie beside them. Its certificate for connections lasts "
                f"{config.leaf_days:g} days"
            )
        engine = open_database(config.database_url(folder), config.is_durable)
        audit = DirectorAudit.open(folder, config.federation)
        by = str(PeerId(config.federation, Role.OPERATOR, OPERATOR_NAME))
        files = Revocations(engine).revoke(name, reason, time.time(), lambda: audit.revoked(name, reason, by))
        audit.close()
        engine.dispose()
    typer.echo(f"{name} was revoked; it is refused from its next call on. {files} unused join files are void.")
    typer.echo("Tell the other sites: each accepts the roster without it (`envoy roster fetch`, then `accept`).")


@authority.command("renew")
def renew_authority(
    folder: FolderOption = _FOLDER,
    root_key: Annotated[Path | None, typer.Option(help="The root's key, where it was kept offline.")] = None,
    passphrase_file: Annotated[Path | None, typer.Option(help="Holds the passphrase of the root's key.")] = None,
) -> None:
    """Make another issuer, for a year. Certificates that the one before signed stay good; no restart is needed."""
    from .audit import DirectorAudit
    from .config import load_config
    from .founding import OPERATOR_NAME, read_passphrase
    from .issuer import renew_issuer

    with errors_in_words():
        config = load_config(folder)
        passphrase = read_passphrase(sys.stdin.isatty(), passphrase_file, os.environ)
        audit = DirectorAudit.open(folder, config.federation)
        audit.operator(str(PeerId(config.federation, Role.OPERATOR, OPERATOR_NAME)), "ca renew")
        until = renew_issuer(folder, config.federation, passphrase, time.time(), root_key)
        audit.close()
    typer.echo(f"{folder}/ca/issuer.pem is good until {when(until)}. Put the root's key away again.")
