"""A bounded model of consent and retry: can a director with its accomplices open what it must not? By trying it all.

It goes through everything that a malicious director and corrupt sites can have the honest sites do in one round, over
some attempts with given cohorts and thresholds, under the REAL rules of ``rules.py``. Sought is a breach:

- an honest site's update in two opened sums over different sites;
- an opened sum with fewer than ``h`` honest organizations, or fewer than t less the corrupt envoys, honest in it;
- two survivor sets of one attempt that both have t consents.

The director chooses who is told of which attempt, in what order all happens, whose shares reach whom, who masks, who
gives up, and what each site is asked to consent to. Corrupt sites consent to everything, give everything up, and reveal
all their shares of both kinds. What the director then knows follows from the shares: self masks and mask secrets with t
of them, and those sums of vectors whose unknown masks of pairs cancel.

``walk`` takes every order, step by step. ``search`` needs not: what a site may do depends on its own promises, and on
what others said, of which more is never worse for the director; and what was opened stays so. So it chooses for each
site a *part* (how far it is led in each attempt), lets all act as soon as their rules let them, until nothing moves,
and looks at the end. Tests hold the two against each other where both can be run.

**What it is not.** No cryptography: signatures hold, shares below the threshold say nothing, masks hide. Bounded: few
sites, few attempts, one round, and nothing is proven for more. Not the code: the rules are called as ``participant``
calls them, and a slip there or in a journal is not seen. It is no symbolic proof either: ProVerif and Tamarin are not
to be had from Debian, and nothing was checked with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product, zip_longest
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..errors import SumRefusedError
from ..messages import EnvoyName, RunId, TaskRef
from ..roster import Roster, RosterEntry
from ..tensors import Digest
from . import rules
from .rules import Promise, Promises, SumFloors

Sites: TypeAlias = frozenset[EnvoyName]
Voices: TypeAlias = frozenset[tuple[EnvoyName, bytes]]
"""Who gave which transcript up."""
_RUN, _PLAN = RunId("run"), Digest("00" * 32)


@dataclass(frozen=True, slots=True)
class Rules:
    """What honest sites keep; tests put broken rules in the place of the real ones."""

    check_cohort: Callable[..., int] = rules.check_cohort
    check_survivors: Callable[..., None] = rules.check_survivors
    check_differencing: Callable[..., None] = rules.check_differencing
    settle_retry: Callable[..., Promises] = rules.settle_retry
    sets_of_an_attempt: int = 1  # to which a site consents
    gives_up_what_it_revealed: bool = False
    settles_when_it_masks: bool = True  # and not only when it shares
    majority: int = 0  # fewer consents than the threshold that are enough


@dataclass(frozen=True, slots=True)
class World:
    """Who is there."""

    organizations: tuple[tuple[EnvoyName, str], ...]  # of each site
    corrupt: Sites
    floors: SumFloors

    @classmethod
    def of(cls, organizations: str, corrupt: str, floors: SumFloors | None = None) -> World:
        """Sites s0, s1, ... by the letter of their organization, and the letters of corrupt ones.

        >>> sorted(World.of("abcc", "c").corrupt)
        ['s2', 's3']
        """
        named = tuple((EnvoyName(f"s{place}"), letter) for place, letter in enumerate(organizations))
        return cls(named, frozenset(name for name, letter in named if letter in corrupt), floors or SumFloors())

    @property
    def roster(self) -> Roster:
        """As every honest site accepted it."""
        return _roster(self.organizations)

    def honest(self, attempt: Attempt) -> tuple[EnvoyName, ...]:
        """Of its cohort."""
        return tuple(name for name in attempt.cohort if name not in self.corrupt)

    def corrupt_in(self, attempt: Attempt) -> int:
        """How many of its cohort."""
        return len(self.corrupt.intersection(attempt.cohort))

    def organizations_of(self, sites: Sites) -> int:
        """How many."""
        return len({organization for name, organization in self.organizations if name in sites})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One transcript: what those who get it are told of cohort and threshold."""

    number: int
    cohort: tuple[EnvoyName, ...]
    threshold: int

    @property
    def ref(self) -> TaskRef:
        """Its task."""
        return TaskRef(_RUN, 1, self.number, _PLAN)

    @property
    def transcript(self) -> bytes:
        """Another one for every other number, cohort or threshold."""
        return str(self).encode()

    def __str__(self) -> str:
        return f"attempt {self.number} of {_named(self.cohort)} (threshold {self.threshold})"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a site does."""

    place: int  # of the attempt
    kind: str  # "share", "mask", "consent", "reveal" or "give up"
    sites: Sites = frozenset()  # whose shares were delivered; or who survived
    delivered: Sites = frozenset()  # where it consents or reveals


Part: TypeAlias = tuple[Step, ...]
"""How far one site is led in one attempt, in order."""
Done: TypeAlias = Mapping[EnvoyName, frozenset[Step]]


@dataclass(frozen=True, slots=True)
class Breach:
    """What a director could do, step by step."""

    what: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(
            (f"BREACH: {self.what}", *(f"  {number}. {step}" for number, step in enumerate(self.trace, 1)))
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What a search or a walk came to."""

    breach: Breach | None
    cases: int  # final ones of a search, states of a walk


