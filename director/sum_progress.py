"""One attempt's secure sum as it goes: which stage it is in, who is waited for, when it goes on without somebody.

    gathering ──> sharing ──> masking ──> consenting ──> unmasking ──> ready to be opened

The rules and the cryptography are ``utils/secure_sum/summation.py``'s; here are the clock, the envoys that are gone,
and the log from which a killed director goes on. What an envoy said counts once it is in the log. A stage ends when
everybody answered who is still there, or at its timeout with enough answers; without enough the attempt fails.

Used under the coordinator's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from ..utils.errors import (
    DigestMismatchError,
    FederationError,
    LengthMismatchError,
    NotInvitedError,
    ProtocolError,
    StorageError,
    SumAbortedError,
    UnsendableUpdateError,
    WrongRoundError,
)
from ..utils.messages import EnvoyName, PayloadKind, SumItem, UpdateHeader
from ..utils.secure_sum import summation
from ..utils.secure_sum.cohort import Cohort
from ..utils.secure_sum.spec import SumSpec
from ..utils.secure_sum.summation import Stage
from ..utils.tensors import FLOAT_BYTES, Digest
from .audit import DirectorAudit
from .spool import HEADER_BYTES
from .sum_log import Event, SumLog, Way
from .uploads import Uploads

STAGES: Mapping[type, str] = {
    summation.Gathering: "advert",
    summation.Sharing: "shares",
    summation.Masking: "masked",
    summation.Consenting: "consent",
    summation.Unmasking: "unmasking",
}
"""What envoys say in each stage."""
_MOST_STATEMENTS = 32
"""Of one envoy in one attempt: whoever restarts while keys are gathered says more than others, and not without end."""
_WORDS = {"advert": "keys", "shares": "shares", "masked": "masked updates", "consent": "consents"}


@dataclass(frozen=True, slots=True)
class SumPolicy:
    """How long and for how many a sum waits."""

    quorum: int  # updates in the sum at least; the threshold may ask for more
    timeout_seconds: float  # for the keys, that is for the training, and for the masked updates
    stage_timeout_seconds: float  # for every other stage
    drops_stragglers: bool = False  # the cohort closes as soon as it is large enough


class SecureSum:
    """The secure sum of one attempt.

    Args:
        beginning: ``summation.begin`` of its spec.
        policy: the run's.
        log: of this attempt; what it holds already is replayed.
        audit: the director's log, if it keeps one.
        now: seconds since 1970.

    Raises:
        StorageError: what the log holds cannot be replayed.
    """

    def __init__(
        self, beginning: summation.Gathering, policy: SumPolicy, log: SumLog, audit: DirectorAudit | None, now: float
    ) -> None:
        self._state: Stage = beginning
        self.spec: SumSpec = beginning.spec
        self._policy, self._log, self._audit = policy, log, audit
        self._items: Mapping[EnvoyName, bytes] = {}
        self._refused: set[EnvoyName] = set()
        self._spoken: Counter[EnvoyName] = Counter()
        self._accusers: dict[EnvoyName, set[EnvoyName]] = {}
        self._since, self._short_since = now, cast("float | None", None)
        for event in log.replay():
            try:
                self._repeat(event)
            except FederationError as error:
                raise StorageError(f"{self.spec.ref}: what was said in the secure sum does not fit: {error}") from error
        self._since = now

    @property
    def stage(self) -> str:
        """What envoys say in the present stage."""
        return STAGES[type(self._state)]

    @property
    def is_ready(self) -> bool:
        """The sum can be opened."""
        state = self._state
        return isinstance(state, summation.Unmasking) and len(self._revealed(state)) >= state.threshold

    @property
    def timeout_seconds(self) -> float:
        """How long a long stage waits."""
        return self._policy.timeout_seconds

    @property
    def survivors(self) -> tuple[EnvoyName, ...]:
        """Whose updates are in the sum, once that is settled."""
        state = self._state
        return state.survivors if isinstance(state, summation.Consenting | summation.Unmasking) else ()

    # ------------------------------------------------------------ what envoys say

    def take(self, envoy: EnvoyName, content: bytes, arrived: Mapping[EnvoyName, Digest], now: float) -> None:
        """One statement of an envoy; the very same may come again.

        Args:
            envoy: whose connection it came over.
            content: as it came.
            arrived: the masked vectors that are here, by their SHA-256.
            now: seconds since 1970.

        Raises:
            BadShareError: a share that is not the one that its dealer committed to; the site's name is in it.
            FederationError: as ``summation.take``; nothing has changed.
        """
        state = _taken(self._state, envoy, content)
        if state is self._state:
            return
        if isinstance(state, summation.Masking) and not self._is_whole(state, envoy, arrived):
            raise DigestMismatchError(f"{envoy} announces a masked vector that is not the one that came from it")
        if self._spoken[envoy] >= _MOST_STATEMENTS:
            raise ProtocolError(f"{envoy} said {_MOST_STATEMENTS} things in one attempt; a sum has {len(STAGES)}")
        self._log.append(Event(Way.UP, STAGES[type(state)], envoy, content), now)
        self._spoken[envoy] += 1
        self._state = state
        self._refused.discard(envoy)

    def refuse(self, envoy: EnvoyName, now: float) -> None:
        """An envoy declined: nothing more is expected of it. What it said before stands."""
        if envoy not in self._refused:
            self._log.append(Event(Way.HERE, "declined", envoys=(envoy,)), now)
            self._refused.add(envoy)

    def accuse(self, by: EnvoyName, reason: str) -> EnvoyName | None:
        """A site declined because of what another dealt it; its reason begins with that one's name.

        One word against another is no proof. Whom more organizations accuse than may collude is named: one of them
        at least is honest.
        """
        state, accused = self._state, EnvoyName(reason.partition(" ")[0])
        if isinstance(state, summation.Gathering) or accused not in state.cohort or accused == by:
            return None
        accusers = self._accusers.setdefault(accused, set())
        accusers.add(by)
        return accused if len(state.roster.organizations(accusers)) > state.rules.colluding else None

    def check_header(self, envoy: EnvoyName, header: UpdateHeader) -> None:
        """May this envoy send this masked vector now?

        Raises:
            WrongRoundError: the sum is not at the masked vectors.
            NotInvitedError: its shares did not come in time.
            UnsendableUpdateError: what is announced is not masked, or coded otherwise.
            LengthMismatchError: another length than the sum has.
        """
        state = self._state
        if not isinstance(state, summation.Masking):
            raise WrongRoundError(f"{self.spec.ref} takes {self.stage} now; {envoy} announces a masked update")
        if envoy not in state.awaited and envoy not in state.heard:
            raise NotInvitedError(f"{envoy} is not in the secure sum of {self.spec.ref}: its shares did not come")
        if header.payload is not PayloadKind.MASKED or header.codec not in (None, self.spec.codec):
            raise UnsendableUpdateError(
                f"{envoy} announces a {header.payload.value} update, and {self.spec.ref} takes masked ones alone"
            )
        if header.length != (expected := self._vector_bytes(state.cohort, envoy)):
            raise LengthMismatchError(f"{envoy} announces {header.length} masked bytes, expected {expected}")

    def item_for(self, envoy: EnvoyName) -> SumItem | None:
        """What was sent to an envoy in this stage, if its answer is still missing."""
        content = self._items.get(envoy)
        if content is None or envoy not in self._awaited:
            return None
        return SumItem(self.spec.ref, content)

    # ------------------------------------------------------------ the clock

    def advance(
        self, asked: Collection[EnvoyName], gone: Collection[EnvoyName], now: float
    ) -> Mapping[EnvoyName, SumItem]:
        """One look: gives what is to be sent where the sum goes on to its next stage, and else nothing.

        Args:
            asked: all who were given the task.
            gone: of those, whoever is not there.
            now: seconds since 1970.

        Raises:
            SumAbortedError: too few are left, or came in time.
        """
        if isinstance(self._state, summation.Unmasking):
            missing, revealed = self._awaited - self._refused, self._revealed(self._state)
            if not self.is_ready and not self._may_wait(revealed, missing, missing - set(gone), now):
                raise self._too_few(revealed, missing)
            return {}
        gathers = isinstance(self._state, summation.Gathering)
        heard = frozenset(self._state.heard)
        missing = (frozenset(asked) - heard if gathers else self._awaited) - self._refused
        ready = heard - self._refused - set(gone) if gathers else heard
        waiting = missing - set(gone)
        is_enough = len(ready) >= self._need
        is_late = now - self._since >= self._limit
        may_drop = gathers and self._policy.drops_stragglers
        if is_enough and (not waiting or is_late or may_drop):
            return self._go_on(tuple(sorted(ready)), now)
        if not self._may_wait(ready, missing | (heard - self._refused), waiting, now):
            raise self._too_few(ready, missing)
        return {}

    @property
    def _awaited(self) -> frozenset[EnvoyName]:
        """Whose word is missing in this stage, of those that it was asked of."""
        match self._state:
            case summation.Gathering():
                return frozenset()
            case summation.Unmasking():
                return frozenset(self._state.survivors) - set(self._revealed(self._state))
            case _:
                return self._state.awaited

    # what is otherwise where an envoy aggregates: ``relayed_sum``

    def _is_whole(self, state: summation.Masking, envoy: EnvoyName, arrived: Mapping[EnvoyName, Digest]) -> bool:
        """Is the masked vector that an envoy announced the one that came?"""
        return state.announced.get(envoy) == arrived.get(envoy)

    def _vector_bytes(self, cohort: Cohort, envoy: EnvoyName) -> int:
        """Length of what an envoy uploads."""
        del envoy
        return cohort.words * FLOAT_BYTES

    def _revealed(self, state: summation.Unmasking) -> Collection[EnvoyName]:
        """Whose shares came."""
        return state.heard

    @property
    def _need(self) -> int:
        match self._state:
            case summation.Gathering():
                return self._policy.quorum
            case summation.Sharing() | summation.Masking():
                return max(self._state.cohort.threshold, self._policy.quorum)
            case summation.Consenting() | summation.Unmasking():
                return self._state.cohort.threshold

    @property
    def _limit(self) -> float:
        is_long = isinstance(self._state, summation.Gathering | summation.Masking)
        return self._policy.timeout_seconds if is_long else self._policy.stage_timeout_seconds

    def _may_wait(
        self, ready: Collection[EnvoyName], possible: Collection[EnvoyName], waiting: Collection[EnvoyName], now: float
    ) -> bool:
        """Can enough still answer, in time? Those who are gone may come back, but not for ever."""
        if now - self._since >= self._limit or len({*ready, *possible}) < self._need:
            return False
        if len({*ready, *waiting}) >= self._need:
            self._short_since = None
            return True
        self._short_since = now if self._short_since is None else self._short_since
        gathers = isinstance(self._state, summation.Gathering)
        return now - self._short_since < (self._limit if gathers else self._policy.stage_timeout_seconds)

    def _too_few(self, ready: Collection[EnvoyName], missing: Collection[EnvoyName]) -> SumAbortedError:
        absent = sorted({*missing, *self._refused} - set(ready))
        what = _WORDS.get(self.stage, "shares of the masks")
        return SumAbortedError(
            f"{len(ready)} of {self._need} {what} needed came"
            + (f"; without {', '.join(absent[:8])}{' and others' if len(absent) > 8 else ''}" if absent else "")
        )

    # ------------------------------------------------------------ the stages

    def _go_on(self, names: tuple[EnvoyName, ...], now: float) -> Mapping[EnvoyName, SumItem]:
        """Decide, write it down, and then let it be so."""
        head = b""
        state = self._state
        if isinstance(state, summation.Masking) and self._audit is not None:
            head = self._audit.survivors(self.spec.ref, state.cohort.transcript, names).to_bytes()
        event = Event(Way.HERE, self.stage, content=head, envoys=names)
        state, items = _decided(state, event)
        if isinstance(state, summation.Sharing) and self._audit is not None:
            self._audit.cohort(self.spec.ref, self.spec.digest, names, state.cohort.threshold)
        self._log.append(event, now)
        self._state, self._items, self._since, self._short_since = state, items, now, None
        for envoy, content in items.items():
            self._log.append(Event(Way.DOWN, self.stage, envoy, content), now)
        return {envoy: SumItem(self.spec.ref, content) for envoy, content in items.items()}

    def _repeat(self, event: Event) -> None:
        if event.way is Way.UP:
            envoy = EnvoyName(event.envoy)
            self._state = _taken(self._state, envoy, event.content)
            self._spoken[envoy] += 1
            self._refused.discard(envoy)
        elif event.way is Way.HERE and event.stage == "declined":
            self._refused.update(event.envoys)
        elif event.way is Way.HERE:
            self._state, self._items = _decided(self._state, event)

    # ------------------------------------------------------------ the end

    def open(self) -> summation.Opened:
        """Everything that opens the sum.

        Raises:
            SumAbortedError: it does not open; a ``BadShareError`` names the site.
            ProtocolError: it is not ready.
        """
        if not isinstance(self._state, summation.Unmasking):
            raise ProtocolError(f"{self.spec.ref}: the secure sum is at the {self.stage}s and cannot be opened")
        return summation.open_sum(self._state)

    def keep_vectors(self, uploads: Uploads) -> None:
        """Where sums are kept, copy the masked vectors that came."""
        state = self._state
        if isinstance(state, summation.Consenting | summation.Unmasking):
            spools = ((one, uploads.path(one), self._vector_bytes(state.cohort, one)) for one in state.survivors)
            self._log.keep_vectors((name, path, HEADER_BYTES, length) for name, path, length in spools)

    def end(self, outcome: str) -> None:
        """The attempt is over; what was kept of it goes, unless sums are kept."""
        state = self._state
        cohort = None if isinstance(state, summation.Gathering) else state.cohort
        terms = self.spec.terms
        self._log.end(
            {
                "schema": "fedveil.sum/1",
                "federation": self.spec.federation,
                "run": self.spec.ref.run,
                "round": self.spec.ref.round,
                "attempt": self.spec.ref.attempt,
                "plan": self.spec.ref.plan,
                "kind": self.spec.kind.value,
                "model": self.spec.model,
                "layout": self.spec.layout,
                "codec": self.spec.codec,
                "sizes": list(self.spec.sizes),
                "contributors": self.spec.contributors,
                "orders": self.spec.orders,
                "terms": {
                    "suite": terms.suite.value,
                    "bounds": list(terms.bounds),
                    "max_weight": terms.max_weight,
                    "equal_weights": terms.equal_weights,
                    "aggregator": terms.aggregator,
                    "histogram": terms.histogram,
                    "group": terms.group,
                    "noise": None if terms.noise is None else terms.noise.to_json(),
                },
                "cohort": list(cohort.names) if cohort else [],
                "threshold": cohort.threshold if cohort else 0,
                "survivors": list(self.survivors),
                "transcript": cohort.transcript.hex() if cohort else "",
                "outcome": outcome,
            }
        )

    def close(self) -> None:
        """This process ends; the next one goes on from the log."""
        self._log.close()


def _decided(state: Stage, event: Event) -> tuple[Stage, Mapping[EnvoyName, bytes]]:
    """The next stage, and what is sent for it."""
    if event.stage != STAGES[type(state)]:
        raise ProtocolError(f"a decision about the {event.stage}s in the stage of the {STAGES[type(state)]}s")
    match state:
        case summation.Gathering():
            return summation.close_cohort(state, event.envoys)
        case summation.Sharing():
            return summation.deliver(state)
        case summation.Masking():
            return summation.call_survivors(state, event.envoys, event.content)
        case summation.Consenting():
            return summation.reveal(state)
        case summation.Unmasking():
            raise ProtocolError("nothing is decided after the consents")


def _taken(state: Stage, envoy: EnvoyName, content: bytes) -> Stage:
    match state:  # each stage stays what it is: the type checker wants to see it
        case summation.Gathering():
            return summation.take(state, envoy, content)
        case summation.Sharing():
            return summation.take(state, envoy, content)
        case summation.Masking():
            return summation.take(state, envoy, content)
        case summation.Consenting():
            return summation.take(state, envoy, content)
        case summation.Unmasking():
            return summation.take(state, envoy, content)
