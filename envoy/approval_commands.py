"""``envoy plan list``, ``show``, ``diff``, ``approve`` and ``reject``: the data manager's word on what runs here.

They work on the envoy's folder, beside an envoy that runs or without one, and without the director. A plan's code is
shown and never run.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..utils.command_line import errors_in_words
from ..utils.errors import ConfigError, DatasetError, NotApprovedError

if TYPE_CHECKING:
    from ..utils.plan_bundle import Manifest

_CONSOLE = Console(soft_wrap=True)
_DEFAULT = Path("fedveil-envoy")

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]
DigestArgument = Annotated[str, typer.Argument(help="The beginning of a proposal's digest, or of its plan's.")]


def list_plans(folder: FolderOption = _DEFAULT) -> None:
    """What was proposed to this site, the newest last: offered, approved, rejected, expired, and rounds done."""
    from .decisions import opened
    from .plan_words import COLUMNS, row_of

    with errors_in_words(), opened(folder) as (_, store):
        now = time.time()
        standings = sorted(store.books().standings.values(), key=lambda one: one.offered_at)
        rows = [row_of(one, now) for one in standings]
    if not rows:
        _say("Nothing was proposed to this site yet.")
        return
    _say(*("  ".join(row) for row in [COLUMNS, *rows]))


def show_plan(
    digest: DigestArgument,
    folder: FolderOption = _DEFAULT,
    source: Annotated[bool, typer.Option("--source", help="The text of every file too.")] = False,
) -> None:
    """Who proposes what, and why; what the plan is made of and reads; what was decided."""
    from .decisions import opened, proposed_bundle
    from .plan_difference import text_of
    from .plan_words import plan_lines, proposal_lines

    with errors_in_words(), opened(folder) as (_, store):
        standing = store.books().find(digest)
        _say(*proposal_lines(standing, time.time()))
        bundle = proposed_bundle(folder, standing)
        _say(
            "",
            *plan_lines(bundle, standing.proposal.max_rounds, _allowed_imports(folder)),
            *_data_lines(folder, bundle.manifest),
        )
        _say(*_leak_lines(folder, bundle.manifest))
        if source:
            for file in bundle.manifest.files:
                text = text_of(bundle, file.path)
                _say("", f"==== {file.path}", *(text if text is not None else ["(not text)"]))


def diff_plan(
    digest: DigestArgument,
    old: Annotated[
        str | None, typer.Argument(help="Compare with this one; else the last approved of the study.")
    ] = None,
    folder: FolderOption = _DEFAULT,
) -> None:
    """What changed since the version that was approved last: every line of text, settings, layout, what is asked."""
    from .decisions import opened, proposed_bundle
    from .plan_difference import difference, proposal_changes

    with errors_in_words(), opened(folder) as (_, store):
        books = store.books()
        standing = books.find(digest)
        before = books.find(old) if old is not None else books.approved_before(standing)
        if before is None:
            raise NotApprovedError(
                f"no other version of study {standing.proposal.study} was approved here; all of it is new:"
                f" envoy plan show {standing.proposal.digest[:12]} --source"
            )
        lines = [*proposal_changes(before.proposal, standing.proposal)]
        if before.proposal.plan == standing.proposal.plan:
            lines.append("the plan is the same, byte for byte")
        else:
            lines += difference(proposed_bundle(folder, before), proposed_bundle(folder, standing))
    _say(f"{before.proposal.digest[:12]} -> {standing.proposal.digest[:12]}", *lines)


def approve_plan(
    digest: DigestArgument,
    dataset: Annotated[
        list[str] | None, typer.Option(help="A data set that it may read; by default the plan's.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="At most so many; the proposal's by default.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="At most so much of it, over all runs of this proposal.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="A day, as 2027-03-31; the proposal's by default.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    folder: FolderOption = _DEFAULT,
) -> None:
    """Let it run here, within limits. A running envoy takes it up within a second."""
    from .decisions import Wish, approvable, approve_here
    from .plan_words import limit_lines, plan_lines, proposal_lines

    with errors_in_words():
        now = time.time()
        end = None if until is None else _end_of(until, now)
        found = approvable(folder, digest, Wish(dataset or (), rounds, epsilon, end))
        standing, limits = found.standing, found.limits
        _say(
            *proposal_lines(standing, now),
            "",
            *plan_lines(found.bundle, limits.max_rounds, _allowed_imports(folder)),
            "",
            *limit_lines(limits),
        )
        _confirm("Approve this?", was_asked=yes)
        approve_here(folder, found)
    _say(f"Approved: {standing.proposal.study}, {standing.proposal.digest[:12]}…. Any change of it asks again.")


def reject_plan(
    digest: DigestArgument,
    reason: Annotated[str, typer.Option(help="One line; signed, and kept in this site's log.")],
    folder: FolderOption = _DEFAULT,
) -> None:
    """Do not let it run here, or no more: no further round begins. `envoy veto` also ends the one that runs."""
    from .decisions import reject_here

    with errors_in_words():
        standing = reject_here(folder, digest, reason)
    _say(f"Rejected: {standing.proposal.study}, {standing.proposal.digest[:12]}….")


def _allowed_imports(folder: Path) -> tuple[str, ...]:
    """Further modules that this site lets plans import."""
    from .config import load_config

    return load_config(folder).approval.imports


def _data_lines(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What the plan reads, against what is here."""
    from ..utils.visible import visible
    from .datasets import DatasetRegistry
    from .decisions import dataset_of

    name = dataset_of(manifest)
    if name is None:
        yield "reads: no data"
        return
    try:
        record = DatasetRegistry(folder / "datasets").get(name)
    except DatasetError as error:
        yield f"reads data set {name}, which this site has not: {error}"
        return
    yield f"reads data set {name}: {record.num_examples} examples here"
    if manifest.data.columns:
        asked, here = manifest.data.columns, record.columns
        yield f"columns: {len(asked)} asked for, {len(here)} here, {len(set(here) - set(asked))} not given to the plan"
        lacking = [visible(name) for name in asked if name not in here]
        if lacking:
            yield f"!! columns that this data set has not: {', '.join(lacking)}; its tasks will be declined"
    if manifest.data.modality and manifest.data.modality != record.modality:
        said = record.modality or "not said"
        yield f"!! modality: {manifest.data.modality} asked for, {said} here; its tasks will be declined"


def _leak_lines(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What the leak test said last of this plan, behind whatever chain."""
    from ..utils.identity import when
    from .gate import last_outcome

    found = last_outcome(folder, manifest.digest)
    if found is None:
        yield f"leak test: none yet; envoy plan leak-test {manifest.digest[:12]}"
        return
    outcome, at = found
    said = outcome.obstacle if outcome.score is None else f"score {outcome.score:.2f}"
    yield f"leak test on {when(at)}: {said}"


def _end_of(day: str, now: float) -> float:
    try:
        end = dt.datetime.combine(dt.date.fromisoformat(day), dt.time.max, dt.UTC).timestamp()
    except ValueError as error:
        raise ConfigError(f"--until {day!r}: expected a day, as 2027-03-31") from error
    if end < now:
        raise ConfigError(f"--until {day}: that day is over")
    return end


def _confirm(question: str, *, was_asked: bool) -> None:
    if was_asked:
        return
    if not sys.stdin.isatty():
        raise ConfigError("no terminal to ask at; --yes approves what was printed")
    typer.confirm(question, abort=True)


def _say(*lines: str) -> None:
    printed: Iterable[str] = lines
    for line in printed:
        _CONSOLE.print(line, markup=False, highlight=False, emoji=False)
