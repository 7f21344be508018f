"""A secure sum in one process, message by message, with envoys that drop out and messages that are changed on the way.

Nothing is left to chance but the encapsulation of sealed boxes, which draws its own randomness: everything else follows
from a seed. Tests, the benchmark and the view of what the director saw run this; the director and the envoys walk the
same two halves over gRPC.

Identity keys here follow from names and a seed: nothing that a rehearsal signs is worth anything elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from ..errors import FederationError
from ..messages import EnvoyName, RunId, TaskKind, TaskRef
from ..metrics import MetricSum
from ..roster import Roster, RosterEntry
from ..tensors import Vector, digest_of
from . import participant, summation
from .cohort import Cohort, fixed_point
from .participant import Site
from .rules import Promises, SumFloors
from .sealing import SEED_BYTES
from .signed import Signer
from .spec import SumSpec, rounding_key
from .tallies import MetricShape, Tallies
from .terms import Suite, SumTerms

FEDERATION = "rehearsal"
Tamper: TypeAlias = Callable[["Step", EnvoyName, bytes], bytes]
"""What arrives in place of a message: its step, the envoy that sent it or that it is for, and the message."""


class Step(Enum):
    """The messages, in their order; an envoy that drops out at one of its own does not send it."""

    ADVERT = "advert"
    COHORT = "cohort"  # aggregator
    SHARES = "shares"
    DELIVERY = "delivery"  # aggregator
    MASKED = "masked"  # the vector with its header
    SURVIVORS = "survivors"  # aggregator
    CONSENT = "consent"
    CONSENTS = "consents"  # aggregator
    UNMASKING = "unmasking"


ENVOY_STEPS = (Step.ADVERT, Step.SHARES, Step.MASKED, Step.CONSENT, Step.UNMASKING)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one site would send."""

    payload: Vector | None  # None for an evaluation
    num_examples: int
    metrics: tuple[MetricSum, ...] = ()
    noise_secret: bytes | None = field(default=None, repr=False)  # 32 bytes, where the sum has noise


@dataclass(frozen=True, slots=True)
class Cast:
    """The sites of a rehearsal."""

    sites: Mapping[EnvoyName, Site]
    roster: Roster

    @property
    def names(self) -> tuple[EnvoyName, ...]:
        """In order."""
        return tuple(sorted(self.sites))


@dataclass(slots=True)
class Outcome:
    """How a rehearsal ended, and all that the aggregator saw."""

    spec: SumSpec
    promises: dict[EnvoyName, Promises]  # of each site, afterwards
    upward: list[tuple[Step, EnvoyName, bytes]] = field(default_factory=list)
    downward: list[tuple[Step, EnvoyName, bytes]] = field(default_factory=list)
    vectors: dict[EnvoyName, NDArray[np.uint32]] = field(default_factory=dict)  # masked
    refusals: dict[EnvoyName, FederationError] = field(default_factory=dict)  # of sites, or of the aggregator
    opened: summation.Opened | None = None
    total: NDArray[np.uint32] | None = None  # unmasked
    tallies: Tallies | None = None
    mean: Vector | None = None
    aborted: FederationError | None = None

    @property
    def survivors(self) -> tuple[EnvoyName, ...]:
        """Whose vectors are in the sum."""
        return self.opened.survivors if self.opened else ()


