"""What the patches of a run make of it: paused or not, who is asked, when it ends, from which model it goes on. Pure.

A patch is signed and kept before it takes effect, and takes effect between rounds: a round goes by the patches that
there were when it was opened, until it is over, whatever comes meanwhile. So what a run does follows from its rounds
and its patches alone, and a director that was killed goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..utils.errors import ConfigError, ProtocolError
from ..utils.messages import EnvoyName, TaskKind
from ..utils.plan_bundle import Manifest
from ..utils.proposal import MAX_PATCHES, Patch, Proposal, Step
from ..utils.signed_document import SignedDocument
from .experiments import ExperimentSettings
from .records import RoundRecord, RunRecord
from .rounds import Round, RoundState

MAX_PATCH_BYTES = 1 << 20
"""Of all patches of a run together: each task carries them."""
_COUNTED_BY_PRIVACY = frozenset({"batch_size", "local_epochs"})


@dataclass(frozen=True, slots=True)
class Steering:
    """The patches of a run so far, in their order; checked when they came."""

    patches: tuple[Patch, ...] = ()
    documents: tuple[SignedDocument, ...] = ()

    def after(self, patch: Patch, document: SignedDocument) -> Steering:
        """With one patch more."""
        return Steering((*self.patches, patch), (*self.documents, document))

    def first(self, count: int) -> Steering:
        """As it stood with so many patches: what an open round goes by."""
        return Steering(self.patches[:count], self.documents[:count])

    @property
    def pause(self) -> Patch | None:
        """What paused the run, if it is paused."""
        switches = [one for one in self.patches if one.step in (Step.PAUSE, Step.RESUME)]
        return switches[-1] if switches and switches[-1].step is Step.PAUSE else None

    @property
    def stop(self) -> Patch | None:
        """What stopped the run, if it was stopped."""
        return next((one for one in self.patches if one.step is Step.STOP), None)

    def sites(self, proposed: tuple[EnvoyName, ...]) -> tuple[EnvoyName, ...]:
        """Who may be asked; empty: every member."""
        return next((one.sites for one in reversed(self.patches) if one.sites is not None), proposed)

    def settings(self, base: ExperimentSettings) -> ExperimentSettings:
        """The experiment's settings with the stop rule as it was changed.

        Raises:
            ConfigError: what it became contradicts itself.
        """
        changed: dict[str, Any] = {}
        for patch in self.patches:
            changed |= {name: int(value) if name in Patch.WHOLE else value for name, value in patch.stop.items()}
        if not changed:
            return base
        rounds = {name: value for name, value in changed.items() if name == "max_rounds"}
        stop = {name: value for name, value in changed.items() if name != "max_rounds"}
        return replace(base, rounds=replace(base.rounds, **rounds), stop=replace(base.stop, **stop))

    def roll_back(self, since: int, until: int | None = None) -> Patch | None:
        """The last rollback among the patches after the first ``since`` ones, up to ``until``."""
        return next((one for one in reversed(self.patches[since:until]) if one.step is Step.ROLL_BACK), None)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands when a patch of it comes."""

    record: RunRecord
    settings: ExperimentSettings  # as submitted
    manifest: Manifest
    proposal: Proposal
    steering: Steering
    has_controls: bool  # SCAFFOLD's control variates
    members: Collection[EnvoyName]
    round: Round | None  # the present one; None while it is queued
    kept: Collection[int]  # rounds to which it can be rolled back


def check_patch(patch: Patch, document: SignedDocument, at: Standing) -> None:
    """May this patch, whose signature was checked, be taken now?

    Raises:
        ProtocolError: the run is over, or another patch was first, or it cannot be done; the message says why.
        ConfigError: what it would make of the settings contradicts itself.
    """
    run, count = at.record.run, len(at.steering.patches)
    if at.record.state.is_over:
        raise ProtocolError(f"{run} is {at.record.state.value}; only a queued or running one can be steered")
    if patch.proposal != at.proposal.digest:
        raise ProtocolError(f"patch {patch.number} of {run} is for another proposal than the run's")
    if patch.number != count + 1:
        raise ProtocolError(_conflict(patch, at.steering))
    if patch.number == MAX_PATCHES and patch.step is not Step.STOP:
        raise ProtocolError(f"{run} was patched {count} times; the last patch that it takes is to stop it")
    size = sum(len(one.content) + len(one.chain) for one in (*at.steering.documents, document))
    if size > MAX_PATCH_BYTES and patch.step is not Step.STOP:
        raise ProtocolError(f"{run}: all patches together have {size} bytes, expected at most {MAX_PATCH_BYTES}")
    _check_step(patch, at)


