"""``envoy privacy budget``, ``show``, ``plan`` and ``report``: what this site's data has spent, and may still."""

from __future__ import annotations

import datetime as dt
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..utils.command_line import errors_in_words, this_user
from ..utils.errors import ConfigError, DatasetError, IdentityError, PrivacyError
from ..utils.messages import RunId
from ..utils.privacy.values import Unit

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ..utils.privacy.events import Mechanism
    from .privacy_books import Book, Books

_CONSOLE = Console(soft_wrap=True)
_DEFAULT = Path("fedveil-envoy")

privacy = typer.Typer(help="What this site's data has spent of its privacy, and may still.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]


@privacy.command("budget")
def set_budget(
    dataset: Annotated[str, typer.Argument(help="As `envoy data list` names it.")],
    epsilon: Annotated[float, typer.Option(help="Over all studies, for ever.")],
    delta: Annotated[float, typer.Option(help="Far below one over the number of patients.")] = 1e-5,
    unit: Annotated[Unit, typer.Option(help="Whom it protects.")] = Unit.PATIENT,
    allow: Annotated[
        bool, typer.Option("--allow-without-guarantee", help="Let tasks through that no epsilon covers; counted.")
    ] = False,
    folder: FolderOption = _DEFAULT,
) -> None:
    """Give a data set a budget, or another. For the site's data manager; the ledger keeps who said it and when."""
    from .datasets import DatasetRegistry
    from .privacy_books import Budget, WithoutGuarantee
    from .privacy_ledger import LEDGER_FILE, PrivacyLedger
    from .privacy_overlap import Overlaps

    with errors_in_words():
        rule = WithoutGuarantee.ALLOW if allow else WithoutGuarantee.REFUSE
        budget = Budget(epsilon, delta, unit, rule)
        registry = DatasetRegistry(folder / "datasets")
        examples = registry.get(dataset).num_train
        if delta * examples >= 1:
            raise ConfigError(
                f"delta {delta:g} of {examples} examples: one over their number or more lets somebody's data out whole;"
                f" take at most {0.1 / examples:.1g}"
            )
        ledger = PrivacyLedger(folder / LEDGER_FILE)
        budgeted = [one.dataset for one in ledger.books().books.values() if one.budget]
        for other, count in Overlaps(registry).of(dataset, budgeted).items():
            raise PrivacyError(
                f"{count} examples of {dataset} are also in {other}, which has a budget: they would have two. Keep one"
                " of the two data sets"
            )
        key = _identity_key(folder)
        book = ledger.set_budget(dataset, budget, this_user(), key.sign if key else None)
        ledger.close()
    signed = "signed by this site's identity key" if key else "not signed: this site is no member now"
    _say(f"{dataset}: {budget}, over all studies; {signed}.")
    bare = book.uncovered(unit)
    if bare:
        _say(f"{bare} earlier tasks released what no epsilon per {unit.value} covers; a budget cannot undo it.")
    if allow:
        _say("Tasks without a guarantee are let through, and counted: then no epsilon covers the data set as a whole.")


@privacy.command("show")
def show(
    dataset: Annotated[str | None, typer.Argument(help="One alone.")] = None,
    folder: FolderOption = _DEFAULT,
    rows: Annotated[bool, typer.Option("--rows", help="Every task too.")] = False,
) -> None:
    """What was spent and what is left: by data set and study, by all accountants; the ledger is checked on the way."""
    with errors_in_words():
        books, head = _books(folder)
        chosen, signed = _chosen(books, dataset), _signed(folder)
        for book in chosen:
            for line in _lines(book, signed, rows=rows):
                _say(line)
    if not chosen:
        _say("No data set has released anything yet.")
    _say(f"ledger: every row follows from the one before; head {head}")


@privacy.command("plan")
def plan(
    sigma: Annotated[float | None, typer.Option(help="Noise multiplier; left out: found for --rounds.")] = None,
    q: Annotated[float, typer.Option(help="Sampling rate of each step.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Of one round.")] = 1,
    epsilon: Annotated[float | None, typer.Option(help="The budget; a data set's own by default.")] = None,
    delta: Annotated[float | None, typer.Option(help="Likewise; else 1e-5.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How many are wanted.")] = None,
    unit: Annotated[Unit, typer.Option(help="Whom the noise protects.")] = Unit.PATIENT,
    dataset: Annotated[str | None, typer.Option(help="What is left of its budget.")] = None,
    folder: FolderOption = _DEFAULT,
) -> None:
    """How many rounds fit at this noise; how much noise so many rounds need; what they would spend."""
    from ..utils.privacy.events import Release, SampledGaussian
    from ..utils.privacy.planning import noise_for, rounds_within

    with errors_in_words():
        spent: tuple[Mechanism, ...] = ()
        counted = unit
        if dataset is not None:
            book = _chosen(_books(folder)[0], dataset)[0]
            if book.budget is not None:
                epsilon, delta, counted = epsilon or book.budget.epsilon, delta or book.budget.delta, book.budget.unit
            spent = book.history(counted)
        delta = delta or 1e-5

        def a_round(noise: float) -> Mechanism:
            return Release(SampledGaussian(q, noise, steps), unit).protecting(counted)

        if sigma is None:
            if rounds is None or epsilon is None:
                raise ConfigError("give --sigma; or --rounds and --epsilon, and the noise is found")
            sigma = noise_for(a_round, rounds, epsilon, delta, spent)
            _say(f"noise multiplier {sigma:.4g}: the least with which {rounds} rounds fit")
        if epsilon is not None:
            fit = rounds_within(a_round(sigma), epsilon, delta, spent)
            _say(f"{fit} rounds fit into epsilon {epsilon:g} at delta {delta:g} per {counted.value}")
            rounds = fit if rounds is None else rounds
        if rounds is None:
            raise ConfigError("give --epsilon, for the rounds that fit; or --rounds, for what they spend")
        if rounds:
            _say_spent(rounds, (*spent, a_round(sigma).scaled(rounds)), delta, counted)


@privacy.command("report")
def report(
    run: Annotated[str | None, typer.Option(help="One study alone.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="All of it; `fedveil report privacy` takes the file.")
    ] = False,
    folder: FolderOption = _DEFAULT,
) -> None:
    """The site's privacy report: total_epsilon, participants, secure aggregation, leakage score."""
    from .journal import DATABASE_FILE, read_outbox
    from .privacy_report import as_lines
    from .privacy_report import report as report_of

    with errors_in_words():
        books, _ = _books(folder)
        departures = read_outbox(folder) if (folder / DATABASE_FILE).exists() else []
        found = report_of(_chosen(books, None), departures, RunId(run) if run else None)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for line in as_lines(found):
        _say(line)


def _books(folder: Path) -> tuple[Books, str]:
    from .privacy_books import Books
    from .privacy_ledger import FIRST_HEAD, LEDGER_FILE, PrivacyLedger

    if not (folder / LEDGER_FILE).exists():
        return Books(), FIRST_HEAD
    ledger = PrivacyLedger(folder / LEDGER_FILE)
    try:
        return ledger.books(), ledger.head
    finally:
        ledger.close()


def _chosen(books: Books, dataset: str | None) -> list[Book]:
    if dataset is None:
        return [books.books[name] for name in sorted(books.books)]
    if dataset not in books.books:
        known = ", ".join(sorted(books.books)) or "none"
        raise DatasetError(f"the ledger has no data set {dataset}; it has {known}")
    return [books.books[dataset]]


def _identity_key(folder: Path) -> Ed25519PrivateKey | None:
    """The site's, if it is a member of a federation now."""
    from ..utils.certificates import read_identity_key
    from .enrolment import load_credentials

    try:
        return read_identity_key(load_credentials(folder, time.time()).identity_key, "the identity key")
    except IdentityError:
        return None


def _signed(folder: Path) -> frozenset[str]:
    """The data sets whose budget the site's identity key signed."""
    from ..utils.certificates import public_bytes
    from .privacy_ledger import LEDGER_FILE, PrivacyLedger

    key = _identity_key(folder) if (folder / LEDGER_FILE).exists() else None
    if key is None:
        return frozenset()
    ledger = PrivacyLedger(folder / LEDGER_FILE)
    try:
        return ledger.signed_budgets(public_bytes(key.public_key()))
    finally:
        ledger.close()


def _lines(book: Book, signed: frozenset[str], *, rows: bool) -> list[str]:
    from .privacy_report import balance, terms_of

    lines, terms, budget = [f"data set {book.dataset}"], terms_of(book), book.budget
    by = "signed by this site" if book.dataset in signed else "not signed"
    lines.append(
        f"  budget: {budget}, {by}" if budget else "  budget: none; its tasks are counted, and none is refused"
    )
    if terms is None:
        lines.append(f"  {len(book.spendings)} tasks released something that no epsilon covers")
    else:
        whole = balance(book, *terms)
        lines.append(f"  spent: {whole.account.reported}")
        stop, prv = book.stopping(), whole.account.prv
        if budget is not None and stop is not None:
            left = max(0.0, budget.epsilon - stop.value)
            lines.append(
                f"  stops by: epsilon {stop.rounded} (rdp, order {book.order or 'open'}); left: epsilon {left:.4g}"
            )
        lines.append(f"  cross-check: epsilon {prv.rounded} (prv)" if prv else "  cross-check: none (prv)")
        if whole.uncovered:
            lines.append(f"  not covered by it: {whole.uncovered} tasks released something without a guarantee")
        if whole.open:
            lines.append(
                f"  of {whole.tasks} tasks {whole.open} never settled (at work, or crashed); they count as spent"
            )
        for run in dict.fromkeys(one.ref.run for one in book.spendings):
            one_study = balance(book, *terms, run)
            bare = f", {one_study.uncovered} without a guarantee" if one_study.uncovered else ""
            lines.append(f"  study {run}: {one_study.tasks} tasks{bare}, {one_study.account.reported}")
    if book.refused:
        lines.append(f"  refused: {book.refused} tasks")
    if rows:
        lines += [
            f"  {one.row}  {dt.datetime.fromtimestamp(one.at, dt.UTC):%Y-%m-%d %H:%M:%S}  {one.ref}  {one.kind.value}  "
            + ("; ".join(f"{release.mechanism} per {release.unit.value}" for release in one.releases) or "no guarantee")
            + ("" if one.is_settled else "  (never settled)")
            for one in book.spendings
        ]
    return lines


def _say_spent(rounds: int, history: tuple[Mechanism, ...], delta: float, unit: Unit) -> None:
    from ..utils.privacy.accounting import checked

    account = checked(history, delta, unit)
    _say(f"{rounds} rounds spend {account.pld}")
    prv = f", prv {account.prv.rounded}" if account.prv else ""
    _say(f"  by the rule that stops: epsilon {account.rdp.rounded} (rdp){prv}")


def _say(line: str) -> None:
    _CONSOLE.print(line, markup=False, highlight=False)
