"""``director audit verify``: is this director's log whole, and the one that the sites saw?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words, this_user
from ..utils.errors import IdentityError
from ..utils.messages import EnvoyName

audit = typer.Typer(help="Check the director's log, and what it saw of the sites'.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]


@audit.command("verify")
def verify_audit(
    folder: FolderOption = Path("fedveil-director"),
    heads: Annotated[
        list[Path] | None, typer.Option(help="What `envoy audit heads` printed at a site; repeat it for each site.")
    ] = None,
) -> None:
    """Is the log whole, and does it hold every head that the sites were given? Exit status 1 if not."""
    from ..utils.roster import key_fingerprint
    from .audit import LOG_FILE, read_heads, verify_log

    with errors_in_words():
        given = [head for file in heads or () for head in read_heads(file)]
        found = verify_log(folder, given)
    typer.echo(f"{folder / LOG_FILE}: {found.entries} entries, whole; last {found.hash.hex()}")
    typer.echo(f"signed by the key {key_fingerprint(found.key)}")
    against = f"holds all {found.heads} heads that the sites gave" if given else "compared with no head of a site"
    typer.echo(against)


@audit.command("accept-site")
def accept_site(
    name: Annotated[str, typer.Argument(help="The site, as `director status` names it.")],
    folder: FolderOption = Path("fedveil-director"),
) -> None:
    """Take a site's log as it is now: it begins anew or goes back, and it said why. Logged; the director may run."""
    from .audit import DirectorAudit
    from .config import load_config
    from .database import open_database
    from .identity_store import IdentityStore

    with errors_in_words():
        config = load_config(folder)
        engine = open_database(config.database_url(folder), config.is_durable)
        known = IdentityStore(engine).identity(name)
        engine.dispose()
        if known is None:
            raise IdentityError(f"no site {name} joined this federation; `director status` lists those that did")
        log = DirectorAudit.open(folder, config.federation)
        log.takes_anew(EnvoyName(name), this_user())
        log.close()
    typer.echo(f"From now on the log of {name} is compared with nothing that came before. This is logged.")


@audit.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="The bundle, a zip.")],
    folder: FolderOption = Path("fedveil-director"),
) -> None:
    """Write what the director knows of what was done into one signed bundle: facts, no verdicts. Logged."""
    import time

    from ..utils.certificates import certificate_pem, public_bytes
    from ..utils.roster import key_fingerprint
    from .audit import audit_key
    from .config import load_config
    from .evidence import export_evidence
    from .founding import load_issuer

    with errors_in_words():
        now = time.time()
        config = load_config(folder)
        _, root = load_issuer(folder, now)
        count = export_evidence(folder, config, certificate_pem(root), this_user(), now, out)
        fingerprint = key_fingerprint(public_bytes(audit_key(folder).public_key()))
    typer.echo(f"{out}: {count} files, signed by the key of this director's audit log, fingerprint {fingerprint}")
    typer.echo(
        f"Whoever gets it checks it with: fedveil audit verify {out.name} --key FINGERPRINT, as you tell it them"
    )
