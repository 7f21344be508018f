"""What is checked of a submission at the site, before anything of it leaves. Pure: numbers in, a report out.

The checks are the site's own rules, asked early so that somebody can see all of what is wrong at once; the session asks
``protection``, the leak test, the ledger and the secure sum's floors again when the update leaves, whatever was asked
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.errors import ConfigError, UnsendableUpdateError
from ...utils.privacy.values import rounded_up
from ...utils.tensors import Layout, named_views
from ..gate import Outcome
from ..policy import ProtectionPolicy
from ..privacy_books import Book
from ..protection import Closed
from ..protection import check as check_update
from .named_update import as_vector, misfits

CHECKS = ("bounds_check", "nan_check", "privacy_check")
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check says."""

    check: str
    what: str  # in words; names the layer where it is one's
    is_failure: bool = True  # else: worth knowing


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """How large one layer of a submission is. It stays at the site."""

    name: str
    l2: float
    largest: float  # L-infinity


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """True where every check that was asked passed."""

    checks: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    layers: tuple[LayerNorms, ...] = ()

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What is wrong."""
        return tuple(one for one in self.findings if one.is_failure)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What is worth knowing, and stops nothing."""
        return tuple(one for one in self.findings if not one.is_failure)

    def __str__(self) -> str:
        lines = [f"{one.check}: {'failed: ' if one.is_failure else ''}{one.what}" for one in self.findings]
        return "\n".join(lines) or f"passed: {', '.join(self.checks)}"


@dataclass(frozen=True, slots=True)
class PrivacySituation:
    """What the site knows about a round's privacy."""

    policy: ProtectionPolicy | None
    leak_test: Outcome | None  # the last of this plan at this site; None: none was made
    book: Book | None  # of the round's data set; None: the plan reads none, or no ledger is here
    cohort: int  # sites asked in this round
    organizations: int  # the site's own floor of a secure sum
    is_summed: bool
    may_be_plain: bool  # the site lets updates out in the clear


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a submission may be.

    ``max_norm`` and ``clip`` stop nothing: the site's protection and the secure sum cut to them.
    """

    max_norm: float | None = None  # L2 to which this site's protection clips all of it
    clip: tuple[float, ...] = ()  # largest magnitude that the secure sum keeps, a layer each; or one for all


def checked_names(checks: Iterable[str]) -> tuple[str, ...]:
    """The checks that were asked for, each once.

    Raises:
        ConfigError: there is no such check.
    """
    asked = (checks,) if isinstance(checks, str) else tuple(checks)
    unknown = [str(one)[:80] for one in asked if one not in CHECKS]
    if unknown or not asked:
        raise ConfigError(f"checks: {', '.join(unknown) or 'none'}; expected some of {', '.join(CHECKS)}")
    return tuple(dict.fromkeys(asked))


def validated(
    gradients: Mapping[str, Any],
    layout: Layout,
    checks: Iterable[str],
    bounds: Bounds,
    situation: PrivacySituation,
) -> ValidationReport:
    """Check a submission.

    Args:
        gradients: arrays by name.
        layout: the plan's.
        checks: some of ``CHECKS``.
        bounds: of this round.
        situation: what the site knows of its privacy.

    Raises:
        ConfigError: there is no such check.
    """
    asked = checked_names(checks)
    findings: list[Finding] = []
    faults = misfits(layout, gradients)
    if "bounds_check" in asked:
        findings += [Finding("bounds_check", fault) for fault in faults]
        findings += _bounds(gradients, layout, bounds) if not faults else []
    if "nan_check" in asked:
        findings += _not_finite(gradients)
    if "privacy_check" in asked:
        findings += _privacy(situation)
    return ValidationReport(asked, tuple(findings), () if faults else _norms(gradients, layout))


def _bounds(gradients: Mapping[str, Any], layout: Layout, bounds: Bounds) -> Iterable[Finding]:
    vector = as_vector(layout, gradients)
    try:
        check_update(vector, layout)
    except UnsendableUpdateError as error:
        yield Finding("bounds_check", str(error))
        return
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if bounds.max_norm is not None and norm > bounds.max_norm:
        said = f"its L2 norm is {norm:.4g}: this site's protection clips it to {bounds.max_norm:g}"
        yield Finding("bounds_check", said, is_failure=False)
    clips = bounds.clip * len(layout.entries) if len(bounds.clip) == 1 else bounds.clip
    if len(clips) == len(layout.entries):
        for (entry, view), clip in zip(named_views(layout, vector), clips, strict=True):
            largest = float(np.abs(view).max(initial=0.0))
            if largest > clip:
                said = f"{entry.name} reaches {largest:.4g}: the secure sum cuts it to {clip:g}"
                yield Finding("bounds_check", said, is_failure=False)


def _not_finite(gradients: object) -> Iterable[Finding]:
    for name, array in gradients.items() if isinstance(gradients, Mapping) else ():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            continue  # bounds_check says so
        for word, found in (("NaN", np.isnan(array)), ("infinity", np.isinf(array))):
            if count := int(np.count_nonzero(found)):
                yield Finding("nan_check", f"{name} holds {word} in {count} of {array.size} numbers")
        small = np.abs(array)
        denormal = int(np.count_nonzero((small > 0) & (small < _TINY)))
        if denormal:
            said = f"{name} holds denormal numbers (below {_TINY:.3g}) in {denormal} of {array.size}"
            yield Finding("nan_check", said, is_failure=False)


def _privacy(situation: PrivacySituation) -> Iterable[Finding]:
    policy = situation.policy
    if policy is None:
        yield Finding("privacy_check", "envoy.toml has no [protection] table, so nothing leaves this site")
        return
    if policy.max_leakage is not None:
        verdict = None if situation.leak_test is None else situation.leak_test.verdict(policy.max_leakage)
        if verdict is None:
            yield Finding("privacy_check", "the leak test of this plan was not made yet: `envoy plan leak-test`")
        elif isinstance(verdict, Closed):
            yield Finding("privacy_check", verdict.reason)
    yield from _group(situation)
    if situation.book is not None and situation.book.budget is not None:
        yield from _budget(situation.book)


def _group(situation: PrivacySituation) -> Iterable[Finding]:
    if not situation.is_summed:
        if situation.may_be_plain:
            said = "this round is in the clear: the director sees this site's update by itself"
            yield Finding("privacy_check", said, is_failure=False)
        else:
            yield Finding("privacy_check", "this round is in the clear, and this site takes part in secure sums alone")
    elif situation.cohort < situation.organizations:
        said = f"{situation.cohort} sites are summed, this site asks for {situation.organizations} organizations"
        yield Finding("privacy_check", said)


def _budget(book: Book) -> Iterable[Finding]:
    stopping, budget = book.stopping(), book.budget
    if stopping is None or budget is None:
        return
    spent = rounded_up(stopping.value)  # this round is in it: it was counted before it was trained
    said = f"{spent} of epsilon {budget.epsilon:g} of data set {book.dataset} is spent, this round in it"
    yield Finding("privacy_check", said, is_failure=stopping.value > budget.epsilon)


def _norms(gradients: Mapping[str, Any], layout: Layout) -> tuple[LayerNorms, ...]:
    found = []
    for entry in layout.entries:
        array = gradients[entry.name].astype(np.float64)
        largest = float(np.abs(array).max(initial=0.0))
        found.append(LayerNorms(entry.name, float(np.linalg.norm(array.ravel())), largest))
    return tuple(found)