def attempts(world: World, number: int, check: Rules, cohorts: Collection[str] | None = None) -> tuple[Attempt, ...]:
    """All attempts of this number that honest sites take part in: every cohort and every threshold.

    Args:
        world: who is there.
        number: of the attempts.
        check: the rules.
        cohorts: only these, as digits of the sites: "0123".
    """
    names = [name for name, _ in world.organizations]
    given = [tuple(EnvoyName(f"s{digit}") for digit in cohort) for cohort in cohorts or ()]
    every = given or [some for count in range(1, len(names) + 1) for some in combinations(names, count)]
    return tuple(
        Attempt(number, cohort, threshold)
        for cohort in every
        for threshold in range(1, len(cohort) + 1)
        if any(name not in world.corrupt for name in cohort)
        if all(_passes(check.check_cohort, world, me, cohort, threshold) for me in set(cohort) - world.corrupt)
    )


def search(
    world: World, given: Sequence[Attempt], check: Rules, *, split: bool = False, together: bool = False
) -> Found:
    """Look for a breach over these attempts, into which every site is led.

    Args:
        world: who is there.
        given: attempts.
        check: the rules.
        split: also try to deliver the shares of other sites to each.
        together: a site takes the first step of each attempt, then the second of each, and so on; else one attempt
            after the other.
    """
    names = sorted({name for attempt in given for name in world.honest(attempt)})
    options = {name: _joint_parts(world, given, name, check, split=split, together=together) for name in names}
    cases = 0
    for chosen in _choices(world, given, names, options, check.sets_of_an_attempt):
        cases += 1
        parts = tuple(zip(*(chosen[name] for name in names), strict=True))
        views = [_view(world, attempt, tuple(names), part, check) for attempt, part in zip(given, parts, strict=True)]
        if _judged(world, views) is None:
            continue
        done, trace = play(world, given, chosen, check, together=together)
        if what := _breach(world, given, done, check):
            return Found(Breach(what, trace), cases)
    return Found(None, cases)


def play(
    world: World,
    given: Sequence[Attempt],
    chosen: Mapping[EnvoyName, Sequence[Part]],
    check: Rules,
    *,
    together: bool = False,
) -> tuple[Done, tuple[str, ...]]:
    """Let every site take its steps in order, each as soon as its rules let it; gives what was done, and the trace."""
    todo = {name: _ordered(parts, together=together) for name, parts in chosen.items()}
    kept = {name: Promises(_RUN) for name in todo}
    done: dict[EnvoyName, frozenset[Step]] = dict.fromkeys(todo, frozenset())
    trace: list[str] = []
    moved = True
    while moved:
        moved = False
        for name, steps in todo.items():
            while steps:
                after = _taken(world, check, given, done, kept[name], name, steps[0])
                if after is None:
                    break
                kept[name], step = after, steps.pop(0)
                done[name] |= {step}
                trace.append(f"{name} {_words(step)} in {given[step.place]}")
                moved = True
    return done, tuple(trace)


