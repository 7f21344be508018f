"""The secure sums of one attempt in which groups of sites are summed apart: a sum each, side by side.

A group whose sum cannot go on is left out, once and for all (its log says so, for a director that is killed), as long
as enough groups remain; its sites are told that they are not needed. When every group is ready or left out, all that
are ready are opened together. Used under the coordinator's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from ..utils.errors import FederationError, NotInvitedError, StorageError, SumAbortedError, WrongRoundError
from ..utils.messages import EnvoyName, SumItem, TaskRef, UpdateHeader, Withdrawal
from ..utils.secure_sum import summation
from ..utils.tensors import Digest
from .audit import DirectorAudit
from .sum_log import Event, SumLog, Way
from .sum_progress import SecureSum, SumPolicy
from .uploads import Uploads

_LOG = logging.getLogger(__name__)
_FAILED = "failed"
_MOST_REASONS = 3


class GroupSum(SecureSum):
    """The secure sum of one group, which may be left out.

    Args:
        members: who is asked.
        others: as of ``SecureSum``.
    """

    failure = ""  # why it is left out

    def __init__(
        self,
        members: Collection[EnvoyName],
        beginning: summation.Gathering,
        policy: SumPolicy,
        log: SumLog,
        audit: DirectorAudit | None,
        now: float,
    ) -> None:
        self.members = frozenset(members)
        super().__init__(beginning, policy, log, audit, now)

    @property
    def number(self) -> int:
        """Of the group, from 1."""
        return self.spec.terms.group

    def leave_out(self, reason: str, now: float) -> None:
        """This group's sum does not go on.

        Raises:
            StorageError: that cannot be kept, and so it is not so.
        """
        self._log.append(Event(Way.HERE, _FAILED, content=reason.encode()), now)
        self.failure = reason

    def _repeat(self, event: Event) -> None:
        if event.way is Way.HERE and event.stage == _FAILED:
            self.failure = event.content.decode(errors="replace")
        else:
            super()._repeat(event)


class GroupedSum:
    """All groups of one attempt.

    Args:
        ref: the attempt.
        parts: a sum for each group that is asked.
        quorum: groups that must be ready.
        least: updates that must be in their sums together.
    """

    def __init__(self, ref: TaskRef, parts: Sequence[GroupSum], quorum: int, least: int) -> None:
        self.ref, self.parts, self.quorum, self._least = ref, tuple(parts), quorum, least
        self._homes = {name: part for part in parts for name in part.members}

    @property
    def left(self) -> tuple[GroupSum, ...]:
        """The groups that are not left out."""
        return tuple(part for part in self.parts if not part.failure)

    @property
    def stage(self) -> str:
        """What envoys say in each group now."""
        return ",".join(part.stage if not part.failure else _FAILED for part in self.parts)

    @property
    def is_ready(self) -> bool:
        """The sums can be opened."""
        return all(part.is_ready for part in self.left)

    @property
    def survivors(self) -> tuple[EnvoyName, ...]:
        """Whose updates are in a sum."""
        return tuple(sorted(name for part in self.left for name in part.survivors))

    def asks(self, envoy: EnvoyName) -> bool:
        """Is the envoy in a group that goes on?"""
        part = self._homes.get(envoy)
        return part is not None and not part.failure

    def take(self, envoy: EnvoyName, content: bytes, arrived: Mapping[EnvoyName, Digest], now: float) -> None:
        """One statement of an envoy, in its own group's sum and no other.

        Raises:
            WrongRoundError: its group is left out.
            FederationError: as ``SecureSum.take``.
        """
        self._part(envoy).take(envoy, content, arrived, now)

    def refuse(self, envoy: EnvoyName, now: float) -> None:
        """An envoy declined."""
        if self.asks(envoy):
            self._homes[envoy].refuse(envoy, now)

    def accuse(self, by: EnvoyName, reason: str) -> EnvoyName | None:
        """As ``SecureSum.accuse``, within a group."""
        return self._homes[by].accuse(by, reason) if self.asks(by) else None

    def check_header(self, envoy: EnvoyName, header: UpdateHeader) -> None:
        """May this envoy send this masked vector now?

        Raises:
            WrongRoundError: its group is left out.
            FederationError: as ``SecureSum.check_header``.
        """
        self._part(envoy).check_header(envoy, header)

    def item_for(self, envoy: EnvoyName) -> SumItem | None:
        """What was sent to an envoy in its group's stage, if its answer is still missing."""
        return self._homes[envoy].item_for(envoy) if self.asks(envoy) else None

    def advance(
        self, asked: Collection[EnvoyName], gone: Collection[EnvoyName], now: float
    ) -> Mapping[EnvoyName, SumItem | Withdrawal]:
        """One look at each group: what is to be sent where a group goes on, or is left out.

        Raises:
            SumAbortedError: too few groups are left, or too few updates would be in their sums.
        """
        items: dict[EnvoyName, SumItem | Withdrawal] = {}
        for part in self.left:
            try:
                items.update(_look(part, frozenset(asked), gone, now))
            except StorageError:
                if not items:
                    raise
                break  # what was decided goes out; the others are looked at again
        if len(self.left) < self.quorum:
            raise self._too_few()
        if self.is_ready and len(self.survivors) < self._least:
            raise SumAbortedError(f"{len(self.survivors)} of {self._least} updates needed are in the groups' sums")
        return items

    def keep_vectors(self, uploads: Uploads) -> None:
        """Where sums are kept, copy the masked vectors that came."""
        for part in self.left:
            part.keep_vectors(uploads)

    def end(self, outcome: str) -> None:
        """The attempt is over, with this outcome of all groups that are not left out."""
        for part in self.parts:
            part.end(f"{_FAILED}: {part.failure}" if part.failure else outcome)

    def close(self) -> None:
        """This process ends; the next one goes on from the logs."""
        for part in self.parts:
            part.close()

    def _part(self, envoy: EnvoyName) -> GroupSum:
        part = self._homes.get(envoy)
        if part is None:
            raise NotInvitedError(f"{envoy} is in no group of {self.ref}")
        if part.failure:
            raise WrongRoundError(f"group {part.number} of {self.ref} is left out: {part.failure}")
        return part

    def _too_few(self) -> SumAbortedError:
        reasons = [f"group {part.number}: {part.failure}" for part in self.parts if part.failure][:_MOST_REASONS]
        said = f"; {'; '.join(reasons)}" if reasons else ""
        return SumAbortedError(f"the sums of {len(self.left)} groups are left, and {self.quorum} are needed{said}")


def _look(
    part: GroupSum, asked: frozenset[EnvoyName], gone: Collection[EnvoyName], now: float
) -> Mapping[EnvoyName, SumItem | Withdrawal]:
    try:
        return part.advance(part.members & asked, gone, now)
    except StorageError:
        raise
    except FederationError as error:
        reason = str(error)
    part.leave_out(reason, now)
    _LOG.warning("left out task=%s group=%d reason=%s", part.spec.ref, part.number, reason)
    told = Withdrawal(part.spec.ref, f"the sum of its group does not go on: {reason}")
    return dict.fromkeys(sorted(part.members & asked), told)
