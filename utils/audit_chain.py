"""A log that cannot be changed without being seen: JSON lines, each with the hash of the one before, and signed.

One line is the canonical JSON of ``n`` (from 0), ``time``, ``prev`` (the hash of the entry before), ``event``, ``hash``
(SHA-256 over the four) and ``signature`` (Ed25519 over the hash). Entry 0 says whose log it is and with which key.

What it shows: any byte that was changed, any line taken out of the middle, put in or moved. What it cannot show alone:
that its owner, who holds the key, wrote another log from some entry on, or cut the end off. For that, others keep its
*head*: ``SignedHead`` is the owner's signed word that entry ``number`` has this hash. Two heads of one number and
different hashes prove a fork; a log that is to be believed holds every head that was ever given out (``verify`` takes
them). Proofs of consistency between two heads without the log (RFC 6962) do not exist here yet.

An entry is there once ``append`` returned, and then it is on disk. Several processes may append to one log, say a
running envoy and a command: each locks the file for one entry, and first takes in what others added, which must follow
and be signed by the same key. A process that was killed while it wrote leaves a torn last line: it was never counted,
whoever writes next cuts it off and says so in an entry of its own. A full disk is a ``StorageError``, and the log is as
before. Never in an event: patients' data, values of one site, secrets.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .certificates import public_bytes
from .errors import MalformedMessageError, StorageError, SuspectLogError
from .private_files import FILE_MODE
from .tensors import canonical_json

MAX_LINE_BYTES = 1 << 20
_ENTRY, _HEAD = b"fedveil-audit-entry/1\0", b"fedveil-audit-head/1\0"  # so that no signature is good for another use
_FORMAT = "fedveil-audit/1"
_FIELDS = {"n", "time", "prev", "event", "hash", "signature"}
_NOTHING = bytes(32)  # what stands before entry 0

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
Event = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a log."""

    number: int  # from 0
    time: str  # UTC, as the writer's clock had it; clocks may be wrong, and go back
    prev: bytes  # hash of the entry before
    event: Event
    hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedHead:
    """The owner's word that its log has this entry; enough to prove a fork, together with another one.

    >>> SignedHead.SIZE
    136
    """

    number: int  # of the log's last entry when it was given
    hash: bytes  # of that entry, 32 bytes
    key: bytes  # Ed25519 public key of the log, 32 bytes
    signature: bytes  # 64 bytes

    SIZE = 8 + 32 + 32 + 64

    def to_bytes(self) -> bytes:
        """As it travels."""
        return self.number.to_bytes(8, "big") + self.hash + self.key + self.signature

    @classmethod
    def from_bytes(cls, raw: bytes) -> SignedHead:
        """Read what ``to_bytes`` wrote, and check the signature. Whether the key is the right one is not known here.

        Raises:
            MalformedMessageError: another length, or not signed by the key in it.
        """
        if len(raw) != cls.SIZE:
            raise MalformedMessageError(f"a head of an audit log of {len(raw)} bytes, expected {cls.SIZE}")
        head = cls(int.from_bytes(raw[:8], "big"), raw[8:40], raw[40:72], raw[72:])
        if not _is_signed(head.key, head.signature, _head_body(head.number, head.hash)):
            raise MalformedMessageError("a head of an audit log that its own key did not sign")
        return head