def walk(
    world: World, given: Sequence[Attempt], check: Rules, sets: Collection[str] | None = None, most: int = 1_000_000
) -> Found:
    """Look for a breach in every order of all steps that sites can be led to, with several attempts alive at once.

    Args:
        world: who is there.
        given: attempts.
        check: the rules.
        sets: only these are asked for, as digits of the sites.
        most: states.

    Raises:
        ValueError: there are more states than ``most``.
    """
    names = sorted({name for attempt in given for name in world.honest(attempt)})
    asked = None if sets is None else {frozenset(EnvoyName(f"s{digit}") for digit in digits) for digits in sets}
    steps = {
        name: tuple(
            dict.fromkeys(
                step
                for place, attempt in enumerate(given)
                for part in _parts(place, attempt, name, check, split=False)
                for step in part
                if asked is None or step.kind not in {"consent", "reveal"} or step.sites in asked
            )
        )
        for name in names
    }
    start = tuple((Promises(_RUN), frozenset[Step]()) for _ in names)
    before: dict[object, tuple[object, str] | None] = {start: None}
    front = [start]
    while front:
        state = front.pop()
        done = {name: did for name, (_, did) in zip(names, state, strict=True)}
        if what := _breach(world, given, done, check):
            trace: list[str] = []
            at: object = state
            while (came := before[at]) is not None:
                at = came[0]
                trace.append(came[1])
            return Found(Breach(what, tuple(reversed(trace))), len(before))
        for place, name in enumerate(names):
            kept, did = state[place]
            for step in steps[name]:
                after = None if step in did else _taken(world, check, given, done, kept, name, step)
                if after is None:
                    continue
                new = (*state[:place], (after, did | {step}), *state[place + 1 :])
                if new not in before:
                    before[new] = (state, f"{name} {_words(step)} in {given[step.place]}")
                    front.append(new)
        if len(before) > most:
            raise ValueError(f"more than {most} states: search instead")
    return Found(None, len(before))


def opened(world: World, attempt: Attempt, steps: Mapping[EnvoyName, Collection[Step]]) -> tuple[Sites, ...]:
    """The honest sites in each sum that the director can work out of one attempt.

    Honest sites are joined where the mask of their pair is unknown. The vectors of a component can be summed if all its
    sites sent one and all their self masks are known; a smaller part of it cannot.
    """
    bad, honest = world.corrupt_in(attempt), world.honest(attempt)
    own, secret = Counter[EnvoyName](), Counter[EnvoyName]()
    delivered: dict[EnvoyName, Sites] = {}
    for name in honest:
        for step in steps.get(name, ()):
            if step.kind == "mask":
                delivered[name] = step.sites
        shown = [step for step in steps.get(name, ()) if step.kind == "reveal"]
        own.update({site for step in shown for site in step.sites})
        secret.update({site for step in shown for site in step.delivered - step.sites})
    bare = {name for name in delivered if own[name] + bad >= attempt.threshold}
    known = {name for name in honest if secret[name] + bad >= attempt.threshold}
    found, left = [], set(bare)
    while left:
        component, fresh = set[EnvoyName](), {left.pop()}
        while fresh:
            one = fresh.pop()
            component.add(one)
            if one not in known and one in delivered:
                fresh |= {o for o in honest if o not in known | component | {one} and o in delivered[one]}
                fresh |= {o for o in honest if o not in known | component and one in delivered.get(o, ())}
        left -= component
        if component <= bare:
            found.append(frozenset(component))
    return tuple(sorted(found, key=sorted))


@dataclass(frozen=True, slots=True)
class _View:
    """What a director has of one attempt."""

    attempt: Attempt
    sums: tuple[Sites, ...]
    passed: tuple[Sites, ...]  # survivor sets with enough consents


@cache
def _view(world: World, attempt: Attempt, names: tuple[EnvoyName, ...], parts: tuple[Part, ...], check: Rules) -> _View:
    """If these steps are all taken; steps of one attempt alone."""
    consents = Counter(step.sites for part in parts for step in part if step.kind == "consent")
    needed = attempt.threshold - check.majority
    passed = tuple(s for s, count in consents.items() if count + len(world.corrupt & s) >= needed)
    return _View(attempt, opened(world, attempt, dict(zip(names, parts, strict=True))), passed)


def _judged(world: World, views: Sequence[_View]) -> str | None:
    """The breach in words, if it is one."""
    for view in views:
        if len(view.passed) > 1:
            return f"{' and '.join(sorted(map(_named, view.passed)))} both have the consents of {view.attempt}"
        for sites in view.sums:
            least = view.attempt.threshold - world.corrupt_in(view.attempt)
            if len(sites) < least or world.organizations_of(sites) < world.floors.honest:
                return f"a sum of {_named(sites)} alone is opened in {view.attempt}"
    for one, other in combinations(views, 2):
        for sites, others in product(one.sums, other.sums):
            if sites != others and sites & others:
                both = f"{_named(sites)} in {one.attempt}, and {_named(others)} in {other.attempt}"
                return f"the updates of {_named(sites & others)} are in two sums: {both}"
    return None


