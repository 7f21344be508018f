"""What director and site keep of each other's audit logs, so that neither can write its own anew, and how it is read.

A site logs the heads of the director's log that it saw, the director those of each site. ``SeenHeads`` says whether the
next head could be of the same log; ``Witnesses`` reads the heads out of a whole log, so that the log of the other side
is held against them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .audit_chain import Entry, SignedHead
from .errors import MalformedMessageError, SuspectLogError
from .roster import key_fingerprint

DIRECTOR_HEAD = "director_head"
"""Field of a site's events that holds a head of the director's log, in hexadecimal."""
SITE, SITE_HEAD = "envoy", "site_head"
"""Fields of the director's events: whose log, and its head."""
CONSENTED, DIRECTOR_WITNESSED = "consented", "director's head"
"""Events of a site that hold a head of the director's log which it found right."""
DIRECTOR_SUSPECT, DIRECTOR_ANEW = "director's log is suspect", "director's log taken anew"
SITE_WITNESSED, SITE_SUSPECT, SITE_ANEW = "site's head", "site's log is suspect", "site's log taken anew"


@dataclass(slots=True)
class SeenHeads:
    """The newest heads of one log of the other side, by the way on which they came.

    On each way they come in order; between two ways (answers to heartbeats, what is pushed in a secure sum) an older
    one may come later.
    """

    whose: str = "the director"
    _last: dict[str, SignedHead] = field(default_factory=dict)

    def check(self, head: SignedHead | None, way: str) -> None:
        """Could this head be of the log whose heads were seen, not earlier than the last on its way? No proof of it.

        Raises:
            SuspectLogError: it could not; the message says why.
        """
        for seen_on, seen in self._last.items():
            check_follows(seen, head, self.whose, may_be_older=seen_on != way)

    def keep(self, head: SignedHead | None, way: str) -> None:
        """It was found right."""
        if head is not None:
            self._last[way] = head

    def last(self, way: str) -> SignedHead | None:
        """The newest that came on a way."""
        return self._last.get(way)

    def forget(self) -> None:
        """Somebody said why the log begins anew."""
        self._last.clear()


def check_follows(
    before: SignedHead | None, head: SignedHead | None, whose: str = "the director", *, may_be_older: bool = False
) -> None:
    """Could the second head be of the same log as the first, later or at the same time? No proof that it is.

    Raises:
        SuspectLogError: it could not; the message says why.
    """
    if before is None:
        return
    if head is None:
        raise SuspectLogError(f"{whose} gives no head of its audit log any more")
    if head.key != before.key:
        raise SuspectLogError(
            f"the audit log of {whose} is signed by another key: {key_fingerprint(head.key)};"
            f" it was {key_fingerprint(before.key)}"
        )
    if head.number < before.number and not may_be_older:
        raise SuspectLogError(f"the audit log of {whose} went back from entry {before.number} to {head.number}")
    if head.number == before.number and head.hash != before.hash:
        raise SuspectLogError(f"{whose} gave two heads for entry {head.number} of its audit log: it was forked")


@dataclass(slots=True)
class Witnesses:
    """Collects the heads of other logs that stand in one log, entry by entry, and checks that they go forward.

    Pass ``take`` to ``audit_chain.verify``. What was seen before somebody said that the other log is taken anew is
    counted, and compared with nothing.
    """

    set_aside: int = 0
    suspicions: list[str] = field(default_factory=list)  # what its owner found wrong with other logs, in its words
    _heads: dict[str, list[SignedHead]] = field(default_factory=dict)  # by site; "" is the director
    _seen: dict[str, SeenHeads] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        """Read one entry.

        Raises:
            SuspectLogError: a head in it is none, or does not follow the one before.
        """
        what, site = entry.event.get("what"), str(entry.event.get(SITE, ""))
        if what in (CONSENTED, DIRECTOR_WITNESSED):
            self._add("", head_in(entry, DIRECTOR_HEAD), entry)
        elif what == SITE_WITNESSED:
            self._add(site, head_in(entry, SITE_HEAD), entry)
        elif what in (DIRECTOR_SUSPECT, SITE_SUSPECT):
            reason = entry.event.get("reason") or entry.event.get("suspicion")
            self.suspicions.append(f"entry {entry.number}: {reason}")
        elif what in (DIRECTOR_ANEW, SITE_ANEW):
            whose = "" if what == DIRECTOR_ANEW else site
            self.set_aside += len(self._heads.pop(whose, []))
            self._seen.pop(whose, None)

    def of(self, name: str = "") -> list[SignedHead]:
        """The heads of one site's log; of the director's without a name."""
        return self._heads.get(name, [])

    @property
    def count(self) -> int:
        """Of all, but for those set aside."""
        return sum(map(len, self._heads.values()))

    def _add(self, whose: str, head: SignedHead | None, entry: Entry) -> None:
        seen, way = self._seen.setdefault(whose, SeenHeads(whose or "the director")), str(entry.event["what"])
        try:
            seen.check(head, way)
        except SuspectLogError as error:
            raise SuspectLogError(f"entry {entry.number}: {error}") from error
        seen.keep(head, way)
        if head is not None:
            self._heads.setdefault(whose, []).append(head)


def head_in(entry: Entry, name: str) -> SignedHead | None:
    """The head that a field of an entry holds; None where it is empty.

    Raises:
        SuspectLogError: something else stands there.
    """
    if not entry.event.get(name):
        return None
    try:
        return SignedHead.from_bytes(bytes.fromhex(str(entry.event[name])))
    except (ValueError, MalformedMessageError) as error:
        raise SuspectLogError(f"entry {entry.number}: {name} is no head of an audit log") from error
