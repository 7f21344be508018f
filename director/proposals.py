"""The proposal of an experiment: made from its settings by the operator, held against them by the director. Pure."""

from __future__ import annotations

from dataclasses import fields

from ..utils.errors import ConfigError, IdentityError, ProtocolError
from ..utils.identity import PeerId
from ..utils.plan_bundle import Manifest
from ..utils.proposal import Proposal
from ..utils.tensors import digest_of
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