def _breach(world: World, given: Sequence[Attempt], done: Done, check: Rules) -> str | None:
    """In words, if what was done is one."""
    names = tuple(sorted(done))
    views = []
    for place, attempt in enumerate(given):
        parts = tuple(tuple(step for step in done[name] if step.place == place) for name in names)
        views.append(_view(world, attempt, names, parts, check))
    return _judged(world, views)


def _joint_parts(
    world: World, given: Sequence[Attempt], name: EnvoyName, check: Rules, *, split: bool, together: bool
) -> tuple[tuple[Part, ...], ...]:
    """What a site can be led to over all attempts, as far as its own rules allow it if all others say all they can."""
    each = [_parts(place, attempt, name, check, split=split) for place, attempt in enumerate(given)]
    if len({attempt.number for attempt in given}) < len(given):
        each = [(*parts, ()) for parts in each]  # one site is told of one transcript of an attempt, or of the other
    everything = frozenset((site, attempt.transcript) for attempt in given for site in attempt.cohort)
    found = []
    for parts in product(*each):
        kept: Promises | None = Promises(_RUN)
        for step in _ordered(parts, together=together):
            if kept is not None:
                kept = _ruled(world, check, given[step.place], kept, name, step, everything, True)
        if kept is not None:
            found.append(parts)
    return tuple(found)


def _ordered(parts: Sequence[Part], *, together: bool) -> list[Step]:
    if together:
        return [step for steps in zip_longest(*parts) for step in steps if step is not None]
    return [step for part in parts for step in part]


def _parts(place: int, attempt: Attempt, name: EnvoyName, check: Rules, *, split: bool) -> tuple[Part, ...]:
    """All that lead as far as they can: a part that stops earlier is worth less to the director."""
    if name not in attempt.cohort:
        return ((),)
    share, up = Step(place, "share"), Step(place, "give up")
    found: list[Part] = [(share, up)]
    for delivered in _with(attempt.cohort, name, attempt.threshold if split else len(attempt.cohort)):
        mask = Step(place, "mask", delivered)
        found.append((share, mask, up))
        sets = list(_with(sorted(delivered), name, 1))
        for count in range(1, check.sets_of_an_attempt + 1):
            for asked in combinations(sets, count):
                consents = tuple(Step(place, "consent", sites, delivered) for sites in asked)
                reveals = tuple(Step(place, "reveal", sites, delivered) for sites in asked)
                found += [(share, mask, *consents, up), (share, mask, *consents, *reveals)]
                if check.gives_up_what_it_revealed:
                    found.append((share, mask, *consents, *reveals, up))
    return tuple(found)


def _choices(
    world: World,
    given: Sequence[Attempt],
    names: Sequence[EnvoyName],
    options: Mapping[EnvoyName, Sequence[tuple[Part, ...]]],
    sets: int,
) -> Iterator[dict[EnvoyName, tuple[Part, ...]]]:
    """A part for each site, where every one of several attempts can still be opened; else it is the case of fewer."""
    needed = [attempt.threshold - world.corrupt_in(attempt) for attempt in given] if len(given) > 1 else []

    def rest(at: int, chosen: dict[EnvoyName, tuple[Part, ...]]) -> Iterator[dict[EnvoyName, tuple[Part, ...]]]:
        for place, least in enumerate(needed):
            shown = [
                sites
                for parts in chosen.values()
                if (sites := next((step.sites for step in parts[place] if step.kind == "reveal"), None))
            ]
            if len(set(shown)) > sets:
                return  # two sets of one attempt with t consents: a breach that is found in that attempt alone
            if len(shown) + sum(name in given[place].cohort for name in names[at:]) < least:
                return
        if at == len(names):
            yield chosen
            return
        for parts in options[names[at]]:
            chosen[names[at]] = parts
            yield from rest(at + 1, chosen)
            del chosen[names[at]]

    return rest(0, {})


