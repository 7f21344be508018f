"""What of a run this site lets an operator change between rounds. Pure.

A patch (``utils/proposal.py``) is numbered and signed; the site takes all patches of a run in their order, and may
refuse what it does not accept. Whatever it accepts, a patch never loosens what was approved: no site and no round
beyond the proposal, and no setting on which the epsilon of a plan with differential privacy depends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from ..utils.errors import ConfigError, NotApprovedError
from ..utils.messages import EnvoyName, Task
from ..utils.proposal import Patch, Proposal, Step, settings_after


class Change(Enum):
    """What a patch may change, as ``[steering] accept`` names it. Pause, resume and stop ask nothing of a site."""

    LEARNING_RATE = "learning_rate"
    LOCAL_EPOCHS = "local_epochs"
    BATCH_SIZE = "batch_size"
    PROXIMAL_MU = "proximal_mu"
    SITES = "sites"
    STOP_RULE = "stop_rule"
    ROLL_BACK = "rollback"


_OF_PRIVATE_PLANS = frozenset({Change.LEARNING_RATE, Change.SITES, Change.STOP_RULE, Change.ROLL_BACK})
"""They see the noised gradients alone; a private plan has no local epochs and no batches of its own."""


@dataclass(frozen=True, slots=True)
class SteeringPolicy:
    """The table ``[steering]``.

    Raises:
        ConfigError: out of range, or a change that is named twice.
    """

    accept: tuple[Change, ...] = tuple(Change)
    max_local_epochs: int | None = None  # that a patch may set; none: no limit beside what a plan takes

    def __post_init__(self) -> None:
        if len(set(self.accept)) != len(self.accept):
            raise ConfigError("accept names a change twice")
        if self.max_local_epochs is not None and self.max_local_epochs < 1:
            raise ConfigError(f"max_local_epochs is {self.max_local_epochs}, expected at least 1")


ANY_CHANGE = SteeringPolicy()
"""Where ``envoy.toml`` has no such table: all that does not loosen what was approved."""


def changes_of(patch: Patch) -> frozenset[Change]:
    """What a patch changes."""
    found = {Change(name) for name in patch.settings}
    found |= {Change.SITES} if patch.sites is not None else set()
    found |= {Change.STOP_RULE} if patch.stop else set()
    found |= {Change.ROLL_BACK} if patch.step is Step.ROLL_BACK else set()
    return frozenset(found)


def check_patch(policy: SteeringPolicy, patch: Patch, proposal: Proposal) -> None:
    """Does this site take a patch?

    Raises:
        NotApprovedError: it does not accept such a change, or the patch loosens what was approved.
    """
    named = f"patch {patch.number} of {patch.run}"
    refused = sorted(change.value for change in changes_of(patch) - set(policy.accept))
    if refused:
        raise NotApprovedError(f"{named} changes {', '.join(refused)}, which this site does not accept")
    epochs = patch.settings.get("local_epochs")
    if epochs is not None and policy.max_local_epochs is not None and epochs > policy.max_local_epochs:
        raise NotApprovedError(
            f"{named} sets local_epochs to {epochs:g}; this site accepts {policy.max_local_epochs} at most"
        )
    strange = sorted(set(patch.sites or ()) - set(proposal.sites)) if proposal.sites else []
    if strange:
        raise NotApprovedError(f"{named} asks {', '.join(strange[:3])}, which the approved proposal does not name")
    rounds = patch.stop.get("max_rounds")
    if rounds is not None and rounds > proposal.max_rounds:
        raise NotApprovedError(
            f"{named} sets max_rounds to {rounds:g}; no more than {proposal.max_rounds} were proposed"
        )


def check_private(patches: tuple[Patch, ...]) -> None:
    """Of a plan with differential privacy: is what its epsilon is counted from left alone?

    Raises:
        NotApprovedError: it is not.
    """
    for patch in patches:
        refused = sorted(change.value for change in changes_of(patch) - _OF_PRIVATE_PLANS)
        if refused:
            raise NotApprovedError(
                f"patch {patch.number} of {patch.run} changes {', '.join(refused)} of a plan with differential privacy;"
                " its epsilon stands in the plan"
            )


def check_sites(patches: tuple[Patch, ...], task: Task, name: EnvoyName) -> None:
    """Are those who are asked the sites that the last patch names, if one does?

    Raises:
        NotApprovedError: they are not.
    """
    named = next((patch for patch in reversed(patches) if patch.sites is not None), None)
    if named is None or named.sites is None:
        return
    if name not in named.sites or not set(task.cohort) <= set(named.sites):
        raise NotApprovedError(f"{task.ref} asks other sites than patch {named.number} names")


def effective(patches: tuple[Patch, ...]) -> Mapping[str, float]:
    """The plan's settings that are other than in its manifest."""
    return settings_after(patches)
