"""A site's own rules of a secure sum, and what it remembers in order to keep them. No rule comes from the director.

Counted are organizations: envoys of one organization are one party. Let ``c`` be the organizations that a site reckons
may collude with the director, ``h`` the honest ones that it wants in each sum, ``k`` the envoys of the ``c``
organizations that have most of them in the cohort, ``n`` the cohort's envoys and ``t`` its threshold. Then:

- 2t > n + k: two survivor sets cannot both find t consents, since an honest envoy consents to one alone;
- t - k >= h: at least h honest envoys stand behind whatever is opened;
- floor(2n/3) + 1 <= t <= n, and at least max(n_min, c + h) organizations, in the cohort and in the survivors.

**Repeating a round.** What is summed in another attempt of a round is the same update, so two sums over different
sites would differ by single updates. A site that sent a masked vector in attempt ``a`` takes part in another attempt

- if ``a`` is dead: n - t + 1 + k envoys of its cohort signed that they have revealed no share of it and never will, so
  that fewer than t honest shares of any secret can ever come together; or
- if cohort and threshold are those of ``a``, and weights and cuts too: then whatever set was opened in ``a`` has the
  consent of t - k honest envoys, who consent to no other set, and the 2t > n + k above lets no other set through.

Within a round a site consents to one survivor set, unless every attempt in which it consented to another is dead.

**Weights.** Sums of the same updates under other weights differ by the updates of those whose weight differs: of the
one site with most examples, say, where one more of them counts. So a run has one rule of weights, from its first sum,
and asks for one protection: where it clips updates at a norm just below the largest, the difference is that one's.

**Groups.** Where a run sums groups of its sites apart, a site stays in the group that it was in first.

**Differences between rounds.** A set that the site consented to before in the run passes. A new one that differs from
an earlier one by fewer than c + h organizations counts, and the site's floors say how many may.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from ..errors import ConfigError, IdentityError, StorageError, SumRefusedError
from ..messages import EnvoyName, RunId, TaskRef
from ..roster import Roster
from ..tensors import canonical_json
from .terms import MAX_COHORT, NoiseTerms, Suite

LEAST_ORGANIZATIONS = 3
"""Of a sum of two, each of them knows the other's part."""
HISTOGRAM_LEAST = 20
"""Sites from which on a histogram of norms does not tell whose norm is whose."""


@dataclass(frozen=True, slots=True)
class SumFloors:
    """What a site asks of every secure sum that it takes part in.

    Raises:
        ConfigError: less than what makes a sum one.
    """

    min_organizations: int = LEAST_ORGANIZATIONS
    colluding: int = 1  # c: organizations that may work together with the director
    honest: int = 2  # h: organizations, this one with them, that are honest in each sum
    suites: tuple[Suite, ...] = (Suite.MLKEM768_X25519,)
    max_differing_sums: int = 10  # of a run

    def __post_init__(self) -> None:
        if self.min_organizations < LEAST_ORGANIZATIONS:
            raise ConfigError(f"min_organizations is {self.min_organizations}, expected {LEAST_ORGANIZATIONS} at least")
        if self.colluding < 0:
            raise ConfigError(f"colluding is {self.colluding}, expected 0 at least, and better 1")
        if self.honest < 2:
            raise ConfigError(f"honest is {self.honest}, expected 2 at least: alone, a site's update is the sum")
        if not self.suites:
            raise ConfigError("suites is empty; name those that this site accepts")
        if self.max_differing_sums < 0:
            raise ConfigError(f"max_differing_sums is {self.max_differing_sums}, expected 0 at least")

    @property
    def organizations(self) -> int:
        """How many organizations a sum needs: in its cohort, and among those whose updates are in it."""
        return max(self.min_organizations, self.colluding + self.honest)


