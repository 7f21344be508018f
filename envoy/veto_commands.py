"""``envoy veto`` and ``envoy stop``: end local work now. They speak to the running envoy through its control socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..utils.command_line import errors_in_words
from ..utils.errors import MalformedMessageError, NotApprovedError

if TYPE_CHECKING:
    from .control_socket import Json, Question
    from .session import Session
    from .site_events import SiteEvents

_DEFAULT = Path("fedveil-envoy")
_MOST_REASON = 500
_ANSWERED_SECONDS = 0.2  # so that the command that asked has its answer before the process ends

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]
ReasonOption = Annotated[str, typer.Option(help="One line; signed, and kept in this site's log.")]
TellOption = Annotated[bool, typer.Option("--tell", help="Tell the director the reason; else it hears a fixed one.")]


def veto(
    task: Annotated[
        str, typer.Argument(help="A run, RUN/ROUND, or a plan's or proposal's digest; else what runs.")
    ] = "",
    reason: ReasonOption = "",
    tell: TellOption = False,
    folder: FolderOption = _DEFAULT,
) -> None:
    """End local work at once, wipe what it left, and take its approval back. The round goes on without this site."""
    from .control_socket import ask, is_running
    from .decisions import reject_here

    with errors_in_words():
        if is_running(folder):
            answer = ask(folder, {"ask": "veto", "task": task, "reason": reason, "tell": tell})
            ended = [str(one) for one in answer.get("ended", ())]
        elif not task:
            raise NotApprovedError(f"no envoy runs in {folder}, so nothing is at work; name a proposal's digest")
        else:
            ended = []
            reject_here(folder, task, reason)
    for one in ended:
        typer.echo(f"ended: {one}")
    typer.echo("Its proposal is no longer approved here; `envoy plan approve` would approve it again.")
    if ended:
        typer.echo("What had left before cannot be taken back; in a secure sum this site says nothing more.")


def stop(
    reason: ReasonOption = "",
    tell: TellOption = False,
    folder: FolderOption = _DEFAULT,
) -> None:
    """End all local work at once, as `envoy veto` does, and then the envoy itself."""
    from .control_socket import ask, is_running

    with errors_in_words():
        answer = ask(folder, {"ask": "stop", "reason": reason, "tell": tell})
    for one in answer.get("ended", ()):
        typer.echo(f"ended: {one}")
    deadline = time.monotonic() + 10.0
    while is_running(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    if is_running(folder):
        typer.echo("Local work has ended; the envoy itself still finishes something: see its log.", err=True)
        raise typer.Exit(1)
    typer.echo("The envoy has ended; `envoy start` starts it again.")


def questions_of(session: Session, log: SiteEvents, end: Callable[[], None]) -> Mapping[str, Question]:
    """What may be asked of a running envoy.

    Args:
        session: the envoy.
        log: its audit log.
        end: ends the process.
    """
    from dataclasses import asdict

    def told_status(_: Json, __: str) -> Json:
        return asdict(session.status())

    def told_veto(request: Json, by: str) -> Json:
        reason, tell = _reason_of(request)
        return {"ended": session.veto(str(request.get("task", "")), reason, by, tell=tell)}

    def told_stop(request: Json, by: str) -> Json:
        reason, tell = _reason_of(request)
        try:
            log.stopped(by, reason)
            return {"ended": session.veto_all(reason, by, tell=tell)}
        finally:  # also where it could not be written down
            threading.Timer(_ANSWERED_SECONDS, end).start()

    return {"status": told_status, "veto": told_veto, "stop": told_stop}


def _reason_of(request: Json) -> tuple[str, bool]:
    reason = request.get("reason", "")
    if not isinstance(reason, str) or len(reason) > _MOST_REASON or not reason.isprintable():
        raise MalformedMessageError(f"--reason: expected one printable line of at most {_MOST_REASON} characters")
    return reason, request.get("tell") is True
