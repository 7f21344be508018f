"""The proposal of an experiment: made from its settings by the operator, held against them by the director. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import MappingProxyType

from ..utils.errors import ConfigError, IdentityError, ProtocolError
from ..utils.identity import PeerId
from ..utils.messages import EnvoyName, RunId
from ..utils.plan_bundle import Manifest
from ..utils.proposal import MAX_LINE, MAX_PATCHES, Patch, Proposal, Step
from ..utils.tensors import Digest, digest_of
from .experiments import ExperimentSettings
from .sum_terms import noise_of

MOST_SKEW_SECONDS = 300.0
"""How far the clocks of whoever signs and of the director may be apart."""
_DAY_SECONDS = 86_400.0


def propose(
    settings: ExperimentSettings, text: str, manifest: Manifest, federation: str, operator: PeerId, now: float
) -> Proposal:
    """What the sites are asked to approve.

    Args:
        settings: of the experiment.
        text: of experiment.toml, whose digest the proposal holds.
        manifest: of its plan.
        federation: whose sites are asked.
        operator: who signs.
        now: seconds since 1970.

    Raises:
        ConfigError: the settings do not say what the study is for, or how many rounds is beyond what a proposal says.
    """
    study = settings.study
    if study is None:
        raise ConfigError(
            "experiment.toml: the table [study] is missing, and sites approve what a study is for; add [study] with"
            ' purpose = "one line"'
        )
    noise = noise_of(settings)
    return Proposal(
        federation=federation,
        study=settings.name,
        plan=manifest.digest,
        settings=digest_of(text.encode()),
        purpose=study.purpose,
        legal_basis=study.legal_basis,
        max_rounds=settings.rounds.max_rounds,
        is_secure=settings.is_secure,
        aggregator=settings.secure_sum.aggregator if settings.is_secure else "director",
        codec=settings.codec.digest if settings.codec else None,
        asked=settings.protection,
        sites=tuple(sorted(study.sites)),
        outputs=study.outputs,
        proposed_by=operator,
        proposed_at=now,
        expires_at=now + study.valid_days * _DAY_SECONDS,
        sum_noise=0.0 if noise is None else noise.noise_multiplier,
    )


def next_patch(
    run: RunId,
    proposal: Digest | None,
    patches: int,
    step: Step,
    operator: PeerId,
    now: float,
    *,
    reason: str = "",
    settings: Mapping[str, float] = MappingProxyType({}),
    sites: Iterable[str] | None = None,
    stop: Mapping[str, float] = MappingProxyType({}),
    to_round: int | None = None,
) -> Patch:
    """One change to an experiment, as the next after those that there are.

    Args:
        run: the experiment.
        proposal: of it.
        patches: changes to it so far.
        step: what is done.
        operator: who signs it.
        now: seconds since 1970.
        reason: kept with the patch; of a long one, the beginning.
        settings: of the plan, by name; of ``SET`` alone, as ``sites`` and ``stop``.
        sites: who is asked from the next round on.
        stop: the stop rule's, by name.
        to_round: of ``ROLL_BACK`` alone.

    Raises:
        ProtocolError: the experiment is of before there were proposals.
        MalformedMessageError: a value that it cannot have.
    """
    if proposal is None:
        raise ProtocolError(f"{run} was submitted before there were proposals, and takes no patches")
    return Patch(
        run=run,
        proposal=proposal,
        number=min(patches + 1, MAX_PATCHES),
        step=step,
        settings=dict(settings),
        sites=None if sites is None else tuple(sorted({EnvoyName(site) for site in sites})),
        stop=dict(stop),
        to_round=to_round,
        reason=one_line(reason),
        signed_by=operator,
        signed_at=now,
    )


def one_line(reason: str) -> str:
    """A reason as one printable line; of a long one, the beginning."""
    return "".join(letter if letter.isprintable() else " " for letter in reason)[:MAX_LINE]


def check_proposal(
    proposal: Proposal, settings: ExperimentSettings, text: str, manifest: Manifest, caller: PeerId, now: float
) -> None:
    """Does a proposal, whose signature was checked, say just what its submission does?

    Raises:
        ConfigError: as ``propose``.
        IdentityError: the caller did not sign it.
        ProtocolError: a field says something else, or it was made at another time than now.
    """
    check_signed(proposal.proposed_by, proposal.proposed_at, caller, now, "a proposal")
    expected = propose(settings, text, manifest, caller.federation, caller, proposal.proposed_at)
    names = [one.name for one in fields(Proposal) if one.name != "digest"]
    other = [name for name in names if getattr(proposal, name) != getattr(expected, name)]
    if other:
        raise ProtocolError(
            f"the proposal differs from the experiment that it came with in {', '.join(other)}; submit with"
            " `director experiment submit`, which makes both from one file"
        )


def check_signed(signer: PeerId, signed_at: float, caller: PeerId, now: float, what: str) -> None:
    """Was something signed by whoever sends it, just now?

    Raises:
        IdentityError: by another.
        ProtocolError: at another time than now.
    """
    if signer != caller:
        raise IdentityError(f"{caller} sends {what} that {signer} signed; sign your own")
    if abs(signed_at - now) > MOST_SKEW_SECONDS:
        raise ProtocolError(
            f"{what} whose time differs by {abs(signed_at - now):.0f} s from the director's, expected at most"
            f" {MOST_SKEW_SECONDS:.0f}: set the clock, and sign again"
        )
