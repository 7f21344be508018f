"""A site's own log: ``audit.jsonl``, signed by its identity key. The events are ``site_events``'s.

It keeps the heads of the director's log: with each consent to a secure sum, and as they come with the answers to
heartbeats. What it finds out by itself: a director whose head goes back, that gives two heads for one entry, that signs
with another key than before, or that gives none any more; it then consents to nothing, and works no more. What it
cannot find out by itself: a director that keeps one log for this site and another for others, as long as each grows. A
secure sum makes this hard, since sites consent to survivors *and* head, and enough of them must say the same; to rule
it out, hold the director's log against those of all sites: ``fedveil audit verify --against``. The key of the
director's log is that of the first head that came: it stands in no certificate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..utils.audit_chain import AuditChain, Entry, Event, Json, SignedHead, Verified, read_entries, verify
from ..utils.audit_witness import (
    CONSENTED,
    DIRECTOR_ANEW,
    DIRECTOR_HEAD,
    DIRECTOR_SUSPECT,
    DIRECTOR_WITNESSED,
    SeenHeads,
    Witnesses,
    head_in,
)
from ..utils.errors import MalformedMessageError, SumRefusedError, SuspectLogError
from ..utils.identity import PeerId
from ..utils.messages import EnvoyName, TaskRef
from ..utils.tensors import Digest
from .site_events import APPROVED, DECISIONS, MAX_WORDS, POLICY, SiteEvents, place_of

LOG_FILE = "audit.jsonl"
_LOGGED = "logged"  # of the heads that came with heartbeats, the last that stands in the log
_ADVICE = (
    "Tell the other sites; if the director was set up anew or from a backup, and its operator says so:"
    " `envoy audit accept-director`"
)


class SiteAudit(SiteEvents):
    """A site's own log; safe to share between threads. Each entry is on disk before its method returns.

    Every method raises ``StorageError`` when it cannot be: then the step that it stands for must not be taken. Several
    processes may have one open: a running envoy learns what a command logged when it next logs something itself, or
    calls ``refresh``.

    Args:
        chain: opens the log, given who is to be told of the entries that other processes add.
        entries: those that are there already.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        chain: Callable[[Callable[[Entry], None]], AuditChain],
        entries: Callable[[], Iterable[Entry]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._lock = clock, threading.RLock()
        self._consented: Event | None = None  # the last
        self._seen = SeenHeads()
        self._suspicion, self._policy = "", ""
        self._words: dict[str, str] = {}  # the last event of each proposal that a data manager decided on
        self._chain = chain(self._take_in)
        for entry in entries():
            self._take_in(entry)

    @classmethod
    def open(
        cls,
        folder: Path,
        peer: PeerId,
        key: Ed25519PrivateKey,
        *,
        durable: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the log of an envoy's folder, or begin it.

        Raises:
            StorageError: the log cannot be written.
            SuspectLogError: it was damaged, or another key signed it.
        """
        about: dict[str, Json] = {"party": "envoy", "federation": peer.federation, "name": peer.name}

        def chain(others: Callable[[Entry], None]) -> AuditChain:
            return AuditChain(folder / LOG_FILE, key, about, clock(), durable=durable, others=others)

        return cls(chain, lambda: read_entries(folder / LOG_FILE), clock)

    def append(self, what: str, more: Mapping[str, Json]) -> None:
        """Log one event.

        Raises:
            StorageError: it cannot be written.
        """
        self._append(what, more)

    @property
    def head(self) -> SignedHead:
        """The last entry, to be given to the director."""
        return self._chain.head

    @property
    def suspicion(self) -> str:
        """What is wrong with the director's log, so that this site does not work for it; empty: nothing."""
        return self._suspicion

    @property
    def policy_digest(self) -> str:
        """Of envoy.toml as it was last logged; empty: it never was."""
        return self._policy

    @property
    def taken_back(self) -> frozenset[Digest]:
        """The proposals whose last word in this log is that they were rejected or vetoed."""
        with self._lock:
            return frozenset(Digest(digest) for digest, what in self._words.items() if what != APPROVED)

    def refresh(self) -> None:
        """Learn what other processes logged meanwhile.

        Raises:
            StorageError: the log cannot be read.
            SuspectLogError: what stands there was not written by this site.
        """
        with self._lock:
            self._chain.catch_up(self._clock())

    def witnessed(self, director_head: bytes, *, is_due: bool = True) -> None:
        """See a head of the director's log, and log it where it is due and another than the last that was logged.

        Args:
            director_head: as it came; empty from a director that keeps no log.
            is_due: a task began or ended since the last one was logged.

        Raises:
            SuspectLogError: the director's log is not the one that this site saw before. It is logged, and
                ``suspicion`` says it from now on, until somebody takes the director's log anew.
            StorageError: it cannot be logged.
        """
        with self._lock:
            if self._suspicion:
                raise SuspectLogError(self._suspicion)
            try:
                head = SignedHead.from_bytes(director_head) if director_head else None
                self._seen.check(head, DIRECTOR_WITNESSED)
            except (MalformedMessageError, SuspectLogError) as error:
                suspicion = f"{error}. This site does no work for it. {_ADVICE}"
                said: dict[str, Json] = {"reason": str(error), "suspicion": suspicion}
                self._append(DIRECTOR_SUSPECT, said | {DIRECTOR_HEAD: director_head[:MAX_WORDS].hex()})
                self._suspicion = suspicion
                raise SuspectLogError(suspicion) from error
            if head is not None and is_due and head != self._seen.last(_LOGGED):
                self._append(DIRECTOR_WITNESSED, {DIRECTOR_HEAD: director_head.hex()})
                self._seen.keep(head, _LOGGED)
            self._seen.keep(head, DIRECTOR_WITNESSED)

    def consented(self, ref: TaskRef, transcript: bytes, survivors: Iterable[EnvoyName], director_head: bytes) -> None:
        """Log a consent, before it leaves; the very same one again is logged once.

        Args:
            ref: the task.
            transcript: of the sum, 32 bytes.
            survivors: of whom the sum is to be.
            director_head: as it came with the survivors; empty from a director that keeps no log.

        Raises:
            SumRefusedError: the director's log is not the one that this site saw before; the consent must not leave.
            StorageError: it cannot be logged; the consent must not leave.
        """
        said: dict[str, Json] = place_of(ref) | {
            "transcript": transcript.hex(),
            "survivors": sorted(survivors),
            DIRECTOR_HEAD: director_head.hex(),
        }
        with self._lock:
            if self._consented == {"what": CONSENTED} | said:
                return
            if self._suspicion:
                raise SumRefusedError(f"{ref}: {self._suspicion}")
            try:
                head = SignedHead.from_bytes(director_head) if director_head else None
                self._seen.check(head, CONSENTED)
            except (MalformedMessageError, SuspectLogError) as error:
                self._append(DIRECTOR_SUSPECT, said | {"reason": str(error)})
                raise SumRefusedError(f"{ref}: {error}. This site does not consent. {_ADVICE}") from error
            self._consented = self._append(CONSENTED, said)
            self._seen.keep(head, CONSENTED)

    def unmasked(self, ref: TaskRef, transcript: bytes) -> None:
        """Log that this site's shares were revealed."""
        self._append("unmasked", place_of(ref) | {"transcript": transcript.hex()})

    def summed(self, ref: TaskRef, transcript: bytes, survivors: Iterable[EnvoyName], total: str) -> None:
        """Log, before it leaves, that this site opened a sum of others for the director; ``total`` is its digest."""
        said: dict[str, Json] = {"transcript": transcript.hex(), "survivors": sorted(survivors), "total": total}
        self._append("summed for others", place_of(ref) | said)

    def take_anew(self) -> None:
        """Compare what the director gives from now on with nothing that it gave before: its operator said why."""
        with self._lock:
            last = self._seen.last(DIRECTOR_WITNESSED) or self._seen.last(CONSENTED)
            self._append(DIRECTOR_ANEW, {"last_head": last.to_bytes().hex() if last else ""})
            self._forget()

    def close(self) -> None:
        """Write no more."""
        self._chain.close()

    def _append(self, what: str, more: Mapping[str, Json]) -> Event:
        with self._lock:  # taken before that of the chain, everywhere
            event = self._chain.append({"what": what, **more}, self._clock()).event
            if what == POLICY:
                self._policy = str(event["envoy_toml"])
            self._take_word(event)
            return event

    def _take_word(self, event: Event) -> None:
        if event.get("what") in DECISIONS and event.get("proposal"):
            self._words[str(event["proposal"])] = str(event["what"])

    def _take_in(self, entry: Entry) -> None:
        """What stands in the log already, or was put there by another process."""
        with self._lock:
            self._take_word(entry.event)
            match entry.event.get("what"):
                case what if what == CONSENTED:
                    self._consented = entry.event
                    self._seen.keep(head_in(entry, DIRECTOR_HEAD), CONSENTED)
                case what if what == DIRECTOR_WITNESSED:
                    for way in (DIRECTOR_WITNESSED, _LOGGED):
                        self._seen.keep(head_in(entry, DIRECTOR_HEAD), way)
                case what if what == DIRECTOR_SUSPECT:
                    self._suspicion = str(entry.event.get("suspicion", ""))
                case what if what == DIRECTOR_ANEW:
                    self._forget()
                case what if what == POLICY:
                    self._policy = str(entry.event.get("envoy_toml"))

    def _forget(self) -> None:
        self._consented, self._suspicion = None, ""
        self._seen.forget()


def heads_in(folder: Path) -> Iterator[SignedHead]:
    """Every head of the director's log that this site found right, since it last took that log anew.

    Raises:
        SuspectLogError: the site's own log is damaged, or the heads in it do not go forward.
        StorageError: there is none.
    """
    witnesses = Witnesses()
    for entry in read_entries(folder / LOG_FILE):
        witnesses.take(entry)
    yield from witnesses.of()


def verify_log(folder: Path, key: bytes) -> tuple[Verified, int]:
    """Is this site's log whole, and do the director's heads in it go forward? Gives how many heads there are.

    Raises:
        SuspectLogError: it is not; the message names the first entry that is wrong.
        StorageError: there is none.
    """
    witnesses = Witnesses()
    found = verify(folder / LOG_FILE, key, see=witnesses.take)
    return found, witnesses.count