@dataclass(frozen=True, slots=True)
class Promise:
    """What a site said in one attempt of one round, and will keep to. Public: it holds no key and no share."""

    round: int
    attempt: int
    transcript: bytes  # 32 bytes
    cohort: tuple[EnvoyName, ...]  # in the order of names
    threshold: int
    colluders: int  # k of that cohort, as this site counted it
    masked: bool = False  # a masked vector may have left
    consented: tuple[EnvoyName, ...] | None = None  # the survivor set that it signed
    unmasked: bool = False  # shares may have left
    given_up: bool = False  # no share left, and none ever will
    dead: bool = False  # enough others gave it up, too: nobody can open it
    weights: str = ""  # how sites weighed, and where their numbers were cut, as the spec says it
    cuts: str = ""
    orders: str = ""  # what else the task asked for
    group: int = 0  # of the run, in which this site was summed; 0: the run has none

    @property
    def aborts_needed(self) -> int:
        """From so many envoys of the cohort on that gave the attempt up, fewer than t can have revealed anything."""
        return len(self.cohort) - self.threshold + 1 + self.colluders

    def to_json(self) -> str:
        """As a site keeps it."""
        kept = {name: getattr(self, name) for name in self.__slots__ if name != "transcript"}
        return canonical_json(kept | {"transcript": self.transcript.hex()}).decode()

    @classmethod
    def from_json(cls, text: str) -> Promise:
        """Read what ``to_json`` wrote.

        Raises:
            StorageError: it is something else; a site must not go on as if it had promised nothing.
        """
        try:
            kept = json.loads(text)
            consented = kept.pop("consented")
            return cls(
                transcript=bytes.fromhex(kept.pop("transcript")),
                cohort=tuple(kept.pop("cohort")),
                consented=None if consented is None else tuple(consented),
                **kept,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError("a kept promise of a secure sum cannot be read; restore the envoy's folder") from error


@dataclass(frozen=True, slots=True)
class Promises:
    """What a site remembers of one run."""

    run: RunId
    records: tuple[Promise, ...] = ()

    def of(self, ref: TaskRef) -> Promise | None:
        """The promise of one attempt.

        Raises:
            ValueError: they are another run's.
        """
        if ref.run != self.run:
            raise ValueError(f"promises of {self.run} were given for {ref}")
        return next((p for p in self.records if (p.round, p.attempt) == (ref.round, ref.attempt)), None)

    def earlier(self, ref: TaskRef) -> tuple[Promise, ...]:
        """Those of the other attempts of a round."""
        return tuple(p for p in self.records if p.round == ref.round and p.attempt != ref.attempt)

    def put(self, *promises: Promise) -> Promises:
        """With these in place of what the same attempts promised before."""
        new = {(p.round, p.attempt): p for p in (*self.records, *promises)}
        return Promises(self.run, tuple(new[key] for key in sorted(new)))


def colluders_of(organizations: Collection[int], colluding: int) -> int:
    """Envoys of the ``colluding`` organizations that have most; ``organizations`` are the envoys of each.

    >>> colluders_of([1, 3, 2], 1), colluders_of([1, 1, 1], 1)
    (3, 1)
    """
    return sum(sorted(organizations, reverse=True)[:colluding])


def is_threshold(threshold: int, envoys: int, colluders: int, honest: int) -> bool:
    """Do so many consents let one survivor set through, with enough honest envoys behind it?"""
    return (
        2 * envoys // 3 + 1 <= threshold <= envoys
        and 2 * threshold > envoys + colluders
        and threshold - colluders >= honest
    )


def threshold_of(organizations: Collection[int], colluding: int, honest: int) -> int | None:
    """The least threshold that sites with these floors accept; None where there is none.

    >>> threshold_of([1] * 10, 1, 2), threshold_of([1] * 4, 1, 2), threshold_of([1] * 3, 1, 2)
    (7, 3, 3)
    """
    envoys, colluders = sum(organizations), colluders_of(organizations, colluding)
    return next((t for t in range(1, envoys + 1) if is_threshold(t, envoys, colluders, honest)), None)


def check_suite(floors: SumFloors, suite: Suite) -> None:
    """Does the site accept this suite?

    Raises:
        SumRefusedError: it does not.
    """
    if suite not in floors.suites:
        accepted = ", ".join(one.value for one in floors.suites)
        raise SumRefusedError(f"the run seals with {suite.value}; this site accepts {accepted}")


def check_noise(noise: NoiseTerms | None, threshold: int, colluders: int) -> None:
    """Are as many honest sites in each sum, by this site's own count, as have the whole noise together?

    Raises:
        SumRefusedError: fewer; what is left of the noise without the others' would be too little.
    """
    if noise is not None and threshold - colluders < noise.parts:
        raise SumRefusedError(
            f"the noise is in {noise.parts} parts, and with threshold {threshold} this site counts on"
            f" {threshold - colluders} honest envoys alone; the run must reckon with as many colluding organizations as"
            " this site does, and with the envoys that each has"
        )


def check_cohort(
    floors: SumFloors, roster: Roster, me: EnvoyName, cohort: Collection[EnvoyName], threshold: int
) -> int:
    """May the site share its secrets with these? Gives ``k``, the envoys that it reckons may collude.

    Raises:
        SumRefusedError: a name twice or out of order, somebody not in the site's roster, too few organizations, or a
            threshold that does not bind.
    """
    if list(cohort) != sorted(set(cohort)):
        raise SumRefusedError("the cohort is not in the order of names, each once")
    if me not in cohort:
        raise SumRefusedError(f"{me} advertised, but the cohort is closed without it")
    if len(cohort) > MAX_COHORT:
        raise SumRefusedError(f"a cohort of {len(cohort)} envoys, expected {MAX_COHORT} at most")
    organizations = organizations_of(roster, cohort)
    if len(organizations) < floors.organizations:
        raise SumRefusedError(
            f"a cohort of {len(organizations)} organizations; this site asks for {floors.organizations}"
        )
    colluders = colluders_of(organizations.values(), floors.colluding)
    if not is_threshold(threshold, len(cohort), colluders, floors.honest):
        least = threshold_of(organizations.values(), floors.colluding, floors.honest)
        expected = f"{least} to {len(cohort)}" if least else "more envoys, or more evenly spread over organizations"
        raise SumRefusedError(
            f"a threshold of {threshold} for {len(cohort)} envoys; this site reckons with {floors.colluding} colluding"
            f" and {floors.honest} honest organizations and expects {expected}"
        )
    return colluders


def check_survivors(
    floors: SumFloors,
    roster: Roster,
    me: EnvoyName,
    survivors: Collection[EnvoyName],
    sharers: Collection[EnvoyName],
    threshold: int,
) -> None:
    """May the sum over these be opened?

    Raises:
        SumRefusedError: a name twice or out of order, one that never shared, the site itself not in it, or too few.
    """
    if list(survivors) != sorted(set(survivors)):
        raise SumRefusedError("the survivors are not in the order of names, each once")
    if strangers := set(survivors) - set(sharers):
        raise SumRefusedError(f"{min(strangers)} is said to have survived, but its shares never came here")
    if me not in survivors:
        raise SumRefusedError(f"{me} is asked to consent to a sum that it is not in")
    if len(survivors) < threshold:
        raise SumRefusedError(f"a sum over {len(survivors)} envoys, and the threshold is {threshold}")
    organizations = len(organizations_of(roster, survivors))
    if organizations < floors.organizations:
        raise SumRefusedError(f"a sum over {organizations} organizations; this site asks for {floors.organizations}")


def check_group(promises: Promises, group: int) -> None:
    """Is the site summed with the group that it was summed with before?

    Raises:
        SumRefusedError: in another group of the run; who could move sites about could compare sums.
    """
    for before in promises.records:
        if before.group != group:
            raise SumRefusedError(
                f"this site was {_of_group(before.group)} in round {before.round} and is asked to be"
                f" {_of_group(group)} now; groups stay as they are for a run"
            )


def settle_retry(
    promises: Promises,
    ref: TaskRef,
    cohort: tuple[EnvoyName, ...],
    threshold: int,
    given_up: Iterable[tuple[EnvoyName, bytes]],
    weights: str = "",
    cuts: str = "",
    orders: str = "",
) -> Promises:
    """May the site's update of this round be masked once more? Gives the promises, with what is now proven dead.

    Args:
        promises: of the run.
        ref: the attempt that is about to begin.
        cohort: its envoys, in order.
        threshold: its threshold.
        given_up: who signed in this attempt that it gave which transcript up; signatures were checked.
        weights: of the spec.
        cuts: of the spec.
        orders: of the spec.

    Raises:
        SumRefusedError: an earlier attempt may have been, or may still be, opened among others.
    """
    check_weights(promises, weights, orders)
    voices: dict[bytes, set[EnvoyName]] = {}
    for who, transcript in given_up:
        voices.setdefault(transcript, set()).add(who)
    for before in promises.earlier(ref):
        if before.dead or not before.masked:
            continue
        aborts = len(voices.get(before.transcript, set()) & set(before.cohort))
        if aborts >= before.aborts_needed:
            promises = promises.put(replace(before, dead=True))
        elif (before.cohort, before.threshold, before.cuts) != (cohort, threshold, cuts):
            raise SumRefusedError(
                f"the update of round {ref.round} was masked in attempt {before.attempt}, which {aborts} of its"
                f" {len(before.cohort)} envoys gave up and {before.aborts_needed} must, before it is summed with others"
                " or cut at other bounds"
            )
    return promises


def check_weights(promises: Promises, weights: str, orders: str = "") -> None:
    """Do sites weigh as in every earlier sum of the run, and are they asked for the same protection?

    Raises:
        SumRefusedError: they do not; the difference of two sums would be single updates.
    """
    for before in promises.records:
        if not before.masked or before.dead or not before.weights or not weights:
            continue
        if before.orders != orders:
            raise SumRefusedError(
                f"this sum asks for another seed or protection than round {before.round} did: updates that the one"
                " clips and the other does not would be the difference of the two; a run has one"
            )
        if before.weights != weights:
            raise SumRefusedError(
                f"this sum weighs sites by {weights}, round {before.round} did by {before.weights}: the difference of"
                " the two would tell sites apart; a run has one rule"
            )


def check_differencing(
    floors: SumFloors, roster: Roster, promises: Promises, ref: TaskRef, survivors: tuple[EnvoyName, ...]
) -> None:
    """May this set be consented to, beside those of before?

    Raises:
        SumRefusedError: the round has another set already, or the run has too many that differ by few.
    """
    for before in promises.earlier(ref):
        if before.consented not in (None, survivors) and not before.dead:
            raise SumRefusedError(
                f"in attempt {before.attempt} of round {ref.round} this site consented to a sum over"
                f" {len(before.consented or ())} other envoys; a second one would tell them apart"
            )
    sets: list[tuple[EnvoyName, ...]] = []
    for before in promises.records:
        if before.consented is not None and not before.dead and before.consented not in sets:
            sets.append(before.consented)
    if survivors in sets:
        return
    near = floors.colluding + floors.honest
    owners: dict[EnvoyName, str] = {}

    def is_close(one: tuple[EnvoyName, ...], other: tuple[EnvoyName, ...]) -> bool:
        different = {*one} ^ {*other}
        owners.update({name: _owner(roster, name) for name in different - owners.keys()})
        return len({owners[name] for name in different}) < near

    counted = sum(any(is_close(one, other) for other in sets[:at]) for at, one in enumerate([*sets, survivors]))
    is_near = any(is_close(survivors, other) for other in sets)
    if is_near and counted > floors.max_differing_sums:
        raise SumRefusedError(
            f"this sum differs by fewer than {near} organizations from an earlier one of the run, and"
            f" {floors.max_differing_sums} such sums were consented to: this site's max_differing_sums"
        )


def organizations_of(roster: Roster, names: Iterable[EnvoyName]) -> dict[str, int]:
    """Envoys of each organization, by the site's own roster.

    Raises:
        SumRefusedError: somebody is not in it.
    """
    try:
        return dict(roster.organizations(names))
    except IdentityError as error:
        raise SumRefusedError(str(error)) from error


def _of_group(group: int) -> str:
    return f"in group {group}" if group else "in no group"


def _owner(roster: Roster, name: EnvoyName) -> str:
    """Whose an envoy is; one that left the roster since counts by its own name."""
    return next(iter(roster.organizations([name]))) if name in roster else f"envoy {name}"