def drawn(seed: bytes) -> Callable[[int], bytes]:
    """A source of bytes that follow from a seed; for rehearsals and test vectors alone."""
    calls = 0

    def draw(length: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(seed + calls.to_bytes(8, "little")).digest(length)

    return draw


def identity_of(name: str, seed: bytes = b"") -> Ed25519PrivateKey:
    """A site's identity in a rehearsal."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"identity" + seed + name.encode()).digest())


def cast_of(
    names: Sequence[str],
    organizations: Mapping[str, str] | None = None,
    floors: SumFloors | None = None,
    seed: bytes = b"",
) -> Cast:
    """Sites that all accepted one roster; without ``organizations`` each is one of its own."""
    owners = organizations or {}
    keys = {EnvoyName(name): identity_of(name, seed) for name in names}
    entries = (RosterEntry(n, owners.get(n, n), key.public_key().public_bytes_raw()) for n, key in keys.items())
    roster = Roster(FEDERATION, tuple(entries))
    accepted = floors or SumFloors(suites=tuple(Suite))
    signers: dict[EnvoyName, Signer] = {name: key.sign for name, key in keys.items()}
    return Cast({name: Site(name, sign, roster, accepted) for name, sign in signers.items()}, roster)


def spec_for(
    sizes: tuple[int, ...],
    contributors: int,
    terms: SumTerms | None = None,
    *,
    run: str = "rehearsal-1",
    round_number: int = 1,
    attempt: int = 1,
    model: bytes = b"model",
) -> SumSpec:
    """A spec with made-up digests; no sizes is an evaluation."""
    return SumSpec(
        federation=FEDERATION,
        ref=TaskRef(RunId(run), round_number, attempt, digest_of(b"plan")),
        kind=TaskKind.TRAIN if sizes else TaskKind.EVALUATE,
        model=digest_of(model),
        layout=digest_of(b"layout"),
        codec=None,
        sizes=sizes,
        contributors=contributors,
        terms=terms or SumTerms(suite=Suite.X25519, bounds=(1.0,), max_weight=1000),
    )


def untouched(step: Step, envoy: EnvoyName, content: bytes) -> bytes:
    """Every message as it was said."""
    del step, envoy
    return content


@dataclass(frozen=True, slots=True)
class Network:
    """One attempt, and the faults in it.

    An envoy that refuses is out from there on, as one that drops out. The aggregator goes on for as long as enough are
    left, and then says why it cannot.
    """

    cast: Cast
    spec: SumSpec
    contributions: Mapping[EnvoyName, Contribution]
    seed: bytes = bytes(SEED_BYTES)  # of all randomness, and of the rounding
    drops: Mapping[EnvoyName, Step] = field(default_factory=dict)  # the first message that does not come any more
    tamper_up: Tamper = untouched
    tamper_down: Tamper = untouched
    tamper_vector: Callable[[EnvoyName, NDArray[np.uint32]], NDArray[np.uint32]] = lambda _, vector: vector
    promises: Mapping[EnvoyName, Promises] = field(default_factory=dict)  # of earlier attempts and rounds
    colluding: int = 1
    honest: int = 2
    audit_head: bytes = b""

    def run(self) -> Outcome:
        """Walk all steps."""
        promises = {name: self.promises.get(name, Promises(self.spec.ref.run)) for name in self.contributions}
        walk = _Walk(self, Outcome(self.spec, promises))
        try:
            walk.all()
        except FederationError as error:
            walk.outcome.aborted = error
        return walk.outcome

    def is_gone(self, name: EnvoyName, step: Step) -> bool:
        """Did the envoy drop out before it could say this?"""
        return name in self.drops and ENVOY_STEPS.index(self.drops[name]) <= ENVOY_STEPS.index(step)


_Answer: TypeAlias = Callable[[EnvoyName, Any, bytes, Promises], tuple[Any, bytes]]


class _Walk:
    """The steps of one attempt."""

    def __init__(self, network: Network, outcome: Outcome) -> None:
        self.network, self.outcome = network, outcome
        self.states: dict[EnvoyName, Any] = dict(network.cast.sites)
        self.random = {name: drawn(network.seed + b"site" + name.encode()) for name in network.contributions}

    def all(self) -> None:
        """From the adverts to the mean."""
        network = self.network
        stage: Any = summation.begin(network.spec, network.cast.roster, network.colluding, network.honest)
        stage = self.asked(stage, dict.fromkeys(sorted(network.contributions), b""), None, Step.ADVERT, self.advertise)
        stage, items = summation.close_cohort(stage)
        stage = self.asked(stage, items, Step.COHORT, Step.SHARES, self.share)
        stage, items = summation.deliver(stage)
        stage = self.asked(stage, items, Step.DELIVERY, Step.MASKED, self.mask)
        whole = [n for n, d in stage.announced.items() if d == digest_of(self.outcome.vectors[n].tobytes())]
        stage, items = summation.call_survivors(stage, whole, network.audit_head)
        stage = self.asked(stage, items, Step.SURVIVORS, Step.CONSENT, self.consent)
        stage, items = summation.reveal(stage)
        stage = self.asked(stage, items, Step.CONSENTS, Step.UNMASKING, self.unmask)
        self.open(summation.open_sum(stage))

    def asked(self, stage: Any, items: Mapping[EnvoyName, bytes], down: Step | None, up: Step, answer: _Answer) -> Any:
        """Tell each envoy and take what it says; whoever is gone, refuses or is refused is out."""
        network, outcome = self.network, self.outcome
        for name, item in items.items():
            if name not in self.states or network.is_gone(name, up):
                continue
            content = network.tamper_down(down, name, item) if down else item
            if down:
                outcome.downward.append((down, name, content))
            try:
                state, said = answer(name, self.states[name], content, outcome.promises[name])
                self.states[name], outcome.promises[name] = state, state.promises
                said = network.tamper_up(up, name, said)
                outcome.upward.append((up, name, said))
                stage = summation.take(stage, name, said)
            except FederationError as error:
                outcome.refusals[name] = error
                del self.states[name]
        return stage

    def advertise(self, name: EnvoyName, site: Site, _: bytes, promises: Promises) -> tuple[Any, bytes]:
        """Offer the metrics that there are."""
        metrics = [MetricShape(one.name, one.kind) for one in self.network.contributions[name].metrics]
        return participant.advertise(site, self.network.spec, metrics, promises, self.random[name])

    def share(self, name: EnvoyName, state: Any, content: bytes, promises: Promises) -> tuple[Any, bytes]:
        """Deal."""
        return participant.share(state, content, promises, self.random[name])

    def mask(self, name: EnvoyName, state: Any, content: bytes, promises: Promises) -> tuple[Any, bytes]:
        """Send the vector, and say which it is."""
        ready = participant.receive(state, content, promises)
        given = self.network.contributions[name]
        said = (given.payload, given.num_examples, given.metrics, self.network.seed)
        parts = participant.stream(ready, *said, noise_secret=given.noise_secret)
        vector = np.concatenate([part.copy() for part in parts])
        self.outcome.vectors[name] = self.network.tamper_vector(name, vector)
        return participant.announce(ready, digest_of(vector.tobytes()))

    def consent(self, _: EnvoyName, state: Any, content: bytes, promises: Promises) -> tuple[Any, bytes]:
        """Agree."""
        return participant.consent(state, content, promises)

    def unmask(self, _: EnvoyName, state: Any, content: bytes, promises: Promises) -> tuple[Any, bytes]:
        """Reveal."""
        return participant.unmask(state, content, promises)

    def open(self, opened: summation.Opened) -> None:
        """Sum the survivors' vectors, take the masks away and read what is left."""
        outcome, numbers = self.outcome, fixed_point(opened.spec)
        total = np.zeros(opened.words, np.uint32)
        for name in opened.survivors:
            summation.add_vector(opened.cohort, total, outcome.vectors[name])
        summation.unmask_total(opened, total)
        outcome.opened, outcome.total = opened, total
        outcome.tallies = summation.tallies(opened, total)
        outcome.mean = np.zeros(numbers.size, np.float32)
        if numbers.size:
            summation.decode(opened, total, outcome.tallies.num_examples, outcome.mean)


def plain_total(
    cohort: Cohort, contributions: Mapping[EnvoyName, Contribution], names: Collection[EnvoyName], seed: bytes
) -> NDArray[np.uint32]:
    """The same integers summed without a mask: what an unmasked total must equal, bit for bit."""
    spec, numbers = cohort.spec, fixed_point(cohort.spec)
    total = np.zeros(cohort.words, np.uint32)
    for name in sorted(names):
        given = contributions[name]
        payload = np.zeros(0, np.float32) if given.payload is None else given.payload
        vector, clipped = np.zeros(cohort.words, np.uint32), np.zeros(len(spec.sizes), np.int64)
        weight, noise = spec.weight_of(given.num_examples), participant.noise_of(spec, given.noise_secret)
        key = rounding_key(seed, spec.ref) if noise is None else None
        numbers.encode(payload, 0, weight, key, vector[: payload.size], clipped)
        if noise is not None:
            noise.add(vector[: payload.size], 0)
        clipped = clipped[: cohort.tally_layout.tensors]
        norm = float(np.sqrt(np.square(payload, dtype=np.float64).sum()))
        vector[cohort.tally_start :].view(np.uint64)[:] = cohort.tally_layout.encode(
            weight, clipped, given.metrics, norm
        )
        summation.add_vector(cohort, total, vector)
    return total
