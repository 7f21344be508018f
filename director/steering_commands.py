"""``director experiment pause|resume|stop|rollback|set``: each is one signed patch, numbered after those before it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..utils.command_line import errors_in_words
from ..utils.errors import ConfigError
from ..utils.messages import RunId
from ..utils.proposal import Step
from .experiment_table import experiment_table

_CONSOLE = Console(soft_wrap=True)

Run = Annotated[str, typer.Argument(help="As `experiment list` names it.")]
Reason = Annotated[str, typer.Option(help="Kept with the patch, and read by the sites.")]
Folder = Annotated[Path, typer.Option("--folder", "-f", help="The director's folder.", envvar="FEDVEIL_DIRECTOR")]
Address = Annotated[str | None, typer.Option(help="host:port of the director; by default the one it announced.")]
_FOLDER = Path("fedveil-director")


def add_steering(experiments: typer.Typer) -> None:
    """Add these commands to those of ``director experiment``."""
    for name, command in (("pause", pause), ("resume", resume), ("stop", stop), ("rollback", roll_back), ("set", set_)):
        experiments.command(name)(command)


def pause(run: Run, reason: Reason = "", folder: Folder = _FOLDER, address: Address = None) -> None:
    """Begin no further round; the one that is open goes on to its end."""
    _steer(folder, address, run, Step.PAUSE, reason=reason)


def resume(run: Run, reason: Reason = "", folder: Folder = _FOLDER, address: Address = None) -> None:
    """Go on after a pause."""
    _steer(folder, address, run, Step.RESUME, reason=reason)


def stop(run: Run, reason: Reason = "asked by the operator", folder: Folder = _FOLDER, address: Address = None) -> None:
    """End an experiment now; the model of its last closed round stays."""
    _steer(folder, address, run, Step.STOP, reason=reason)


def roll_back(
    run: Run,
    to: Annotated[int, typer.Option(help="The round whose model is taken; 0: the plan's initial model.")],
    reason: Reason = "",
    folder: Folder = _FOLDER,
    address: Address = None,
) -> None:
    """Begin the next round with the model that an earlier one gave. Numbers go on, and the history stays."""
    _steer(folder, address, run, Step.ROLL_BACK, reason=reason, to_round=to)


def set_(
    run: Run,
    learning_rate: Annotated[float | None, typer.Option(help="Of the sites.")] = None,
    local_epochs: Annotated[int | None, typer.Option(help="Of the sites, in each round.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of the sites.")] = None,
    proximal_mu: Annotated[float | None, typer.Option(help="FedProx; 0: none.")] = None,
    sites: Annotated[str | None, typer.Option(help="Who is asked: a,b,c, of those that the proposal asks.")] = None,
    max_rounds: Annotated[int | None, typer.Option(help="At most what was proposed.")] = None,
    patience: Annotated[int | None, typer.Option(help="Rounds without improvement.")] = None,
    min_delta: Annotated[float | None, typer.Option(help="An improvement is more than this.")] = None,
    wall_clock_seconds: Annotated[float | None, typer.Option(help="Since the first round was planned.")] = None,
    reason: Reason = "",
    folder: Folder = _FOLDER,
    address: Address = None,
) -> None:
    """Change settings from the next round on."""
    settings = {
        "learning_rate": learning_rate,
        "local_epochs": local_epochs,
        "batch_size": batch_size,
        "proximal_mu": proximal_mu,
    }
    rule = {
        "max_rounds": max_rounds,
        "patience": patience,
        "min_delta": min_delta,
        "wall_clock_seconds": wall_clock_seconds,
    }
    with errors_in_words():
        if sites is None and all(value is None for value in (*settings.values(), *rule.values())):
            raise ConfigError("set: say what, such as --learning-rate 0.01; see `director experiment set --help`")
    _steer(
        folder,
        address,
        run,
        Step.SET,
        reason=reason,
        settings={name: value for name, value in settings.items() if value is not None},
        sites=None if sites is None else [name.strip() for name in sites.split(",")],
        stop={name: value for name, value in rule.items() if value is not None},
    )


def _steer(folder: Path, address: str | None, run: str, step: Step, **change: Any) -> None:
    from .operator_client import OperatorClient

    with errors_in_words(), OperatorClient(folder, address, time.time()) as client:
        view = client.steer(RunId(run), step, **change)
    _CONSOLE.print(f"patch {view.patches} of {view.run}: {step.value}")
    _CONSOLE.print(experiment_table((view,)))