class AuditChain:
    """One log, open for appending; safe to share between threads, and between processes that open it each.

    Args:
        path: made with mode 0600 if it is not there.
        key: signs each entry; the log's owner alone has it.
        about: whose log it is, for entry 0 of a new one.
        now: seconds since 1970.
        durable: wait for the disk at each entry; only tests and rehearsals may do without.
        others: told each entry that another process added meanwhile, before the next one is written here.

    Raises:
        StorageError: it cannot be opened or written.
        SuspectLogError: its last entry is damaged, or another key signed it. Nothing was changed.
    """

    def __init__(
        self,
        path: Path,
        key: Ed25519PrivateKey,
        about: Event,
        now: float,
        *,
        durable: bool = True,
        others: Callable[[Entry], None] = lambda _: None,
    ) -> None:
        self._path, self._key, self._durable, self._others = path, key, durable, others
        self._public = public_bytes(key.public_key())
        self._lock = threading.Lock()
        self._number, self._hash, self._length = -1, _NOTHING, 0
        self._failed = b""  # a line that could not be written, of which a part may stand in the file
        self._file = _opened(path)
        try:
            with self._alone():
                torn = self._resume()
                if self._number < 0:
                    self._add({"what": "log begun", "format": _FORMAT, "key": self._public.hex(), **about}, now)
                self._report_torn(torn, now)
        except StorageError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, event: Event, now: float) -> Entry:
        """Add one entry; once this returns, it is on disk.

        Raises:
            StorageError: the disk is full or gone. The entry does not count, and the log is as before.
            ValueError: the event is too long, or no JSON.
        """
        with self._lock, self._alone():
            self._report_torn(self._catch_up(), now)
            return self._add(event, now)

    def sign(self, content: bytes) -> bytes:
        """Sign something else by the log's key: 64 bytes. It begins with what tells it from all else that is signed."""
        return self._key.sign(content)

    @property
    def head(self) -> SignedHead:
        """The last entry that was read or written here, signed as such, to be given to others."""
        with self._lock:
            number, hash_ = self._number, self._hash
        return SignedHead(number, hash_, self._public, self._key.sign(_head_body(number, hash_)))

    def catch_up(self, now: float) -> None:
        """Take in what other processes added.

        Raises:
            StorageError: it cannot be read.
            SuspectLogError: it does not follow, or was not signed by this log's key.
        """
        with self._lock:
            if self._file.seek(0, os.SEEK_END) == self._length:
                return
            with self._alone():
                self._report_torn(self._catch_up(), now)

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def _resume(self) -> bytes:
        """Find the last whole line and check it; cut off and give back what stands behind it."""
        try:
            length = self._file.seek(0, os.SEEK_END)
            start = max(0, length - 2 * MAX_LINE_BYTES)
            self._file.seek(start)
            tail = self._file.read()
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read: {error.strerror}") from error
        whole, newline, torn = tail.rpartition(b"\n")
        if not newline:  # nothing whole
            if start:
                raise SuspectLogError(f"{self._path}: no end of a line in its last {len(tail)} bytes; it is no log")
            torn, whole = tail, b""
        else:
            entry = _read_line(whole.rpartition(b"\n")[2] + b"\n", f"{self._path}: the last entry")
            _check_signature(entry, self._public, f"{self._path}: the last entry")
            self._number, self._hash = entry.number, entry.hash
        self._length = length - len(torn)
        if torn:
            self._cut()
        return torn

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes meanwhile."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(f"{self._path}: the audit log cannot be locked: {error.strerror}") from error
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _catch_up(self) -> bytes:
        """Take in what other processes added; cut off and give back a last line that one of them left torn."""
        try:
            if self._file.seek(0, os.SEEK_END) < self._length:
                raise SuspectLogError(f"{self._path}: somebody cut this audit log: `audit verify`")
            self._file.seek(self._length)
            added = self._file.read()
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read: {error.strerror}") from error
        if added and self._failed.startswith(added):  # a line of our own, which was not counted
            self._cut()
            added = b""
        self._failed = b""
        whole, newline, torn = added.rpartition(b"\n")
        for line in (whole + newline).splitlines(keepends=True):
            where = f"{self._path}: entry {self._number + 1}, which another process wrote"
            entry = _read_line(line, where)
            if (entry.number, entry.prev) != (self._number + 1, self._hash):
                raise SuspectLogError(f"{where}, does not follow: somebody else wrote to this log: `audit verify`")
            _check_signature(entry, self._public, where)
            self._number, self._hash, self._length = entry.number, entry.hash, self._length + len(line)
            self._others(entry)
        if torn:
            self._cut()
        return torn

    def _report_torn(self, torn: bytes, now: float) -> None:
        if torn:
            cut: dict[str, Json] = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
            self._add({"what": "torn last line cut off", **cut}, now)

    def _add(self, event: Event, now: float) -> Entry:
        entry = _signed(self._key, self._number + 1, _time(now), self._hash, event)
        line = _line(entry)
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"an event of {len(line)} bytes, expected at most {MAX_LINE_BYTES}")
        self._write(line)
        self._number, self._hash, self._length = entry.number, entry.hash, self._length + len(line)
        return entry

    def _write(self, line: bytes) -> None:
        self._failed = line
        try:
            self._file.seek(self._length)
            rest = memoryview(line)
            while rest:  # a disk that gets full takes a part
                rest = rest[self._file.write(rest) :]
            self._sync()
        except OSError as error:
            with contextlib.suppress(StorageError):
                self._cut()
            raise StorageError(
                f"{self._path}: an entry of the audit log cannot be written: {error.strerror}; it does not count."
                " Free some room: nothing goes on without its log"
            ) from error
        self._failed = b""

    def _cut(self) -> None:
        try:
            self._file.truncate(self._length)
            self._sync()
        except OSError as error:
            raise StorageError(f"{self._path}: its end cannot be repaired: {error.strerror}") from error

    def _sync(self) -> None:
        if self._durable:
            os.fsync(self._file.fileno())