def lineage(rounds: Iterable[RoundRecord], steering: Steering, back_to: int | None = None) -> list[RoundRecord]:
    """The closed training rounds that the present model came from, in order; those that were rolled back are left out.

    Args:
        rounds: of the run, in order.
        steering: all its patches.
        back_to: a rollback that is about to take effect.
    """
    before: dict[int, tuple[RoundRecord, int]] = {}  # each closed round, and the one whose model entered it
    head, patches = 0, 0
    for record in rounds:
        this = record.round
        if this.cohort:
            back = steering.roll_back(patches, this.patches)
            head = back.to_round or 0 if back else head
            patches = this.patches
        if this.state is RoundState.CLOSED and this.kind is TaskKind.TRAIN:
            before[this.ref.round] = record, head
            head = this.ref.round
    if back_to is not None:
        head = back_to
    line: list[RoundRecord] = []
    while head in before:
        record, head = before[head]
        line.append(record)
    return line[::-1]


def opened_with(rounds: Iterable[RoundRecord]) -> int:
    """How many patches the last round had that was opened; those after them wait for the next."""
    return max((one.round.patches for one in rounds if one.round.cohort), default=0)


def _check_step(patch: Patch, at: Standing) -> None:
    run = at.record.run
    if patch.step is Step.PAUSE and at.steering.pause:
        raise ProtocolError(f"{run} is paused already")
    if patch.step is Step.RESUME and not at.steering.pause:
        raise ProtocolError(f"{run} is not paused; there is nothing to resume")
    if patch.step in (Step.SET, Step.ROLL_BACK) and at.round is not None and at.round.kind is TaskKind.EVALUATE:
        raise ProtocolError(f"{run} has ended its training; only its final evaluation is left")
    if patch.step is Step.ROLL_BACK:
        _check_roll_back(patch, at)
    if patch.step is Step.SET:
        _check_settings(patch, at)
        _check_sites(patch, at)
        _check_stop_rule(patch, at)


def _conflict(patch: Patch, steering: Steering) -> str:
    count = len(steering.patches)
    if patch.number > count:
        return f"patch {patch.number} of {patch.run} came, expected {count + 1}: one is missing"
    other = steering.patches[patch.number - 1]
    return (
        f"patch {patch.number} of {patch.run} is taken: {other.signed_by.name} gave it, to {other.step.value}"
        f"{f' ({other.reason})' if other.reason else ''}; look at the run again, and repeat what is still needed"
    )


def _check_roll_back(patch: Patch, at: Standing) -> None:
    if at.has_controls:
        raise ProtocolError(
            f"{at.record.run} trains with SCAFFOLD, whose control variates lie at the sites too and are not rolled"
            " back; stop it, and submit it anew"
        )
    if patch.to_round not in at.kept:
        there = ", ".join(map(str, sorted(at.kept))) or "none"
        raise ProtocolError(
            f"{at.record.run} cannot go back to round {patch.to_round}: models are kept of rounds {there} (keep_models"
            " in director.toml says how many)"
        )


def _check_settings(patch: Patch, at: Standing) -> None:
    for name in patch.settings:
        if name not in at.manifest.settings:
            known = ", ".join(sorted(at.manifest.settings)) or "none"
            raise ConfigError(f"plan {at.manifest.name} has no setting {name}; it has {known}")
        if at.manifest.privacy is not None and name in _COUNTED_BY_PRIVACY:
            raise ConfigError(
                f"plan {at.manifest.name} is trained with differential privacy ({at.manifest.privacy.label}), and"
                f" {name} belongs to what sites approved of it"
            )


def _check_sites(patch: Patch, at: Standing) -> None:
    if patch.sites is None:
        return
    if at.settings.secure_sum.groups:
        raise ConfigError("the run's groups of sites were drawn for all its rounds; sites cannot be changed")
    allowed = at.proposal.sites or at.members
    strange = sorted(set(patch.sites) - set(allowed))
    if strange:
        whose = "the proposal asks" if at.proposal.sites else "have joined"
        raise ConfigError(f"{', '.join(strange)}: not among the sites that {whose}: {', '.join(sorted(allowed))}")
    if len(patch.sites) < at.settings.rounds.min_participants:
        raise ConfigError(
            f"{len(patch.sites)} sites cannot give the {at.settings.rounds.min_participants} answers of"
            " rounds.min_participants"
        )


def _check_stop_rule(patch: Patch, at: Standing) -> None:
    if not patch.stop:
        return
    most = at.steering.after(patch, SignedDocument(b"", b"", b"")).settings(at.settings).rounds.max_rounds
    if most > at.proposal.max_rounds:
        raise ConfigError(
            f"max_rounds is {most}, and the sites are asked for {at.proposal.max_rounds}; for more, submit it anew"
        )
    if at.round is not None and most < at.round.ref.round:
        raise ConfigError(f"max_rounds is {most}, and round {at.round.ref.round} is under way; stop the run instead")
