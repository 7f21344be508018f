"""The roster: whom a site sums its updates with, each by the key that signs for it, and whose each one is.

A director that holds the authority can issue certificates to envoys that it made up. So a certificate alone opens no
secure sum: each site keeps a roster of names, organizations and Ed25519 identity keys that its data manager compared
with the other sites, by phone say, and accepted by its digest. This module is the value, its canonical bytes, and the
difference between two of them in words; where a site keeps it is ``envoy/accepted_roster.py``. No I/O here.

Only keys that are points of the curve, and not of the eight of small order, are taken: for those, signatures that
nobody made would pass. Whether a key lies in the subgroup of prime order is not checked: a key with a part of small
order weakens only signatures made by its own holder.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .errors import IdentityError, MalformedMessageError
from .identity import check_name
from .messages import EnvoyName, RosterReply
from .tensors import Digest, canonical_json, digest_of

KEY_BYTES = 32
MAX_ENTRIES = 4096
MAX_ORGANIZATION = 200
_FORMAT = "fedveil-roster/1"
_PRIME = 2**255 - 19
_D = -121665 * pow(121666, -1, _PRIME) % _PRIME
_SQRT_MINUS_ONE = pow(2, (_PRIME - 1) // 4, _PRIME)


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One envoy as a site knows it.

    Raises:
        IdentityError: no name, no organization, or bytes that are no Ed25519 key.
    """

    name: EnvoyName
    organization: str  # for people; envoys of one organization count as one
    identity_key: bytes  # Ed25519, 32 bytes

    def __post_init__(self) -> None:
        check_name("envoy", self.name)
        if not (0 < len(self.organization) <= MAX_ORGANIZATION and self.organization.isprintable()):
            raise IdentityError(f"{self.name}: an organization is 1 to {MAX_ORGANIZATION} printable characters")
        if not _folded(self.organization):
            raise IdentityError(f"{self.name}: an organization of blanks alone")
        check_identity_key(self.name, self.identity_key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, in groups to be read over the phone."""
        return key_fingerprint(self.identity_key)


@dataclass(frozen=True, slots=True)
class Roster:
    """The envoys of a federation, by name.

    Raises:
        IdentityError: no federation's name, a name or a key twice, or too many.
    """

    federation: str
    entries: tuple[RosterEntry, ...]  # kept in the order of names
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        check_name("federation", self.federation)
        if len(self.entries) > MAX_ENTRIES:
            raise IdentityError(f"a roster of {len(self.entries)} envoys, expected at most {MAX_ENTRIES}")
        by_name: dict[str, RosterEntry] = {}
        by_key: dict[bytes, RosterEntry] = {}
        for entry in self.entries:
            if entry.name in by_name:
                raise IdentityError(f"the roster of {self.federation} has {entry.name} twice")
            if entry.identity_key in by_key:
                other = by_key[entry.identity_key].name
                raise IdentityError(f"the roster of {self.federation} has one key for {other} and for {entry.name}")
            by_name[entry.name] = by_key[entry.identity_key] = entry
        object.__setattr__(self, "entries", tuple(sorted(self.entries, key=lambda one: one.name)))
        object.__setattr__(self, "digest", digest_of(self.to_json()))

    def __contains__(self, name: object) -> bool:
        return any(entry.name == name for entry in self.entries)

    @property
    def names(self) -> tuple[EnvoyName, ...]:
        """All names, sorted."""
        return tuple(entry.name for entry in self.entries)

    def entry(self, name: str) -> RosterEntry:
        """The envoy of that name.

        Raises:
            IdentityError: the roster has none; says what a site can do.
        """
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise IdentityError(
            f"{name} is not in the roster {self.digest[:12]}… of {self.federation} that this site accepted;"
            " if it is to be, see `envoy roster fetch`"
        )

    def organizations(self, names: Iterable[str]) -> Counter[str]:
        """How many of these envoys each organization has; ``len`` of it is the number of organizations.

        Spellings that differ in case, blanks or punctuation alone are one organization.

        Raises:
            IdentityError: one of them is not in the roster.
        """
        known = {entry.name: _folded(entry.organization) for entry in self.entries}
        counted: Counter[str] = Counter()
        for name in set(names):
            counted[known.get(EnvoyName(name)) or _folded(self.entry(name).organization)] += 1
        return counted

    def to_json(self) -> bytes:
        """Canonical bytes: the digest is taken over these."""
        return canonical_json(
            {
                "format": _FORMAT,
                "federation": self.federation,
                "entries": [[one.name, one.organization, one.identity_key.hex()] for one in self.entries],
            }
        )

    @classmethod
    def from_json(cls, raw: bytes) -> Roster:
        """Read what ``to_json`` wrote.

        Raises:
            MalformedMessageError: other bytes than ``to_json`` gives, or of another version.
            IdentityError: its entries make no roster.
        """
        try:
            document = json.loads(raw)
            entries = tuple(RosterEntry(EnvoyName(n), o, bytes.fromhex(k)) for n, o, k in document["entries"])
            if document["format"] != _FORMAT:
                raise MalformedMessageError(f"a roster of another version; this software reads {_FORMAT}")
            roster = cls(document["federation"], entries)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MalformedMessageError("not a roster") from error
        if roster.to_json() != raw:
            raise MalformedMessageError("a roster whose bytes are not in the one order that its digest is taken over")
        return roster


def roster_of(reply: RosterReply) -> Roster:
    """The roster that a director says it has; nobody has accepted it.

    Raises:
        IdentityError: its entries make no roster.
    """
    entries = (RosterEntry(one.name, one.organization, one.identity_key) for one in reply.members)
    return Roster(reply.federation, tuple(entries))


def check_identity_key(name: str, key: bytes) -> bytes:
    """Give an Ed25519 public key back if it may be one (RFC 8032, 5.1.3, without the points of small order).

    Raises:
        IdentityError: another length, no point of the curve, or a point of small order.
    """
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise IdentityError(f"{name}: an identity key of {len(key)} bytes, expected {KEY_BYTES} of Ed25519")
    number = int.from_bytes(key, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= _PRIME:
        raise IdentityError(f"{name}: {key.hex()} is no Ed25519 key: not in its canonical form")
    x = _root((y * y - 1) * pow(_D * y * y + 1, -1, _PRIME) % _PRIME)
    if x is None or (x == 0 and sign):
        raise IdentityError(f"{name}: {key.hex()} is no Ed25519 key: not a point of the curve")
    if _is_of_small_order(x, y):
        raise IdentityError(f"{name}: {key.hex()} is a point of small order, for which anybody can sign")
    return key


def key_fingerprint(key: bytes) -> str:
    """SHA-256 of an identity key, in groups to be read over the phone: ``3f2a 90bc ...``."""
    return grouped(hashlib.sha256(key).hexdigest())


def grouped(digest: str) -> str:
    """A digest in groups of four, to be read over the phone.

    >>> grouped("3f2a90bc")
    '3f2a 90bc'
    """
    return " ".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def difference(old: Roster | None, new: Roster) -> tuple[str, ...]:
    """What a data manager compares before accepting: one line an envoy that changed, the dangerous ones first.

    Args:
        old: what the site accepted, None where it accepted nothing yet (then every envoy is new).
        new: what is offered.

    Returns:
        No line where nothing changed.
    """
    before = {entry.name: entry for entry in old.entries} if old is not None else {}
    after = {entry.name: entry for entry in new.entries}
    federation = [] if old is None or old.federation == new.federation else [_another_federation(old, new)]
    kept = [(before[name], after[name]) for name in sorted(before.keys() & after.keys())]
    keys = [
        f"!! KEY CHANGED  {now.name} ({_spelt(now.organization)})\n     was {was.fingerprint}\n"
        f"     now {now.fingerprint}\n     ask this site by phone, at a number that you already had, before you accept"
        for was, now in kept
        if was.identity_key != now.identity_key
    ]
    moved = [
        f"!! ORGANIZATION CHANGED  {now.name}: was {was.organization!r}, now {_spelt(now.organization)}"
        for was, now in kept
        if was.organization != now.organization
    ]
    added = [
        f"+ {one.name} ({_spelt(one.organization)})\n     key {one.fingerprint}"
        for name, one in sorted(after.items())
        if name not in before
    ]
    removed = [
        f"- {one.name} ({_spelt(one.organization)})" for name, one in sorted(before.items()) if name not in after
    ]
    return (*federation, *keys, *moved, *added, *removed)


def _another_federation(old: Roster, new: Roster) -> str:
    return f"!! ANOTHER FEDERATION  was {old.federation}, now {new.federation}"


def _folded(organization: str) -> str:
    """One spelling for those that people would take for the same; letters of other alphabets are ``_spelt``'s."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", organization).casefold())
    return "".join(letter for letter in plain if unicodedata.category(letter)[0] in "LMN") or "".join(plain.split())


def _spelt(organization: str) -> str:
    """In quotes, so that it passes for nothing else on its line; with its alphabets, where a letter is not Latin.

    >>> _spelt("Clinic A")
    "'Clinic A'"
    """
    letters = (letter for letter in organization if unicodedata.category(letter)[0] == "L")
    alphabets = sorted({unicodedata.name(letter, "UNNAMED").split()[0] for letter in letters})
    return repr(organization) + (f" !! letters: {', '.join(alphabets)}" if {*alphabets} - {"LATIN"} else "")


def _root(square: int) -> int | None:
    """A square root mod 2^255 - 19, if there is one (RFC 8032, 5.1.3)."""
    root = pow(square, (_PRIME + 3) // 8, _PRIME)
    for candidate in (root, root * _SQRT_MINUS_ONE % _PRIME):
        if candidate * candidate % _PRIME == square % _PRIME:
            return candidate
    return None


def _is_of_small_order(x: int, y: int) -> bool:
    """Is eight times the point the neutral one? By doubling it three times (affine, twisted Edwards, a = -1)."""
    for _ in range(3):
        product = _D * x * x * y * y % _PRIME
        x, y = (
            2 * x * y * pow(1 + product, -1, _PRIME) % _PRIME,
            (y * y + x * x) * pow(1 - product, -1, _PRIME) % _PRIME,
        )
    return (x, y) == (0, 1)