@dataclass(frozen=True, slots=True)
class Verified:
    """What a log turned out to be."""

    entries: int
    about: Event  # of entry 0
    key: bytes  # what all of it is signed with
    hash: bytes  # of the last entry
    heads: int  # how many given heads it was checked against
    begun: str  # time of entry 0, UTC, by the writer's clock
    ended: str  # of the last entry


def verify(
    path: Path,
    key: bytes | None = None,
    heads: Iterable[SignedHead] = (),
    see: Callable[[Entry], None] = lambda _: None,
) -> Verified:
    """Read a whole log: every hash, every signature, and each head that somebody kept.

    Args:
        path: the log.
        key: the Ed25519 public key that it must be signed with; None takes the one in entry 0, which shows only that
            the log agrees with itself.
        heads: what its owner gave out over time.
        see: told each entry, once it was found right.

    Raises:
        SuspectLogError: it is not whole; the message names the first entry that is wrong.
        StorageError: it cannot be read.
    """
    given = _Given(path, heads)
    about: Event = {}
    begun = ended = ""
    number, last = -1, _NOTHING
    for entry in read_entries(path):
        where = f"{path}: entry {number + 1}"
        _check_place(entry, number + 1, last, where)
        if entry.number == 0:
            about, begun, key = entry.event, entry.time, _announced(entry, where, key)
        _check_signature(entry, key or b"", where)
        given.check(entry, key or b"")
        see(entry)
        number, last, ended = entry.number, entry.hash, entry.time
    if number < 0:
        raise SuspectLogError(f"{path}: is empty; a log has at least the entry that says whose it is")
    given.check_end(number)
    return Verified(number + 1, about, key or b"", last, given.count, begun, ended)


def check_heads(path: Path, key: bytes, heads: Iterable[SignedHead]) -> int:
    """Does a log, which was verified, hold all these heads? Gives how many there are.

    Raises:
        SuspectLogError: it does not; the message names the entry.
        StorageError: it cannot be read.
    """
    given, number = _Given(path, heads), -1
    for entry in read_entries(path):
        given.check(entry, key)
        number = entry.number
    given.check_end(number)
    return given.count


class _Given:
    """The heads that a log's owner gave out, while the log is read."""

    def __init__(self, path: Path, heads: Iterable[SignedHead]) -> None:
        self._path = path
        self._wanted: dict[int, SignedHead] = {}
        for head in heads:
            if head.hash != self._wanted.setdefault(head.number, head).hash:
                raise SuspectLogError(f"{path}: two heads were given out for entry {head.number}: the log was forked")
        self.count = len(self._wanted)

    def check(self, entry: Entry, key: bytes) -> None:
        given = self._wanted.pop(entry.number, None)
        if given is not None and (given.hash, given.key) != (entry.hash, key):
            raise SuspectLogError(
                f"{self._path}: entry {entry.number} is not the one whose head was given out:"
                " the log was written anew, or forked"
            )

    def check_end(self, number: int) -> None:
        if self._wanted:
            raise SuspectLogError(
                f"{self._path}: ends with entry {number}, but the head of entry {max(self._wanted)} was given out:"
                " its end was cut off; or it is a copy from before then"
            )


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a log, one after the other, each whole by itself; the chain between them is ``verify``'s.

    Raises:
        SuspectLogError: a line that is no entry, or a last line without its end.
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")):
                yield _read_line(line, f"{path}: entry {number}")
    except FileNotFoundError as error:
        raise StorageError(f"{path}: there is no such log") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error


