"""``fedveil audit verify``: a log or an evidence bundle, checked from its file alone."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ..utils.command_line import errors_in_words

audit = typer.Typer(help="Check audit logs and evidence, anywhere and offline.", no_args_is_help=True)


@audit.callback()
def _group() -> None:
    """Keeps ``verify`` a command of its own."""


@audit.command("verify")
def verify_file(
    file: Annotated[
        Path, typer.Argument(help="audit.jsonl of a director or a site, or a copy; or an evidence bundle.")
    ],
    key: Annotated[
        str, typer.Option(help="Whose it must be: the public key in hexadecimal, its fingerprint, or a PEM file.")
    ] = "",
    heads: Annotated[
        list[Path] | None, typer.Option(help="Heads of this log that others kept (envoy audit heads); repeat it.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="A log of the other side, or another copy of this one; repeat it.")
    ] = None,
) -> None:
    """Is every byte what was signed, in its place, and does the other side's log agree? Exit status 1 if not."""
    from ..director.audit import read_heads
    from ..utils.evidence import is_evidence
    from .audit_check import compare, lines_of, read_log
    from .evidence_check import checked_evidence

    with errors_in_words(), ExitStack() as stack:
        given = [head for one in heads or () for head in read_heads(one)]
        lines: list[str] = []
        if is_evidence(file):
            evidence = stack.enter_context(checked_evidence(file, given, key))
            log, lines = evidence.log, list(evidence.lines)
        else:
            log = read_log(file, given, key)
        lines += lines_of(log)
        if not key:
            lines.append("the key is the one that the log itself names: compare it, or give it with --key")
        if given:
            lines.append(f"holds all {log.found.heads} heads that were given")
        for path in against or ():
            other = read_log(path)
            lines += [*lines_of(other), *compare(log, other)]
        if not given and not against:
            lines.append(
                "compared with nobody else's word: an end that was cut off, or a log written anew, is not seen"
            )
    for line in lines:
        typer.echo(line)
