"""From the sums of groups to one outcome: each is opened by itself, then a rule outvotes those that bad sites spoiled.

Of what the groups tell beside their means, metrics and counts are added up: they say nothing about a site that the
groups' own did not say, and a bad site may spoil them as it may in one sum of all. Clip bounds follow the middle of
what the groups ask for.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median_high

import numpy as np

from ..utils.errors import BadShareError, FederationError, StorageError, SumAbortedError
from ..utils.messages import EnvoyName, TaskKind
from ..utils.secure_sum.summation import Opened
from ..utils.tensors import Digest, Vector
from .grouped_sum import GroupedSum
from .records import GroupRecord, SumRecord
from .sum_opening import OpenedSum, open_into
from .sum_terms import next_bounds
from .uploads import Uploads

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedGroup:
    """One group's sum, opened. To a rule it is what one site's update is: ``aggregation.StoredUpdate``."""

    opened: Opened = field(repr=False)
    found: OpenedSum
    mean: Vector = field(repr=False, compare=False)  # empty after an evaluation

    @property
    def envoy(self) -> EnvoyName:
        """The group's name among the groups: groups have an order."""
        return EnvoyName(f"group-{self.opened.spec.terms.group:04d}")

    @property
    def num_examples(self) -> int:
        """Of its sites together."""
        return self.found.tallies.num_examples

    def read(self, start: int, out: Vector) -> None:
        """Fill ``out`` with the elements of the mean from ``start`` on."""
        np.copyto(out, self.mean[start : start + out.size])

    @property
    def record(self) -> GroupRecord:
        """What stays of it."""
        cohort = self.opened.cohort
        return GroupRecord(
            number=self.opened.spec.terms.group,
            survivors=self.opened.survivors,
            cohort=len(cohort.names),
            threshold=cohort.threshold,
            total_weight=self.num_examples,
            transcript=Digest(cohort.transcript.hex()),
        )


def open_groups(grouped: GroupedSum, uploads: Uploads, expel: Callable[[BadShareError], None]) -> list[OpenedGroup]:
    """Open each group's sum; one that does not open, or tells nonsense, is left out.

    Takes a vector of the model's size for each group.

    Args:
        grouped: ready.
        uploads: hold the masked vectors.
        expel: is told of whoever is named by what it dealt.

    Raises:
        SumAbortedError: too few were opened.
        StorageError: the disk is full.
    """
    groups: list[OpenedGroup] = []
    reasons: list[str] = []
    grouped.keep_vectors(uploads)
    for part in grouped.left:
        is_training = part.spec.kind is TaskKind.TRAIN
        mean = np.empty(sum(part.spec.sizes) if is_training else 0, np.float32)
        try:
            opened = part.open()
            groups.append(OpenedGroup(opened, open_into(opened, uploads, mean), mean))
        except StorageError:
            raise
        except FederationError as error:
            if isinstance(error, BadShareError):
                expel(error)
            reasons.append(f"group {part.number}: {type(error).__name__}: {error}")
            _LOG.warning("left out task=%s %s", grouped.ref, reasons[-1])
    if len(groups) < grouped.quorum:
        raise SumAbortedError(
            f"the sums of {len(groups)} groups were opened, and {grouped.quorum} are needed; {'; '.join(reasons)}"
        )
    return groups


def record_of(groups: Sequence[OpenedGroup], sizes: Sequence[int], first: float) -> SumRecord:
    """What stays of all of them.

    Args:
        groups: those that were opened, in their order.
        sizes: elements of each tensor.
        first: the clip bound of the run's first round.
    """
    parts = tuple(group.record for group in groups)
    transcripts = hashlib.sha256(b"".join(bytes.fromhex(part.transcript) for part in parts))
    tallies = [group.found.tallies for group in groups]
    bounds = [_bounds(group, sizes, first) for group in groups if group.opened.spec.kind is TaskKind.TRAIN]
    return SumRecord(
        survivors=tuple(sorted(name for part in parts for name in part.survivors)),
        cohort=sum(part.cohort for part in parts),
        threshold=min(part.threshold for part in parts),
        total_weight=sum(part.total_weight for part in parts),
        transcript=Digest(transcripts.hexdigest()),
        clipped=tuple(map(sum, zip(*(one.clipped for one in tallies), strict=True))),
        bounds=tuple(median_high(asked) for asked in zip(*bounds, strict=True)),
        groups=parts,
    )


def _bounds(group: OpenedGroup, sizes: Sequence[int], first: float) -> tuple[float, ...]:
    found, terms = group.found, group.opened.spec.terms
    return next_bounds(terms.bounds, sizes, found.tallies.clipped, found.peaks, found.tallies.contributions, first)