def _opened(path: Path) -> BinaryIO:
    """The file, without a buffer of ours."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        return os.fdopen(descriptor, "r+b", buffering=0)
    except OSError as error:
        raise StorageError(f"{path}: the audit log cannot be opened: {error.strerror}") from error


def _signed(key: Ed25519PrivateKey, number: int, time: str, prev: bytes, event: Event) -> Entry:
    hash_ = _hash(number, time, prev, event)
    return Entry(number, time, prev, event, hash_, key.sign(_ENTRY + hash_))


def _hash(number: int, time: str, prev: bytes, event: Event) -> bytes:
    body = canonical_json({"n": number, "time": time, "prev": prev.hex(), "event": event})
    return hashlib.sha256(_ENTRY + body).digest()


def _head_body(number: int, hash_: bytes) -> bytes:
    return _HEAD + number.to_bytes(8, "big") + hash_


def _line(entry: Entry) -> bytes:
    return (
        canonical_json(
            {
                "n": entry.number,
                "time": entry.time,
                "prev": entry.prev.hex(),
                "event": entry.event,
                "hash": entry.hash.hex(),
                "signature": entry.signature.hex(),
            }
        )
        + b"\n"
    )


def _read_line(line: bytes, where: str) -> Entry:
    """One entry, whose bytes are the only ones that say it and whose hash is right."""
    if not line.endswith(b"\n"):
        raise SuspectLogError(
            f"{where}: its line has no end: torn while it was written (the next start says so), or cut"
        )
    try:
        document = json.loads(line)
        if document.keys() != _FIELDS or not isinstance(document["event"], dict):
            raise SuspectLogError(f"{where}: other fields than an entry has")
        entry = Entry(
            number=document["n"],
            time=document["time"],
            prev=bytes.fromhex(document["prev"]),
            event=document["event"],
            hash=bytes.fromhex(document["hash"]),
            signature=bytes.fromhex(document["signature"]),
        )
        is_canonical = type(entry.number) is int and isinstance(entry.time, str) and _line(entry) == line
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SuspectLogError(f"{where}: is no entry of an audit log") from error
    if not is_canonical or entry.hash != _hash(entry.number, entry.time, entry.prev, entry.event):
        raise SuspectLogError(f"{where}: was changed; its hash is that of another text")
    return entry


def _check_place(entry: Entry, number: int, before: bytes, where: str) -> None:
    if entry.number > number:
        raise SuspectLogError(f"{where} was taken out, or moved: entry {entry.number} stands in its place")
    if entry.number < number:
        raise SuspectLogError(f"{where} is not there: entry {entry.number} stands in its place, put in or moved")
    if entry.prev != before:
        raise SuspectLogError(
            f"{where} does not follow from the one before: one of the two was put in, or is of another log"
        )


def _check_signature(entry: Entry, key: bytes, where: str) -> None:
    if not _is_signed(key, entry.signature, _ENTRY + entry.hash):
        raise SuspectLogError(f"{where}: is not signed by the key {key.hex()[:12]}… of this log")


def _announced(entry: Entry, where: str, expected: bytes | None) -> bytes:
    """The key that entry 0 names, if it is the one expected."""
    try:
        named = bytes.fromhex(str(entry.event.get("key")))
    except ValueError as error:
        raise SuspectLogError(f"{where} names no key") from error
    if expected is not None and named != expected:
        raise SuspectLogError(f"{where} names the key {named.hex()[:12]}…, expected {expected.hex()[:12]}…")
    if entry.event.get("format") != _FORMAT:
        raise SuspectLogError(f"{where} begins a log of another version; this software reads {_FORMAT}")
    return named


def _is_signed(key: bytes, signature: bytes, body: bytes) -> bool:
    try:
        _public_key(key).verify(signature, body)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=16)
def _public_key(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key)


def _time(now: float) -> str:
    return dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec="milliseconds")
