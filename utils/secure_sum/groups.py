"""Sums of fixed groups of sites, so that what one bad site can do is kept to its group.

A secure sum hides which vector is whose, so no rule that looks at single updates can be had with it. But the sites of a
run may be split into groups, each of which is summed by a protocol of its own, with a threshold of its own: a bad site
then spoils the mean of one group, and a median or trimmed mean over the groups (``utils.aggregation``) outvotes it.

Groups are drawn from the run's seed over the organizations and stay for the run. Organizations are never split, so that
one of them is bad in one group alone. The group's number is part of what a sum is bound to (``SumTerms.group``), and a
site stays in the group that it was in first (``rules.check_group``): nobody can move sites about to compare sums.

**What remains possible.** The director learns the mean of each group in place of one of all: each group must be large
enough on its own, and the floors of each site are held against it. Bad sites in half of the groups (of a median), or in
more than are cut (of a trimmed mean), decide. In the other groups a bad site may still do what hides within the spread
of the group means. Whoever names the seed may try seeds until the groups suit it. A middle of means is no mean: where
the groups' data differ, it is further from that of all examples than the plain sum is, and weights count within groups
alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import ConfigError
from ..messages import EnvoyName
from ..roster import Roster
from ..tensors import canonical_json
from .rules import SumFloors, threshold_of
from .terms import MAX_GROUP

LEAST_GROUPS = 3
"""The median of two is their mean."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Who is summed with whom, for a whole run.

    Raises:
        ConfigError: fewer than three groups, or an envoy in two of them.
    """

    groups: tuple[tuple[EnvoyName, ...], ...]  # each in the order of names; the first is number 1

    def __post_init__(self) -> None:
        if not LEAST_GROUPS <= len(self.groups) <= MAX_GROUP:
            raise ConfigError(f"{len(self.groups)} groups; a median needs {LEAST_GROUPS} at least")
        names = [name for group in self.groups for name in group]
        if len(set(names)) != len(names):
            raise ConfigError("an envoy in two groups")

    def among(self, envoys: Collection[EnvoyName]) -> dict[int, tuple[EnvoyName, ...]]:
        """Those of these envoys that are in a group, by its number."""
        asked = frozenset(envoys)
        return {
            number: tuple(name for name in group if name in asked)
            for number, group in enumerate(self.groups, 1)
            if not asked.isdisjoint(group)
        }

    def askable(
        self, there: Collection[EnvoyName], roster: Roster, floors: SumFloors
    ) -> dict[int, frozenset[EnvoyName]]:
        """The groups that can be summed with these envoys, and which of them are in each."""
        able: dict[int, frozenset[EnvoyName]] = {}
        for number, names in self.among([name for name in there if name in roster]).items():
            if not shortfall(list(roster.organizations(names).values()), floors):
                able[number] = frozenset(names)
        return able


def groups_of(roster: Roster, seed: bytes, count: int, floors: SumFloors) -> Groups:
    """The groups of a run: as even as whole organizations let them be, and the same for the same roster and seed.

    Raises:
        ConfigError: with so many groups, one has too few organizations, or no threshold that these floors accept.
    """
    owners: dict[str, list[EnvoyName]] = {}
    for name in roster.names:
        owners.setdefault(next(iter(roster.organizations([name]))), []).append(name)

    def drawn(owner: str) -> bytes:
        return hashlib.sha256(canonical_json(["fedveil-sum/1 groups", seed.hex(), owner])).digest()

    groups: list[list[EnvoyName]] = [[] for _ in range(count)]
    members: list[list[int]] = [[] for _ in range(count)]  # envoys of each organization
    for owner in sorted(owners, key=lambda one: (-len(owners[one]), drawn(one))):
        at = min(range(count), key=lambda place: (len(members[place]), len(groups[place]), place))
        groups[at] += owners[owner]
        members[at].append(len(owners[owner]))
    for organizations in members:
        if short := shortfall(organizations, floors):
            raise ConfigError(
                f"{len(owners)} organizations have joined, and of {count} groups of them one would have {short}; fewer"
                " groups, or more organizations"
            )
    return Groups(tuple(tuple(sorted(group)) for group in groups))


def shortfall(organizations: Collection[int], floors: SumFloors) -> str:
    """What a group lacks for a sum of its own, by the envoys of each of its organizations; "" if nothing."""
    if len(organizations) < floors.organizations:
        return f"{len(organizations)} organizations, expected {floors.organizations} at least"
    if threshold_of(organizations, floors.colluding, floors.honest) is None:
        return f"{sum(organizations)} envoys of {len(organizations)} organizations, for which there is no threshold"
    return ""
