"""The command line of the director: ``director init``, ``invite``, ``start``, ``status``, ``experiment ...``.

Here things are built, and nowhere else in this room. Errors leave as one line on standard error and exit status 1.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..utils.command_line import errors_in_words
from ..utils.errors import ConfigError
from ..utils.identity import Role
from ..utils.logs import log_to_stderr
from ..utils.messages import RunId, SumView
from .audit_commands import audit
from .backup_commands import backup, restore
from .bundle_commands import bundle
from .doctor_commands import doctor
from .experiment_table import experiment_table
from .member_commands import authority, members, revoke
from .roster_commands import roster
from .steering_commands import add_steering
from .user_commands import users

DEFAULT_FOLDER = Path("fedveil-director")
_CONSOLE = Console(soft_wrap=True)

app = typer.Typer(
    help="The director: coordinates rounds and aggregates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
experiments = typer.Typer(help="Submit, list, show, steer and stop experiments.", no_args_is_help=True)
add_steering(experiments)
app.add_typer(experiments, name="experiment")
app.add_typer(roster, name="roster")
app.add_typer(audit, name="audit")
app.add_typer(authority, name="ca")
app.add_typer(users, name="user")
app.command()(members)
app.command()(revoke)
app.command("doctor")(doctor)
app.command()(backup)
app.command()(restore)
app.command()(bundle)

Folder = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]
Address = Annotated[str | None, typer.Option(help="host:port of the director; by default the one it announced.")]


@app.command()
def init(
    federation: Annotated[str, typer.Argument(help="The federation's name: lower-case letters, digits, hyphens.")],
    address: Annotated[list[str], typer.Option(help="Host or host:port as the sites reach this director; repeat it.")],
    folder: Folder = DEFAULT_FOLDER,
    listen: Annotated[str, typer.Option(help="Where to listen.")] = "0.0.0.0:9443",
    passphrase_file: Annotated[Path | None, typer.Option(help="Holds the passphrase of the root's key.")] = None,
) -> None:
    """Make a federation: its CA, the director's certificate, an operator's, and director.toml."""
    from .founding import init_federation, read_passphrase, refuse_overwriting

    with errors_in_words():
        refuse_overwriting(folder)
        passphrase = read_passphrase(sys.stdin.isatty(), passphrase_file, os.environ, confirm=True)
        fingerprint = init_federation(folder, federation, address, passphrase, time.time(), listen=listen)
    _CONSOLE.print(f"Federation [bold]{federation}[/] is in {folder}/.")
    _CONSOLE.print(f"Root fingerprint, to be read out to sites: {fingerprint}")
    _CONSOLE.print(f"Keep {folder}/ca/root.key.pem and its passphrase offline; the director works without them.")


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="The site's name.")],
    organization: Annotated[str, typer.Option(help="Whose it is.")],
    role: Annotated[Role, typer.Option(help="envoy, so far.")] = Role.ENVOY,
    folder: Folder = DEFAULT_FOLDER,
    hours: Annotated[float, typer.Option(help="How long the join file is good for.")] = 24.0,
    out: Annotated[Path | None, typer.Option(help="The join file; NAME.join by default.")] = None,
    reinstate: Annotated[bool, typer.Option("--reinstate", help="The name was revoked and is to come back.")] = False,
) -> None:
    """Write a one-time join file for one site. It holds a key: hand it over like a password."""
    from ..utils.identity import fingerprint
    from ..utils.join_file import SUFFIX, write_join_file
    from .config import load_config
    from .database import open_database
    from .founding import load_issuer
    from .identity_store import IdentityStore
    from .registrar import Registrar
    from .revocations import Revocations

    path = out or Path(f"{name}{SUFFIX}")
    with errors_in_words():
        if role is not Role.ENVOY:
            raise ConfigError(
                f"--role {role.value}: only envoys are invited. The operator's certificate is made by `director init`;"
                " further operators come with the hub"
            )
        if path.suffix != SUFFIX:
            raise ConfigError(f"--out {path}: a join file ends with {SUFFIX}")
        config = load_config(folder)
        issuer, root = load_issuer(folder, time.time())
        engine = open_database(config.database_url(folder), config.is_durable)
        registrar = Registrar(config.federation, issuer, root, IdentityStore(engine), Revocations(engine))
        addresses = config.announced(config.listen_address.port or _running_port(folder))
        join = registrar.invite(name, organization, role, addresses, hours * 3600, time.time(), reinstate=reinstate)
        write_join_file(path, join)
        engine.dispose()
    _CONSOLE.print(f"{path}: good for one use by {name} ({organization}), for {hours:g} hours.")
    _CONSOLE.print(f"Root fingerprint, to be compared by phone: {fingerprint(join.root)}")


@app.command()
def start(folder: Folder = DEFAULT_FOLDER) -> None:
    """Run the director until it is told to end (Ctrl-C, SIGTERM). After a crash it goes on by itself."""
    from .config import load_config
    from .server import Director

    with errors_in_words():
        config = load_config(folder)
        log_to_stderr(config.log_level)
        ends, broke = threading.Event(), threading.Event()

        def break_off() -> None:
            broke.set()
            ends.set()

        director = Director(folder, config, broken=break_off)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ends.set())
    _CONSOLE.print(f"director of {config.federation} listens on {config.listen_address.with_port(director.port)}")
    ends.wait()
    director.close()
    raise typer.Exit(1 if broke.is_set() else 0)


@app.command()
def service(
    folder: Folder = DEFAULT_FOLDER,
    account: Annotated[str, typer.Option(help="As whom it runs: an account of its own.")] = "fedveil",
    own: Annotated[bool, typer.Option("--user", help="Write it into your own systemd instead.")] = False,
) -> None:
    """Print a unit for systemd that starts this director with the machine, walled in."""
    from ..utils.service_command import print_or_install
    from ..utils.service_unit import Side

    print_or_install(Side.DIRECTOR, folder, account, own=own)


@app.command()
def status(folder: Folder = DEFAULT_FOLDER, address: Address = None) -> None:
    """Who is connected, and what is under way."""
    from .operator_client import OperatorClient

    with errors_in_words(), OperatorClient(folder, address, time.time()) as client:
        reply = client.status()
    _CONSOLE.print(f"{reply.federation}: {reply.software}, up {reply.up_seconds:.0f} s")
    table = Table("envoy", "organization", "connected", "silent for", "not asked, since")
    for envoy in reply.envoys:
        silent = f"{envoy.silent_seconds:.0f} s" if envoy.silent_seconds < 1e8 else "never seen"
        table.add_row(envoy.name, envoy.organization, "yes" if envoy.connected else "no", silent, envoy.suspicion)
    _CONSOLE.print(table)
    _CONSOLE.print(experiment_table(reply.experiments))


@experiments.command()
def submit(
    settings: Annotated[Path, typer.Argument(help="experiment.toml; it names the plan's bundle.")],
    folder: Folder = DEFAULT_FOLDER,
    address: Address = None,
) -> None:
    """Queue an experiment."""
    from ..utils.config import load_toml
    from .experiments import ExperimentSettings
    from .operator_client import OperatorClient, open_codec, open_submission

    with errors_in_words():
        read = load_toml(settings, ExperimentSettings)
        bundle, codec = open_submission(settings, read.plan), open_codec(settings, read.codec)
        with OperatorClient(folder, address, time.time()) as client:
            run = client.submit(settings.read_text("utf-8"), bundle, codec)
    coded = f" and codec {read.codec.digest}" if read.codec else ""
    _CONSOLE.print(f"{run} is queued, with plan {bundle.digest}{coded}")


@experiments.command("list")
def list_experiments(folder: Folder = DEFAULT_FOLDER, address: Address = None) -> None:
    """All experiments."""
    from .operator_client import OperatorClient

    with errors_in_words(), OperatorClient(folder, address, time.time()) as client:
        _CONSOLE.print(experiment_table(client.list()))


@experiments.command()
def show(
    run: Annotated[str, typer.Argument(help="As `experiment list` names it.")],
    folder: Folder = DEFAULT_FOLDER,
    address: Address = None,
    model: Annotated[Path | None, typer.Option(help="Write the latest model here, as safetensors.")] = None,
) -> None:
    """One experiment, round by round; with --model its latest model too."""
    from .operator_client import OperatorClient

    with errors_in_words(), OperatorClient(folder, address, time.time()) as client:
        view = client.show(RunId(run))
        content = client.fetch(view.model) if model and view.model else None
    _CONSOLE.print(experiment_table((view,)))
    if view.proposal:
        approved = ", ".join(view.approved_by) or "no site so far"
        _CONSOLE.print(
            f"proposal {view.proposal}; approved, as far as sites said since the director started: {approved}"
        )
    table = Table("round", "state", "answers", "seconds", "metrics", "secure sum of", "reason")
    for one in view.rounds:
        number = f"{one.round}" if one.attempt == 1 else f"{one.round} (attempt {one.attempt})"
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in one.metrics.items())
        kind = "" if one.kind.value == "train" else f" {one.kind.value}"
        answers = f"{one.received} of {one.invited}"
        summed = _summed(one.sum) if one.sum else ""
        table.add_row(number + kind, one.state, answers, f"{one.seconds:.2f}", metrics, summed, one.reason)
    _CONSOLE.print(table)
    if model and content is not None:
        model.write_bytes(content)
        _CONSOLE.print(f"{model}: {len(content)} bytes, SHA-256 {view.model}")


def main() -> None:
    """The console script ``director``."""
    app()


def _summed(view: SumView) -> str:
    return (
        f"{', '.join(view.survivors)} (threshold {view.threshold} of {view.cohort}, {view.total_weight} examples,"
        f" transcript {view.transcript[:12]})"
    )


def _running_port(folder: Path) -> int:
    from .server import ADDRESS_FILE

    file = folder / ADDRESS_FILE
    return int(file.read_text("utf-8").rpartition(":")[2]) if file.exists() else 0


if __name__ == "__main__":
    main()
