"""What organizations agreed to, and what may be done under it. Pure: documents are known by their hash alone.

| kind | of whom | what it decides |
|---|---|---|
| Infrastructure User | one organization | if a federation asks for it, no task of its collaborations starts without |
| Consortium | the organizations of a collaboration | which of them may start tasks, and which may publish results |
| Data Processing, Joint Controller | likewise | which of the two applies to its tasks; without one, no task starts |

An agreement is a document (its SHA-256), a version, and who signed it when. A later version takes the place of an
earlier one once every party has signed; until then the earlier one holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ...utils.errors import AgreementError, ConfigError
from ...utils.identity import when


class Kind(Enum):
    """What is agreed."""

    INFRASTRUCTURE_USER = "infrastructure-user"
    CONSORTIUM = "consortium"
    DATA_PROCESSING = "data-processing"
    JOINT_CONTROLLER = "joint-controller"


_OF_DATA = frozenset({Kind.DATA_PROCESSING, Kind.JOINT_CONTROLLER})


@dataclass(frozen=True, slots=True)
class Agreement:
    """One version of an agreement.

    Raises:
        ConfigError: its fields contradict each other.
    """

    id: str
    kind: Kind
    version: int  # from 1; of one kind for one organization or collaboration
    document: str  # SHA-256 of the document that was signed
    parties: frozenset[str]  # organizations
    collaboration: str | None  # None: Infrastructure User
    valid_from: float  # seconds since 1970
    valid_until: float | None = None  # None: until another version takes its place
    may_start_tasks: frozenset[str] = frozenset()  # of the parties; Consortium alone
    may_publish: frozenset[str] = frozenset()
    intellectual_property: str = ""  # who owns the results; stands on model cards
    signed: Mapping[str, float] = field(default_factory=dict)  # organization: when

    def __post_init__(self) -> None:
        if not self.parties:
            raise ConfigError("an agreement without parties")
        is_infrastructure = self.kind is Kind.INFRASTRUCTURE_USER
        if is_infrastructure is not (self.collaboration is None):
            raise ConfigError(f"{self.kind.value}: it is {'of no' if is_infrastructure else 'of one'} collaboration")
        if is_infrastructure and len(self.parties) != 1:
            raise ConfigError("infrastructure-user: it is made with one organization at a time")
        if self.kind is not Kind.CONSORTIUM and (self.may_start_tasks or self.may_publish):
            raise ConfigError("may_start_tasks and may_publish are of a consortium agreement")
        for name, said in (("may_start_tasks", self.may_start_tasks), ("may_publish", self.may_publish)):
            if strange := said - self.parties:
                raise ConfigError(f"{name} names {min(strange)}, which is no party")
        if strange := frozenset(self.signed) - self.parties:
            raise ConfigError(f"{min(strange)} signed, and is no party")
        if self.valid_until is not None and not self.valid_from < self.valid_until:
            raise ConfigError("valid_until: it ends before it begins")

    @property
    def unsigned(self) -> frozenset[str]:
        """Who has yet to sign."""
        return self.parties - self.signed.keys()

    def is_in_force(self, now: float) -> bool:
        """Signed by all, begun, and not over."""
        return not self.unsigned and self.valid_from <= now and (self.valid_until is None or now < self.valid_until)


def in_force(agreements: Iterable[Agreement], kind: Kind, of: str, now: float) -> Agreement | None:
    """The newest version in force, of a collaboration; or of an organization, for Infrastructure User."""
    found = [
        one
        for one in agreements
        if one.kind is kind
        and of in ({one.collaboration} if one.collaboration else one.parties)
        and one.is_in_force(now)
    ]
    return max(found, key=lambda one: one.version, default=None)


@dataclass(frozen=True, slots=True)
class Permit:
    """What an authority allows a collaboration.

    Raises:
        ConfigError: it ends before it begins, or allows nothing.
    """

    number: str
    authority: str
    purpose: str
    starts_at: float  # seconds since 1970
    ends_at: float
    datasets: frozenset[str]  # by name; that tasks under it may read

    def __post_init__(self) -> None:
        if not self.starts_at < self.ends_at:
            raise ConfigError("permit: it ends before it begins")
        if not self.datasets:
            raise ConfigError("permit: it names no dataset, so nothing could be done under it")

    def check(self, now: float) -> None:
        """Does it hold now?

        Raises:
            AgreementError: not yet, or no more.
        """
        if now < self.starts_at:
            raise AgreementError(f"permit {self.number} of {self.authority} holds from {when(self.starts_at)} on")
        if now >= self.ends_at:
            raise AgreementError(f"permit {self.number} of {self.authority} ended on {when(self.ends_at)}")


@dataclass(frozen=True, slots=True)
class Collaboration:
    """Organizations under one permit.

    Raises:
        ConfigError: it asks for reviews of more organizations than it has.
    """

    id: str
    name: str
    organizations: frozenset[str]
    permit: Permit
    created_at: float = 0.0  # seconds since 1970
    version: int = 1
    reviews_needed: int = 0  # organizations whose reviewers approve a plan before a task of it starts

    def __post_init__(self) -> None:
        if not 0 <= self.reviews_needed <= len(self.organizations):
            raise ConfigError(
                f"reviews_needed is {self.reviews_needed}, expected 0 to the {len(self.organizations)} organizations"
            )


def check_may_start(
    collaboration: Collaboration,
    agreements: Sequence[Agreement],
    organization: str,
    dataset: str | None,
    now: float,
    *,
    needs_infrastructure_user: bool,
) -> Agreement:
    """May an organization start a task of a collaboration now? Asked again before every round.

    Args:
        collaboration: under whose permit.
        agreements: of it and of its organizations, all versions.
        organization: whose user starts it.
        dataset: that the task reads; None: none.
        now: seconds since 1970.
        needs_infrastructure_user: the federation's own rule.

    Returns:
        which of Data Processing and Joint Controller applies.

    Raises:
        AgreementError: it may not; the text names the permit or agreement that is missing.
    """
    named = f"collaboration {collaboration.name}"
    if organization not in collaboration.organizations:
        raise AgreementError(f"{organization} is not part of {named}")
    collaboration.permit.check(now)
    if dataset is not None and dataset not in collaboration.permit.datasets:
        raise AgreementError(f"permit {collaboration.permit.number} of {named} does not name dataset {dataset}")
    if needs_infrastructure_user:
        for one in sorted(collaboration.organizations):
            if in_force(agreements, Kind.INFRASTRUCTURE_USER, one, now) is None:
                raise AgreementError(f"{one} has no infrastructure-user agreement in force")
    consortium = in_force(agreements, Kind.CONSORTIUM, collaboration.id, now)
    if consortium is None:
        raise AgreementError(f"{named} has no consortium agreement in force; it says who may start tasks")
    if organization not in consortium.may_start_tasks:
        raise AgreementError(
            f"{organization} may not start tasks by version {consortium.version} of the consortium agreement"
        )
    found = [that for kind in _OF_DATA if (that := in_force(agreements, kind, collaboration.id, now)) is not None]
    if len(found) != 1:
        which = (
            "neither a data-processing nor a joint-controller"
            if not found
            else "both a data-processing and a joint-controller"
        )
        raise AgreementError(f"{named} has {which} agreement in force, expected one of them")
    return found[0]


def check_may_publish(
    collaboration: Collaboration, agreements: Sequence[Agreement], organization: str, now: float
) -> Agreement:
    """May an organization publish what came of a collaboration?

    Raises:
        AgreementError: it may not.
    """
    consortium = in_force(agreements, Kind.CONSORTIUM, collaboration.id, now)
    if consortium is None:
        raise AgreementError(
            f"collaboration {collaboration.name} has no consortium agreement in force; it says who may publish"
        )
    if organization not in consortium.may_publish:
        raise AgreementError(
            f"{organization} may not publish by version {consortium.version} of the consortium agreement"
        )
    return consortium
