"""What a model card says, drawn from the director's records. Pure; ``card_page`` writes it for people.

Every line is a record's: what somebody declared is said to be declared, and by whom; where a site published nothing,
that is said, and nothing concluded from it. The epsilons are each site's own account over all its studies, and no sum
of them is made. Nothing here is one site's measurement: metrics are sums over sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ... import __version__
from ...utils.messages import EnvoyName, TaskKind
from ...utils.model_card import SCHEMA
from ...utils.proposal import Proposal
from ..records import Published, RoundRecord, RunRecord
from .agreements import Agreement, Collaboration
from .lineage import Lineage


@dataclass(frozen=True, slots=True)
class Person:
    """Who did something, and for whom."""

    user: str
    organization: str  # id
    organization_name: str
    at: float  # seconds since 1970

    def to_json(self) -> dict[str, Any]:
        """As it stands on the card."""
        return {
            "user": self.user,
            "organization": {"id": self.organization, "name": self.organization_name},
            "at": self.at,
        }


@dataclass(frozen=True, slots=True)
class Declared:
    """What whoever registers a model says of it."""

    name: str
    semver: str
    intended_use: str
    limitations: str


def draw_card(
    federation: str,
    declared: Declared,
    size: int,
    run: RunRecord,
    proposal: Proposal | None,
    lineage: Lineage,
    told: Sequence[RoundRecord],
    published: Mapping[tuple[int, int], Mapping[EnvoyName, Published]],
    collaboration: Collaboration,
    organizations: Mapping[str, str],
    processing: Agreement,
    consortium: Agreement | None,
    withdrawn: Iterable[str],
    by: Person,
) -> dict[str, Any]:
    """The card of a model that is being registered.

    Args:
        federation: its name.
        declared: what its maker says.
        size: of the file, in bytes.
        run: that it came from.
        proposal: what sites approved; None in runs of before there were any.
        lineage: of the model.
        told: all rounds of the run.
        published: what sites told of themselves, by round and attempt.
        collaboration: whose task the run was.
        organizations: names by id.
        processing: the agreement on data that the task was started under.
        consortium: the agreement in force; None: none is.
        withdrawn: ids of datasets in the lineage that are withdrawn already.
        by: who registers it.
    """
    permit = collaboration.permit
    return {
        "schema": SCHEMA,
        "software": f"fedveil {__version__}",
        "federation": federation,
        "name": declared.name,
        "version": declared.semver,
        "file": {"sha256": lineage.last.model_out, "bytes": size, "format": "safetensors"},
        "intended_use": declared.intended_use,
        "limitations": declared.limitations,
        "purpose": proposal.purpose if proposal else None,
        "legal_basis": (proposal.legal_basis or None) if proposal else None,
        "proposal": proposal.digest if proposal else None,
        "collaboration": {
            "id": collaboration.id,
            "name": collaboration.name,
            "organizations": [
                {"id": one, "name": organizations.get(one, "")} for one in sorted(collaboration.organizations)
            ],
        },
        "permit": {
            "number": permit.number,
            "authority": permit.authority,
            "purpose": permit.purpose,
            "starts_at": permit.starts_at,
            "ends_at": permit.ends_at,
        },
        "processing": _agreement(processing) | {"kind": processing.kind.value},
        "intellectual_property": owner_of(consortium),
        "task": {"id": run.run, "state": run.state.value, "reason": run.reason},
        "lineage": lineage.to_json(),
        "metrics": _metrics(lineage, told),
        "protection": _protection(lineage, proposal),
        "privacy": _privacy(lineage, published),
        "withdrawn_datasets": sorted(withdrawn),
        "registered": by.to_json(),
        "published": None,
    }


def published_card(card: Mapping[str, Any], consortium: Agreement, by: Person) -> dict[str, Any]:
    """The card of the same model once it is published: who did so, and under which agreement."""
    return dict(card) | {
        "intellectual_property": owner_of(consortium),
        "published": by.to_json() | {"agreement": _agreement(consortium)},
    }


def owner_of(consortium: Agreement | None) -> dict[str, Any] | None:
    """Who owns the results, where the consortium agreement says so."""
    if consortium is None or not consortium.intellectual_property:
        return None
    return {"owner": consortium.intellectual_property, "agreement": _agreement(consortium)}


def _agreement(one: Agreement) -> dict[str, Any]:
    return {"id": one.id, "version": one.version, "document_sha256": one.document}


def _metrics(lineage: Lineage, told: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """Of the round that gave the model, and of evaluations of this very model."""
    found = []
    for one in told:
        ref, gave = one.round.ref, one.model_out == lineage.last.model_out
        is_its = gave and (ref.round, ref.attempt) == (lineage.last.round, lineage.last.attempt)
        is_evaluation = one.round.kind is TaskKind.EVALUATE and one.model_in == lineage.last.model_out
        values = {metric.name: metric.value for metric in one.metrics if metric.value is not None}
        if (is_its or is_evaluation) and values:
            sites = len(one.round.received if one.sum is None else one.sum.survivors)
            found.append({"round": ref.round, "kind": one.round.kind.value, "sites": sites, "values": values})
    return found


def _protection(lineage: Lineage, proposal: Proposal | None) -> dict[str, Any]:
    secure = sum(one.is_secure for one in lineage.rounds)
    asked = proposal.asked if proposal else None
    return {
        "secure_aggregation": {"rounds": len(lineage.rounds), "secure": secure},
        "asked_of_sites": {"max_norm": asked.max_norm, "noise_multiplier": asked.noise_multiplier} if asked else None,
        "noise_in_sums": proposal.sum_noise if proposal else None,
        "codec": proposal.codec if proposal else None,
    }


def _privacy(lineage: Lineage, published: Mapping[tuple[int, int], Mapping[EnvoyName, Published]]) -> dict[str, Any]:
    """The last epsilon, and the highest score, that each site published up to this model."""
    epsilons: dict[str, dict[str, Any]] = {}
    scores: dict[str, float] = {}
    sites: set[str] = set()
    for use in lineage.rounds:
        sites |= set(use.sites)
        for site, one in published.get((use.round, use.attempt), {}).items():
            if one.privacy is not None:
                epsilons[site] = one.privacy.to_json()
            if one.leakage_score is not None:
                scores[site] = max(one.leakage_score, scores.get(site, one.leakage_score))
    return {
        "epsilons": epsilons,
        "without_epsilon": sorted(sites - epsilons.keys()),
        "leakage_scores": scores,
        "without_leakage_score": sorted(sites - scores.keys()),
    }
