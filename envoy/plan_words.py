"""A proposal and its plan in words, for whoever decides about it at a site. Pure: values in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..utils.data_spec import DataKind
from ..utils.identity import when
from ..utils.plan_bundle import Bundle, Manifest
from ..utils.privacy.accounting import stopping
from ..utils.visible import visible
from .approvals import Limits, Standing, State
from .plan_difference import asked_for, settings_of
from .plan_scan import scan

COLUMNS = ("proposal", "study", "state", "rounds", "until", "proposed by", "purpose")


def row_of(standing: Standing, now: float) -> tuple[str, ...]:
    """One line of ``envoy plan list``, in the order of ``COLUMNS``."""
    proposal, limits = standing.proposal, standing.limits
    most = proposal.max_rounds if limits is None else limits.max_rounds
    end = proposal.expires_at if limits is None else limits.expires_at
    return (
        proposal.digest[:12],
        proposal.study,
        standing.state(now).value,
        f"{standing.rounds_done()} of {most}",
        when(end),
        proposal.proposed_by.name,
        proposal.purpose,
    )


def proposal_lines(standing: Standing, now: float) -> Iterator[str]:
    """Who asks what for, and how it stands."""
    proposal = standing.proposal
    yield f"proposal {proposal.digest}"
    yield f"study: {proposal.study}, offered as {standing.run} on {when(standing.offered_at)}"
    yield f"proposed by: {proposal.proposed_by}, on {when(proposal.proposed_at)}"
    yield f"good until: {when(proposal.expires_at)}"
    for name, value in asked_for(proposal).items():
        yield f"{name}: {value}"
    yield f"state: {standing.state(now).value}"
    yield from decision_lines(standing)


def decision_lines(standing: Standing) -> Iterator[str]:
    """What the site said, and what is left of it."""
    decision = standing.decision
    if decision is None:
        return
    reason = f": {decision.reason}" if decision.reason else ""
    yield f"{decision.word.value} by {visible(decision.by)} on {when(decision.at)}{reason}"
    if decision.limits is not None:
        yield from limit_lines(decision.limits)
    yield f"rounds begun here: {standing.rounds_done()}, of {', '.join(sorted(standing.runs)) or 'no run yet'}"


def limit_lines(limits: Limits) -> Iterator[str]:
    """Within what."""
    epsilon = "the data set's budget alone" if limits.epsilon is None else f"{limits.epsilon:g}"
    yield (
        f"within: data sets {', '.join(limits.datasets) or 'none'}; {limits.max_rounds} rounds; epsilon {epsilon};"
        f" until {when(limits.expires_at)}"
    )


def plan_lines(bundle: Bundle, max_rounds: int, also_allowed: Iterable[str] = ()) -> Iterator[str]:
    """What a plan is made of, and what its text imports and reaches for; every byte of it was checked.

    Args:
        bundle: the plan's.
        max_rounds: that its epsilon is told for.
        also_allowed: further modules that this site lets plans import.
    """
    manifest = bundle.manifest
    yield f"plan {manifest.name}, {manifest.digest}"
    for name, value in settings_of(manifest).items():
        yield f"{name}: {value}"
    yield from epsilon_lines(manifest, max_rounds)
    count = sum(entry.size for entry in bundle.layout.entries)
    yield f"model: {len(bundle.layout.entries)} tensors, {count} numbers"
    for file in manifest.files:
        yield f"file {file.path}: {file.size} bytes, {file.sha256[:12]}"
    if manifest.is_declarative:
        yield "code: none; the names of its recipe are this site's own software"
    else:
        yield from (visible(line) for line in scan(bundle, also_allowed).lines())


def epsilon_lines(manifest: Manifest, max_rounds: int) -> Iterator[str]:
    """What the ledger would count of a plan that trains with differential privacy; of another, nothing is said."""
    private = manifest.privacy
    if private is None:
        if manifest.data.kind is not DataKind.NONE:
            yield "epsilon: the plan has none of its own; this site's chain or the sum may add noise"
        return
    release = private.release()
    mechanism = release.protecting(release.unit)
    one = stopping([mechanism], private.delta, release.unit)
    all_ = stopping([mechanism] * max_rounds, private.delta, release.unit)
    yield f"one round: {one}"
    yield f"{max_rounds} rounds: {all_}"


def waits(standing: Standing, now: float) -> bool:
    """Is a decision asked for?"""
    return standing.state(now) is State.OFFERED