def _taken(
    world: World,
    check: Rules,
    given: Sequence[Attempt],
    done: Done,
    kept: Promises,
    name: EnvoyName,
    step: Step,
) -> Promises | None:
    """What a site remembers after a step; None where its rules refuse, or others have not said enough yet."""
    attempt, enough = given[step.place], True
    if step.kind == "reveal":
        same = Step(step.place, "consent", step.sites, step.delivered)
        agreeing = sum(same in steps for steps in done.values()) + len(world.corrupt & step.sites)
        enough = agreeing >= attempt.threshold - check.majority
    voices = set[tuple[EnvoyName, bytes]]()
    if step.kind in {"share", "mask"} and len(given) > 1:
        voices |= {(site, one.transcript) for one in given for site in world.corrupt.intersection(one.cohort)}
        for site, steps in done.items():
            voices |= {(site, given[s.place].transcript) for s in steps if s.kind == "give up"}
    return _ruled(world, check, attempt, kept, name, step, frozenset(voices), enough)


@cache
def _ruled(
    world: World,
    check: Rules,
    attempt: Attempt,
    kept: Promises,
    name: EnvoyName,
    step: Step,
    voices: Voices,
    enough: bool,
) -> Promises | None:
    """One step under the rules, as ``participant`` and the envoy put it together."""
    mine = kept.of(attempt.ref)
    if mine is not None and mine.transcript != attempt.transcript:
        return None  # a site shares its secrets once in an attempt
    try:
        if step.kind == "share":
            return None if mine else _shared(world, check, attempt, kept, name, voices)
        if mine is None or (mine.given_up and step.kind != "give up"):
            return None
        said = _said(check, mine, step, enough)
        if said is None:
            return None
        if step.kind == "mask" and check.settles_when_it_masks:
            kept = check.settle_retry(kept, attempt.ref, attempt.cohort, attempt.threshold, voices)
        if step.kind == "consent":
            check.check_survivors(world.floors, world.roster, name, said.consented, step.delivered, attempt.threshold)
            check.check_differencing(world.floors, world.roster, kept, attempt.ref, said.consented)
        return kept.put(said)
    except SumRefusedError:
        return None


def _shared(world: World, check: Rules, attempt: Attempt, kept: Promises, name: EnvoyName, voices: Voices) -> Promises:
    colluders = check.check_cohort(world.floors, world.roster, name, attempt.cohort, attempt.threshold)
    kept = check.settle_retry(kept, attempt.ref, attempt.cohort, attempt.threshold, voices)
    return kept.put(Promise(1, attempt.number, attempt.transcript, attempt.cohort, attempt.threshold, colluders))


def _said(check: Rules, mine: Promise, step: Step, enough: bool) -> Promise | None:
    """The promise that a step would make; None where the order of steps forbids it."""
    survivors, several = tuple(sorted(step.sites)), check.sets_of_an_attempt > 1
    may, said = {
        "give up": (not mine.unmasked or check.gives_up_what_it_revealed, {"given_up": True}),
        "mask": (not mine.masked, {"masked": True}),
        "consent": (mine.masked and (mine.consented is None or several), {"consented": survivors}),
        "reveal": (
            enough and mine.consented is not None and (mine.consented == survivors or several),
            {"unmasked": True},
        ),
    }[step.kind]
    return replace(mine, **said) if may else None  # type: ignore[arg-type]


def _with(sites: Sequence[EnvoyName], name: EnvoyName, least: int) -> Iterator[Sites]:
    """Subsets that hold a site, of at least so many; larger ones first."""
    others = [site for site in sites if site != name]
    for count in range(len(others), max(least, 1) - 2, -1):
        for some in combinations(others, count):
            yield frozenset((name, *some))


def _passes(
    check: Callable[..., int], world: World, me: EnvoyName, cohort: tuple[EnvoyName, ...], threshold: int
) -> bool:
    try:
        check(world.floors, world.roster, me, cohort, threshold)
    except SumRefusedError:
        return False
    return True


@cache
def _roster(organizations: tuple[tuple[EnvoyName, str], ...]) -> Roster:
    entries = []
    for place, (name, letter) in enumerate(organizations):
        key = Ed25519PrivateKey.from_private_bytes(bytes([place + 1]) * 32).public_key().public_bytes_raw()
        entries.append(RosterEntry(name, f"Hospital {letter}", key))
    return Roster("model", tuple(entries))


def _words(step: Step) -> str:
    named = _named(step.sites)
    return {
        "share": "shares its secrets",
        "mask": f"masks its update, with the shares of {named},",
        "consent": f"consents to {named}",
        "reveal": f"reveals its shares for {named}",
        "give up": "gives up, and will reveal nothing,",
    }[step.kind]


def _named(sites: Collection[EnvoyName]) -> str:
    return "+".join(sorted(sites))
