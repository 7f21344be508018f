"""What the director did, in a log that it cannot change without being seen: ``audit.jsonl``, by ``audit.key.pem``.

The key is made at the first start. Entries name runs, rounds, envoys and digests; never a value of one site. The head
of the log goes to every site with the survivors of each secure sum, and each consents to it too (``envoy/audit.py``),
so that sites which are told different things can prove it. The chain itself is ``utils/audit_chain.py``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..utils.audit_chain import AuditChain, Json, SignedHead, Verified, verify
from ..utils.certificates import key_pem, public_bytes, read_identity_key
from ..utils.errors import MalformedMessageError, StorageError
from ..utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from ..utils.private_files import read_private_file, write_private_file
from ..utils.tensors import Digest
from .records import SumRecord

LOG_FILE = "audit.jsonl"
KEY_FILE = "audit.key.pem"


class DirectorAudit:
    """The director's log; safe to share between threads. Each entry is on disk before its method returns.

    Every method raises ``StorageError`` when it cannot be: then the step that it stands for must not be taken. A step
    that is then tried again stands there twice.

    Args:
        chain: where it is kept; None for a director in a test that logs nothing.
        clock: seconds since 1970.
    """

    def __init__(self, chain: AuditChain | None = None, clock: Callable[[], float] = time.time) -> None:
        self._chain, self._clock = chain, clock

    @classmethod
    def open(
        cls, folder: Path, federation: str, *, durable: bool = True, clock: Callable[[], float] = time.time
    ) -> Self:
        """Open the log of a director's folder, or begin it.

        Raises:
            IdentityError: its key cannot be read.
            StorageError: the log cannot be written, or another process has it open.
            SuspectLogError: it was damaged.
        """
        about: dict[str, Json] = {"party": "director", "federation": federation}
        return cls(AuditChain(folder / LOG_FILE, _key(folder), about, clock(), durable=durable), clock)

    @property
    def head(self) -> SignedHead:
        """The last entry, to be given to sites."""
        if self._chain is None:
            raise ValueError("this director logs nothing")
        return self._chain.head

    def run_submitted(self, run: RunId, plan: Digest, settings: Digest) -> None:
        """An experiment was queued; ``settings`` is the digest of its text."""
        self._append("run submitted", {"run": run, "plan": plan, "settings": settings})

    def round_opened(self, ref: TaskRef, kind: TaskKind, model: Digest, envoys: Iterable[EnvoyName]) -> None:
        """A task goes out to these envoys."""
        self._of(ref, "round opened", {"kind": kind.value, "model": model, "envoys": _names(envoys)})

    def cohort(self, ref: TaskRef, spec: bytes, envoys: Iterable[EnvoyName], threshold: int) -> None:
        """A secure sum goes on among those whose keys came; ``spec`` is the digest of what is summed."""
        self._of(ref, "cohort closed", {"spec": spec.hex(), "envoys": _names(envoys), "threshold": threshold})

    def survivors(self, ref: TaskRef, transcript: bytes, envoys: Iterable[EnvoyName]) -> SignedHead:
        """The sum will be of these; gives the head that goes to them, which holds this entry."""
        self._of(ref, "survivors", {"transcript": transcript.hex(), "envoys": _names(envoys)})
        return self.head

    def closed(self, ref: TaskRef, model: Digest, secure_sum: SumRecord | None) -> None:
        """A round gave this model; under secure aggregation, from a sum that was opened: whose, and how many examples.

        What is said of the sum is of all sites together.
        """
        said: dict[str, Json] = {"model": model}
        if secure_sum is not None:
            said |= {
                "transcript": secure_sum.transcript,
                "survivors": _names(secure_sum.survivors),
                "total_weight": secure_sum.total_weight,
            }
        self._of(ref, "round closed", said)

    def failed(self, ref: TaskRef, reason: str) -> None:
        """An attempt ended without a result."""
        self._of(ref, "round failed", {"reason": reason[:1000]})

    def expelled(self, run: RunId, envoy: EnvoyName, reason: str) -> None:
        """An envoy takes no further part in a run."""
        self._append("expelled", {"run": run, "envoy": envoy, "reason": reason[:1000]})

    def close(self) -> None:
        """Let another process open it."""
        if self._chain is not None:
            self._chain.close()

    def _of(self, ref: TaskRef, what: str, more: dict[str, Json]) -> None:
        place: dict[str, Json] = {"run": ref.run, "round": ref.round, "attempt": ref.attempt, "plan": ref.plan}
        self._append(what, place | more)

    def _append(self, what: str, more: dict[str, Json]) -> None:
        if self._chain is not None:
            self._chain.append({"what": what, **more}, self._clock())


def verify_log(folder: Path, heads: Iterable[SignedHead] = ()) -> Verified:
    """Is the log of a director's folder whole, and does it hold all heads that sites kept?

    Raises:
        IdentityError: its key cannot be read.
        SuspectLogError: it is not whole, or was forked; the message names the first entry that is wrong.
        StorageError: there is none.
    """
    key = read_identity_key(read_private_file(folder / KEY_FILE), KEY_FILE)
    return verify(folder / LOG_FILE, public_bytes(key.public_key()), heads)


def read_heads(file: Path) -> list[SignedHead]:
    """What ``envoy audit heads`` printed at a site: one head a line, in hexadecimal.

    Raises:
        MalformedMessageError: a line that is no head, or not signed by the key in it.
        StorageError: the file cannot be read.
    """
    try:
        lines = file.read_text("ascii").split()
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MalformedMessageError(f"{file}: holds no heads; `envoy audit heads` prints them") from error
    heads = []
    for number, line in enumerate(lines, 1):
        try:
            heads.append(SignedHead.from_bytes(bytes.fromhex(line)))
        except (ValueError, MalformedMessageError) as error:
            raise MalformedMessageError(f"{file}: head {number}: {error}") from error
    return heads


def _key(folder: Path) -> Ed25519PrivateKey:
    path = folder / KEY_FILE
    if not path.exists():
        write_private_file(path, key_pem(Ed25519PrivateKey.generate()))
    return read_identity_key(read_private_file(path), KEY_FILE)


def _names(envoys: Iterable[EnvoyName]) -> Json:
    return sorted(envoys)
