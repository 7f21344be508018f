"""What this site consented to, in its own log: ``audit.jsonl``, signed by its identity key.

With each consent it keeps the head of the director's log that came with the survivors. What it finds out by itself: a
director whose head goes back, that gives two heads for one entry, that signs with another key than before, or that
gives none any more; it then refuses to consent. What it cannot find out by itself: a director that keeps one log for
this site and another for others, as long as each grows. A secure sum makes this hard, since sites consent to survivors
*and* head, and enough of them must say the same; to rule it out, compare ``envoy audit heads`` of all sites with the
director's log: ``director audit verify --heads FILE``. The key of the director's log is that of the first head that
came: it stands in no certificate yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..utils.audit_chain import (
    AuditChain,
    Entry,
    Event,
    Json,
    SignedHead,
    Verified,
    read_entries,
    verify,
)
from ..utils.errors import MalformedMessageError, SumRefusedError, SuspectLogError
from ..utils.identity import PeerId
from ..utils.messages import EnvoyName, TaskRef
from ..utils.roster import key_fingerprint

LOG_FILE = "audit.jsonl"
_CONSENTED, _ANEW = "consented", "director's log taken anew"
_HEAD = "director_head"


class SiteAudit:
    """A site's own log; safe to share between threads. Each entry is on disk before its method returns.

    Every method raises ``StorageError`` when it cannot be: then the step that it stands for must not be taken.
    """

    def __init__(self, chain: AuditChain, last: Entry | None, clock: Callable[[], float] = time.time) -> None:
        self._chain, self._clock = chain, clock
        self._consented = last.event if last is not None else None
        self._head = _head_of(last)

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
            StorageError: the log cannot be written, or another process has it open.
            SuspectLogError: it was damaged, or another key signed it.
        """
        about: dict[str, Json] = {"party": "envoy", "federation": peer.federation, "name": peer.name}
        chain = AuditChain(folder / LOG_FILE, key, about, clock(), durable=durable)
        last = None
        for entry in read_entries(folder / LOG_FILE):
            last = entry if entry.event["what"] == _CONSENTED else None if entry.event["what"] == _ANEW else last
        return cls(chain, last, clock)

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
        said: dict[str, Json] = _place(ref) | {
            "transcript": transcript.hex(),
            "survivors": sorted(survivors),
            _HEAD: director_head.hex(),
        }
        if self._consented == {"what": _CONSENTED} | said:
            return
        try:
            head = SignedHead.from_bytes(director_head) if director_head else None
            check_follows(self._head, head)
        except (MalformedMessageError, SuspectLogError) as error:
            self._append("director's log is suspect", said | {"reason": str(error)})
            raise SumRefusedError(
                f"{ref}: {error}. This site does not consent. Tell the other sites; if the director was set up anew or"
                " from a backup, and its operator says so: `envoy audit accept-director`"
            ) from error
        self._consented = self._append(_CONSENTED, said)
        self._head = head or self._head

    def unmasked(self, ref: TaskRef, transcript: bytes) -> None:
        """Log that this site's shares were revealed."""
        self._append("unmasked", _place(ref) | {"transcript": transcript.hex()})

    def summed(self, ref: TaskRef, transcript: bytes, survivors: Iterable[EnvoyName], total: str) -> None:
        """Log, before it leaves, that this site opened a sum of others for the director; ``total`` is its digest."""
        said: dict[str, Json] = {"transcript": transcript.hex(), "survivors": sorted(survivors), "total": total}
        self._append("summed for others", _place(ref) | said)

    def take_anew(self) -> None:
        """Compare what the director gives from now on with nothing that it gave before: its operator said why."""
        self._append(_ANEW, {"last_head": self._head.to_bytes().hex() if self._head else ""})
        self._consented = self._head = None

    def close(self) -> None:
        """Let another process open it."""
        self._chain.close()

    def _append(self, what: str, more: dict[str, Json]) -> Event:
        return self._chain.append({"what": what, **more}, self._clock()).event


def check_follows(before: SignedHead | None, head: SignedHead | None) -> None:
    """Could the second head be of the same log as the first, later or at the same time? No proof that it is.

    Raises:
        SuspectLogError: it could not; the message says why.
    """
    if before is None:
        return
    if head is None:
        raise SuspectLogError("the director gives no head of its audit log any more")
    if head.key != before.key:
        raise SuspectLogError(
            f"the director's audit log is signed by another key: {key_fingerprint(head.key)};"
            f" it was {key_fingerprint(before.key)}"
        )
    if head.number < before.number:
        raise SuspectLogError(f"the director's audit log went back from entry {before.number} to {head.number}")
    if head.number == before.number and head.hash != before.hash:
        raise SuspectLogError(f"the director gave two heads for entry {head.number} of its audit log: it was forked")


def heads_in(folder: Path) -> Iterator[SignedHead]:
    """Every head of the director's log that this site consented to.

    Raises:
        SuspectLogError: the site's own log is damaged.
        StorageError: there is none.
    """
    for entry in read_entries(folder / LOG_FILE):
        head = _head_of(entry) if entry.event["what"] == _CONSENTED else None
        if head is not None:
            yield head


def verify_log(folder: Path, key: bytes) -> tuple[Verified, int]:
    """Is this site's log whole, and do the director's heads in it go forward? Gives how many heads there are.

    Raises:
        SuspectLogError: it is not; the message names the first entry that is wrong.
        StorageError: there is none.
    """
    found, before, count = verify(folder / LOG_FILE, key), None, 0
    for entry in read_entries(folder / LOG_FILE):
        if entry.event["what"] == _CONSENTED:
            head = _head_of(entry)
            check_follows(before, head)
            before, count = head, count + (head is not None)
        elif entry.event["what"] == _ANEW:
            before = None
    return found, count


def _head_of(entry: Entry | None) -> SignedHead | None:
    if entry is None or not entry.event.get(_HEAD):
        return None
    try:
        return SignedHead.from_bytes(bytes.fromhex(str(entry.event[_HEAD])))
    except (ValueError, MalformedMessageError) as error:
        raise SuspectLogError(f"entry {entry.number} of this site's log holds no head of the director's") from error


def _place(ref: TaskRef) -> dict[str, Json]:
    return {"run": ref.run, "round": ref.round, "attempt": ref.attempt, "plan": ref.plan}
