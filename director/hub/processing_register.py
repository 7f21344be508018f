"""What a record of processing activities asks for (GDPR, Article 30), as far as the director knows it. No verdict.

One activity for each task of a collaboration. The director knows what people declared to it and what ran: whether a
record is complete or a legal basis good, it does not know.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from ...utils.proposal import proposal_of
from ..fairness_pages import no_formula
from ..records import RunRecord
from .agreements import Agreement, Collaboration
from .datasets import Dataset
from .organizations import Organization
from .tasks import Task


@dataclass(frozen=True, slots=True)
class Activity:
    """One task, in the order of Article 30(1)."""

    task_id: str
    started_by: str  # the organization
    parties: tuple[str, ...]  # name, contact and data protection officer of each organization of the collaboration
    processing: str  # joint-controller or data-processing, with the agreement's version and SHA-256
    purpose: str  # as the sites approved it
    legal_basis: str
    permit: str  # number and authority
    dataset: str
    sites: tuple[str, ...]  # where that dataset is registered, each with its modality and range of examples
    outputs: tuple[str, ...]  # what leaves the federation of it
    is_secure: bool  # single updates were under masks
    began_at: float | None  # seconds since 1970
    ended_at: float | None
    permit_ends_at: float


def activities(
    collaboration: Collaboration,
    organizations: Mapping[str, Organization],
    agreements: Mapping[str, Agreement],
    tasks: Iterable[tuple[Task, RunRecord]],
    datasets: Sequence[Dataset],
) -> tuple[Activity, ...]:
    """All of a collaboration, in the order of its tasks.

    Args:
        collaboration: whose.
        organizations: by id.
        agreements: by id, of all versions.
        tasks: of the collaboration, each with its run.
        datasets: that are registered.
    """
    parties = tuple(_party(organizations[one]) for one in sorted(collaboration.organizations))
    found = []
    for task, run in tasks:
        said = None if run.proposal is None else proposal_of(run.proposal.content)
        agreement = agreements[task.processing]
        found.append(
            Activity(
                task_id=task.run,
                started_by=organizations[task.organization].name,
                parties=parties,
                processing=f"{agreement.kind.value}, version {agreement.version}, SHA-256 {agreement.document}",
                purpose=said.purpose if said else "",
                legal_basis=said.legal_basis if said else "",
                permit=f"{collaboration.permit.number} of {collaboration.permit.authority}",
                dataset=task.dataset or "",
                sites=tuple(
                    f"{one.envoy}: {one.modality or 'no modality'}, {one.examples or 'unsaid'} examples"
                    for one in datasets
                    if one.name == task.dataset and one.organization in collaboration.organizations
                ),
                outputs=tuple(one.value for one in said.outputs) if said else (),
                is_secure=said.is_secure if said else False,
                began_at=run.started_at,
                ended_at=run.ended_at,
                permit_ends_at=collaboration.permit.ends_at,
            )
        )
    return tuple(found)


def as_csv(found: Iterable[Activity]) -> str:
    """A row for each; what a spreadsheet would take for a formula is kept a text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([one.name for one in fields(Activity)])
    for one in found:
        writer.writerow([_cell(value) for value in asdict(one).values()])
    return out.getvalue()


def _party(one: Organization) -> str:
    return f"{one.name} (contact: {one.contact or 'none'}; DPO: {one.data_protection_officer or 'none'})"


def _cell(value: object) -> str:
    text = "; ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
    return no_formula(text)
