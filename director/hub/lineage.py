"""Where a model came from, as a value: which data of which sites, by which plan, in which rounds. Pure.

The rounds are those that the model's numbers went through; what was rolled back is left out. Of a secure sum the sites
are its survivors, else those whose answers were summed. The dataset is the one that the plan declares: sites hand out
no other under a plan. What a site really had under that name, it alone knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...utils.errors import ProtocolError, UnknownEntityError
from ...utils.messages import EnvoyName, RunId
from ...utils.tensors import Digest
from ..records import RoundRecord
from ..steering import Steering, opened_with
from ..steering import lineage as closed_line


@dataclass(frozen=True, slots=True)
class RoundUse:
    """One round that a model went through."""

    round: int
    attempt: int
    closed_at: float | None
    sites: tuple[EnvoyName, ...]  # whose updates are in it
    is_secure: bool  # sums alone were seen
    transcript: Digest | None  # of the secure sum
    model_in: Digest
    model_out: Digest


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """One site's data, and the rounds that they were in."""

    site: EnvoyName
    organization: str | None  # id; None where nobody says that the site is its
    dataset: str | None  # id of what is registered of that name at that site
    digest: str  # of the data, by the site's own word; "" where it says none
    rounds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offered:
    """A dataset that is registered, as far as it matters here."""

    id: str
    site: str
    digest: str


@dataclass(frozen=True, slots=True)
class Parent:
    """A registered model that the first round began with."""

    model: str
    name: str
    semver: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """Dataset - plan - round - model."""

    run: RunId
    plan: Digest
    data: str | None  # the name that the plan declares; None: it reads none
    rounds: tuple[RoundUse, ...]
    datasets: tuple[DatasetUse, ...]  # by site
    parents: tuple[Parent, ...] = ()

    @property
    def last(self) -> RoundUse:
        """The round that gave the model."""
        return self.rounds[-1]

    def to_json(self) -> dict[str, Any]:
        """As it stands on the card."""
        return {"began_with": self.rounds[0].model_in, "model": self.last.model_out} | asdict(self)


def rounds_of(run: RunId, told: Sequence[RoundRecord], steering: Steering, number: int | None) -> tuple[RoundUse, ...]:
    """The rounds that a model went through: the run's present one, or that of an earlier round.

    Raises:
        ProtocolError: no training round has closed.
        UnknownEntityError: the present model did not go through that round.
    """
    back = steering.roll_back(opened_with(told))
    line = closed_line(told, steering, back.to_round if back else None)
    if not line:
        raise ProtocolError(f"{run} has closed no training round; there is no model of it but the one it began with")
    uses = [_use(one) for one in line]
    if number is None:
        return tuple(uses)
    found = [place for place, one in enumerate(uses, 1) if one.round == number]
    if not found:
        there = ", ".join(str(one.round) for one in uses)
        raise UnknownEntityError(f"{run} has no model of round {number}; it went through rounds {there}")
    return tuple(uses[: found[0]])


def datasets_of(
    rounds: Iterable[RoundUse], offered: Iterable[Offered], whose: dict[EnvoyName, str | None]
) -> tuple[DatasetUse, ...]:
    """Each site's data, and in which of these rounds they were."""
    by_site = {one.site: one for one in offered}
    found: dict[EnvoyName, list[int]] = {}
    for use in rounds:
        for site in use.sites:
            found.setdefault(site, []).append(use.round)
    return tuple(
        DatasetUse(
            site,
            whose.get(site),
            by_site[site].id if site in by_site else None,
            by_site[site].digest if site in by_site else "",
            tuple(numbers),
        )
        for site, numbers in sorted(found.items())
    )


def _use(record: RoundRecord) -> RoundUse:
    this, summed = record.round, record.sum
    if record.model_out is None:
        raise ProtocolError(f"{this.ref} is closed and gave no model")
    return RoundUse(
        this.ref.round,
        this.ref.attempt,
        record.closed_at,
        tuple(sorted(this.received if summed is None else summed.survivors)),
        summed is not None,
        summed.transcript if summed is not None else None,
        record.model_in,
        record.model_out,
    )
