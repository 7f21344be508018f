"""What the director did, in a log that it cannot change without being seen: ``audit.jsonl``, by ``audit.key.pem``.

The key is made at the first start. Entries name runs, rounds, envoys and digests; never a value of one site. The head
of the log goes to every site with the answers to its heartbeats and with the survivors of each secure sum, and each
keeps it (``envoy/audit.py``), so that sites which are told different things can prove it. Heads of the sites' logs are
kept here (``site_heads``). The chain itself is ``utils/audit_chain.py``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..utils.audit_chain import AuditChain, Entry, Json, SignedHead, Verified, verify
from ..utils.audit_witness import SITE, SITE_ANEW, SITE_HEAD, SITE_SUSPECT, SITE_WITNESSED
from ..utils.certificates import key_pem, public_bytes, read_identity_key
from ..utils.errors import MalformedMessageError, StorageError
from ..utils.identity import PeerId
from ..utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from ..utils.private_files import read_private_file, write_private_file
from ..utils.tensors import Digest
from .records import SumRecord

LOG_FILE = "audit.jsonl"
KEY_FILE = "audit.key.pem"


class DirectorAudit:
    """The director's log; safe to share between threads. Each entry is on disk before its method returns.

    Every method raises ``StorageError`` when it cannot be: then the step that it stands for must not be taken. A step
    that is then tried again stands there twice. A command may open the log of a director that runs: what it logs is in
    ``learned`` there, once the director next logged something or called ``refresh``.

    Args:
        chain: where it is kept; None for a director in a test that logs nothing.
        clock: seconds since 1970.
        learned: entries that other processes added, in their order.
    """

    def __init__(
        self,
        chain: AuditChain | None = None,
        clock: Callable[[], float] = time.time,
        learned: SimpleQueue[Entry] | None = None,
    ) -> None:
        self._chain, self._clock = chain, clock
        self.learned: SimpleQueue[Entry] = learned or SimpleQueue()
        self.rounds_ended = 0  # closed or failed, of those that this process logged

    @classmethod
    def open(
        cls,
        folder: Path,
        federation: str,
        *,
        durable: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the log of a director's folder, or begin it.

        Raises:
            IdentityError: its key cannot be read.
            StorageError: the log cannot be written.
            SuspectLogError: it was damaged.
        """
        about: dict[str, Json] = {"party": "director", "federation": federation}
        learned: SimpleQueue[Entry] = SimpleQueue()
        chain = AuditChain(folder / LOG_FILE, audit_key(folder), about, clock(), durable=durable, others=learned.put)
        return cls(chain, clock, learned)

    @property
    def head(self) -> SignedHead:
        """The last entry, to be given to sites."""
        if self._chain is None:
            raise ValueError("this director logs nothing")
        return self._chain.head

    @property
    def public_key(self) -> bytes:
        """Ed25519, 32 bytes, by which entries are known to be this log's; empty where nothing is logged."""
        return self._chain.head.key if self._chain is not None else b""

    @property
    def head_bytes(self) -> bytes:
        """The same as it travels; empty where nothing is logged."""
        return self._chain.head.to_bytes() if self._chain is not None else b""

    def refresh(self) -> None:
        """Learn what commands logged meanwhile.

        Raises:
            StorageError: the log cannot be read.
            SuspectLogError: what stands there was not written by this director.
        """
        if self._chain is not None:
            self._chain.catch_up(self._clock())

    # ------------------------------------------------------------ members

    def enrolled(self, name: str, role: str, organization: str, certificate: str, identity_key: bytes) -> None:
        """A member joined: SHA-256 of its certificate's DER in hexadecimal, and its Ed25519 key."""
        said: dict[str, Json] = {"name": name, "role": role, "organization": organization}
        self._append("enrolled", said | {"certificate": certificate, "identity_key": identity_key.hex()})

    def renewed(self, name: str, role: str, certificate: str, expires_at: float) -> None:
        """A member gets another certificate, good until then (seconds since 1970)."""
        said: dict[str, Json] = {"name": name, "role": role, "certificate": certificate}
        self._append("renewed", said | {"expires_at": expires_at})

    def revoked(self, name: str, reason: str, by: str) -> None:
        """A member, or an invitation, is good for nothing from now on; ``by`` is who said so."""
        self._append("revoked", {"name": name, "reason": reason[:1000], "by": by})

    # ------------------------------------------------------------ operators

    def proposed(self, run: RunId, proposal: Digest, plan: Digest, by: PeerId) -> None:
        """A run was queued under a proposal that ``by`` signed."""
        self._append("proposed", {"run": run, "proposal": proposal, "plan": plan, "proposed_by": str(by)})

    def patched(self, run: RunId, number: int, step: str, patch: Digest, by: PeerId) -> None:
        """A signed change to a run is about to take effect; ``patch`` is the digest of its text."""
        said: dict[str, Json] = {"run": run, "number": number, "step": step, "patch": patch}
        self._append("patched", said | {"signed_by": str(by)})

    def withheld(self, run: RunId, why: str) -> None:
        """A run ends before its time: a permit, an agreement, its proposal's own end or who started it says so."""
        self._append("run withheld", {"run": run, "reason": why[:1000]})

    def rolled_back(self, run: RunId, to_round: int, model: Digest) -> None:
        """The next round begins with the model that an earlier one gave."""
        self._append("rolled back", {"run": run, "to_round": to_round, "model": model})

    def operator(self, by: str, action: str, more: Mapping[str, Json] | None = None) -> None:
        """Anything else that a person asked the director for."""
        self._append("operator", {"by": by, "action": action, **(more or {})})

    def restored(self, backup: str, made_at: float, by: str) -> None:
        """This log, and all else of the director, is that of a backup, from here on; what was later is lost."""
        self._append("restored from a backup", {"backup": backup, "made_at": made_at, "by": by})

    # ------------------------------------------------------------ the sites' logs

    def witnessed(self, envoy: EnvoyName, head: SignedHead) -> None:
        """A head of a site's log came, and could be of the log seen before."""
        self._append(SITE_WITNESSED, {SITE: envoy, SITE_HEAD: head.to_bytes().hex()})

    def suspects(self, envoy: EnvoyName, reason: str, head: bytes) -> None:
        """A site's log is not the one seen before; it is not asked any more."""
        self._append(SITE_SUSPECT, {SITE: envoy, "reason": reason[:1000], SITE_HEAD: head[:1000].hex()})

    def takes_anew(self, envoy: EnvoyName, by: str) -> None:
        """A site's log is compared with nothing that came before: its site said why, and ``by`` believes it."""
        self._append(SITE_ANEW, {SITE: envoy, "by": by})

    # ------------------------------------------------------------ runs and rounds

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
        self.rounds_ended += 1

    def posted(self, ref: TaskRef, envoy: EnvoyName, organization: str, update: Digest) -> tuple[Entry, SignedHead]:
        """An update came in one body, without the envoy's own connection: who sent it, and its SHA-256.

        Returns:
            the entry, and a head of the log with that entry in it.
        """
        if self._chain is None:
            raise ValueError("this director logs nothing")
        place: dict[str, Json] = {"run": ref.run, "round": ref.round, "attempt": ref.attempt, "plan": ref.plan}
        said: dict[str, Json] = {"envoy": envoy, "organization": organization, "update": update}
        entry = self._chain.append({"what": "update posted", **place, **said}, self._clock())
        return entry, self._chain.head

    def sign(self, content: bytes) -> bytes:
        """Sign by the log's key: 64 bytes. The content begins with what tells it from all else that is signed."""
        if self._chain is None:
            raise ValueError("this director logs nothing")
        return self._chain.sign(content)

    def failed(self, ref: TaskRef, reason: str) -> None:
        """An attempt ended without a result."""
        self._of(ref, "round failed", {"reason": reason[:1000]})
        self.rounds_ended += 1

    def expelled(self, run: RunId, envoy: EnvoyName, reason: str) -> None:
        """An envoy takes no further part in a run."""
        self._append("expelled", {"run": run, "envoy": envoy, "reason": reason[:1000]})

    def close(self) -> None:
        """Write no more."""
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


def audit_key(folder: Path) -> Ed25519PrivateKey:
    """The key that signs this director's log, and evidence of it; made where there is none.

    Raises:
        IdentityError: it cannot be read, or others may read it too.
        StorageError: it cannot be written.
    """
    path = folder / KEY_FILE
    if not path.exists():
        write_private_file(path, key_pem(Ed25519PrivateKey.generate()))
    return read_identity_key(read_private_file(path), KEY_FILE)


def _names(envoys: Iterable[EnvoyName]) -> Json:
    return sorted(envoys)
