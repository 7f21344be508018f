"""Sums of fixed groups of sites, and a middle of the group means: what one bad site can do is kept to its group.

A secure sum hides which vector is whose, so no rule that looks at single updates can be had with it. But the sites of a
run may be split into groups, each of which is summed by a protocol of its own, with a threshold of its own: a bad site
then spoils the mean of one group, and a median or trimmed mean over the groups leaves that one out.

Groups follow from the roster and the run's name, and stay for the run: a site works its own out, and the director
cannot move sites about to compare sums. Organizations are never split, so that one of them is bad in one group alone.

**What remains possible.** The director learns the mean of each group in place of one of all: each group must be large
enough on its own, and the floors of each site are held against it. Bad sites in half of the groups (of a median), or in
more than are cut (of a trimmed mean), decide. In the other groups a bad site may still do what hides within the spread
of the group means. Whoever names a run may try names until the groups suit it. A middle of means is no mean: where the
groups' data differ, it is further from that of all examples than the plain sum is, and weights count within groups
alone. From about fifteen sites on it is worth it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..errors import ConfigError, EmptyRoundError, SumRefusedError
from ..messages import EnvoyName, RunId
from ..roster import Roster
from ..tensors import Digest, Vector, canonical_json, digest_of
from .rules import SumFloors, threshold_of

LEAST_GROUPS = 3
"""The median of two is their mean."""
_BLOCK = 1 << 14


class Middle(Enum):
    """What is taken over the group means, number by number."""

    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"  # of what is left without the largest and the smallest quarter, at least one each


@dataclass(frozen=True, slots=True)
class Groups:
    """Who is summed with whom, for a whole run.

    Raises:
        ConfigError: fewer than three groups, or an envoy in two of them.
    """

    groups: tuple[tuple[EnvoyName, ...], ...]  # each in the order of names

    def __post_init__(self) -> None:
        if len(self.groups) < LEAST_GROUPS:
            raise ConfigError(f"{len(self.groups)} groups; a median needs {LEAST_GROUPS} at least")
        names = [name for group in self.groups for name in group]
        if len(set(names)) != len(names):
            raise ConfigError("an envoy in two groups")

    @property
    def digest(self) -> Digest:
        """The same for whoever worked out the same groups."""
        return digest_of(canonical_json([list(group) for group in self.groups]))

    def of(self, name: EnvoyName) -> tuple[EnvoyName, ...]:
        """The group that an envoy is in.

        Raises:
            SumRefusedError: it is in none.
        """
        for group in self.groups:
            if name in group:
                return group
        raise SumRefusedError(f"{name} is in no group of this run")


def groups_of(roster: Roster, run: RunId, count: int, floors: SumFloors) -> Groups:
    """The groups of a run: as even as whole organizations let them be, and the same for all who have the same roster.

    Raises:
        ConfigError: with so many groups, one has too few organizations, or no threshold that these floors accept.
    """
    owners: dict[str, list[EnvoyName]] = {}
    for name in roster.names:
        owners.setdefault(next(iter(roster.organizations([name]))), []).append(name)

    def drawn(owner: str) -> bytes:
        return hashlib.sha256(canonical_json(["fedveil-sum/1 groups", run, roster.digest, owner])).digest()

    groups: list[list[EnvoyName]] = [[] for _ in range(count)]
    members: list[list[int]] = [[] for _ in range(count)]  # envoys of each organization
    for owner in sorted(owners, key=lambda one: (-len(owners[one]), drawn(one))):
        at = min(range(count), key=lambda place: (len(groups[place]), len(members[place]), place))
        groups[at] += owners[owner]
        members[at].append(len(owners[owner]))
    for place, organizations in enumerate(members):
        if len(organizations) < floors.organizations:
            raise ConfigError(
                f"{count} groups of {len(owners)} organizations: one would have {len(organizations)} of them, expected"
                f" {floors.organizations} at least; fewer groups, or more sites"
            )
        if threshold_of(organizations, floors.colluding, floors.honest) is None:
            raise ConfigError(f"the {len(groups[place])} envoys of a group have no threshold; fewer groups")
    return Groups(tuple(tuple(sorted(group)) for group in groups))


def check_group(groups: Groups, me: EnvoyName, cohort: Collection[EnvoyName]) -> None:
    """Is the cohort of a sum within the site's own group?

    Raises:
        SumRefusedError: somebody of another group is in it.
    """
    mine = groups.of(me)
    if strangers := set(cohort) - set(mine):
        raise SumRefusedError(
            f"{min(strangers)} is in the cohort and not in the group of {me}; groups stay as they are for a run"
        )


def middle(means: Sequence[Vector], rule: Middle, out: Vector) -> None:
    """The middle of the group means, number by number. Every group counts alike.

    Guarantees (each has a property test):
        - with fewer than half of the means spoiled (of a median), or no more than are cut at one end (of a trimmed
          mean), each number lies between the least and the largest of the other means;
        - the order of the groups changes nothing.

    Raises:
        EmptyRoundError: fewer than three groups came through.
        ValueError: vectors of different lengths.
    """
    if len(means) < LEAST_GROUPS:
        raise EmptyRoundError(f"the sums of {len(means)} groups came through, expected {LEAST_GROUPS} at least")
    if any(mean.shape != out.shape for mean in means):
        raise ValueError("the means of the groups are of different lengths")
    cut = cut_of(len(means)) if rule is Middle.TRIMMED_MEAN else 0
    for start in range(0, out.size, _BLOCK):
        stop = min(start + _BLOCK, out.size)
        ordered = np.sort(np.stack([mean[start:stop] for mean in means]), axis=0)
        if rule is Middle.MEDIAN:
            low, high = ordered[(len(means) - 1) // 2], ordered[len(means) // 2]
            np.copyto(out[start:stop], low / 2 + high / 2)
        else:
            out[start:stop] = ordered[cut : len(means) - cut].mean(axis=0, dtype=np.float64)


def cut_of(count: int) -> int:
    """How many means a trimmed mean leaves out at either end.

    >>> [cut_of(count) for count in (3, 4, 7, 8, 12)]
    [1, 1, 1, 2, 3]
    """
    return max(count // 4, 1)
