"""What was offered to this site and what its data manager said, in rows that are only ever added: ``approvals.sqlite``.

Decisions are signed by the site's identity key, each for its place among the rows, so that one that was written by
somebody without the key, or taken from elsewhere, is found when the rows are read. The running envoy and the commands
share the file; a decision holds for the envoy as soon as its row is there. Rounds are counted before they are begun:
one that is killed is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..utils.errors import MalformedMessageError, NotApprovedError, SuspectLogError
from ..utils.messages import RunId
from ..utils.proposal import Proposal
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest, canonical_json
from .approvals import (
    MAX_UNDECIDED,
    ApprovalBooks,
    Begun,
    Decision,
    Limits,
    Standing,
    State,
    check_rounds,
)
from .row_chain import RowChain

APPROVALS_FILE = "approvals.sqlite"
_CONTEXT = b"fedveil/approval/1\0"


def _nothing() -> None:
    """Of a step that no log is kept of."""


class ApprovalStore:
    """One file; safe to share between threads, and between processes that open it each.

    Args:
        folder: the envoy's.
        public_key: the site's identity key, Ed25519, 32 bytes.
        sign: with it; None: this one reads, and decides nothing.

    Raises:
        StorageError: it is of a newer fedveil, damaged, or cannot be written.
    """

    def __init__(self, folder: Path, public_key: bytes, sign: Callable[[bytes], bytes] | None = None) -> None:
        self._key, self._sign = public_key, sign
        self._chain = RowChain(folder / APPROVALS_FILE, "the approvals", ApprovalBooks(), self._with_row)

    def books(self) -> ApprovalBooks:
        """As they stand now.

        Raises:
            StorageError: a row was altered or taken out.
        """
        return self._chain.read()

    def offer(
        self,
        document: SignedDocument,
        proposal: Proposal,
        run: RunId,
        now: float,
        log: Callable[[], None] = _nothing,
    ) -> bool:
        """Keep a proposal whose signature was checked; False where it is there already.

        Args:
            document: as it came.
            proposal: what stands in it.
            run: that it was offered for.
            now: seconds since 1970.
            log: writes it into the audit log; what it raises leaves everything as it was.

        Raises:
            NotApprovedError: too many wait for a decision.
            StorageError: it cannot be kept.
        """
        with self._chain.transaction():
            books = self._chain.state
            if proposal.digest in books.standings:
                return False
            waiting = sum(one.state(now) is State.OFFERED for one in books.standings.values())
            if waiting >= MAX_UNDECIDED:
                raise NotApprovedError(
                    f"{waiting} proposals wait for a decision at this site; {proposal.digest[:12]}… is not kept"
                )
            row = {
                "row": "offer",
                "run": run,
                "at": now,
                "content": document.content.decode(),
                "signature": document.signature.hex(),
                "chain": document.chain.decode(),
            }
            self._chain.append(row)
            log()
        return True

    def decide(self, decision: Decision, log: Callable[[], None] = _nothing) -> Standing:
        """Put a decision in force.

        Args:
            decision: on a proposal that was offered.
            log: writes it into the audit log; what it raises leaves everything as it was.

        Raises:
            NotApprovedError: no such proposal.
            StorageError: it cannot be kept; nothing was decided.
        """
        if self._sign is None:
            raise NotApprovedError("this copy of the approvals is for reading")
        said: dict[str, Any] = {
            "row": "decision",
            "proposal": decision.proposal,
            "word": decision.word.value,
            "limits": None if decision.limits is None else decision.limits.to_document(),
            "by": decision.by,
            "at": decision.at,
            "reason": decision.reason,
        }
        with self._chain.transaction():
            if decision.proposal not in self._chain.state.standings:
                raise NotApprovedError(f"proposal {decision.proposal[:12]}… was never offered to this site")
            signature = self._sign(_signed(self._chain.head, said))
            self._chain.append(said | {"signature": signature.hex()})
            log()
            return self._chain.state.standings[decision.proposal]

    def begin(self, proposal: Digest, limits: Limits, begun: Begun) -> None:
        """Count a round before anything of it is done.

        Raises:
            NotApprovedError: all rounds that were approved are done, or the approval is another by now.
            StorageError: it cannot be counted; nothing may be done.
        """
        with self._chain.transaction():
            standing = self._chain.state.standings[proposal]
            if standing.limits != limits:
                raise NotApprovedError(f"the approval of proposal {proposal[:12]}… was changed meanwhile")
            if check_rounds(standing, limits, begun):
                return
            self._chain.append(
                {
                    "row": "begun",
                    "proposal": proposal,
                    "run": begun.run,
                    "round": begun.round,
                    "kind": begun.kind.value,
                    "work": begun.work,
                    "attempt": begun.attempt,
                }
            )

    def see_patches(self, run: RunId, digests: tuple[Digest, ...]) -> None:
        """Remember which patches a run has: none is taken back later, or replaced.

        Raises:
            NotApprovedError: they are not those that came before, and further ones.
            StorageError: it cannot be kept.
        """
        if self._chain.state.patches.get(run, ()) == digests:
            return
        with self._chain.transaction():
            before = self._chain.state.patches.get(run, ())
            if digests[: len(before)] != before:
                raise NotApprovedError(
                    f"{len(digests)} patches of {run} came, and they do not begin with the {len(before)} that came"
                    " before: one was taken back or replaced"
                )
            if digests != before:
                self._chain.append({"row": "patches", "run": run, "digests": list(digests)})

    def close(self) -> None:
        """Close the file."""
        self._chain.close()

    def _with_row(self, books: ApprovalBooks, row: Mapping[str, Any], before: str) -> ApprovalBooks:
        if row["row"] == "decision":
            said = {key: value for key, value in row.items() if key != "signature"}
            try:
                key = Ed25519PublicKey.from_public_bytes(self._key)
                key.verify(bytes.fromhex(row["signature"]), _signed(before, said))
            except InvalidSignature as error:
                raise SuspectLogError("a decision that this site's identity key did not sign") from error
        if row["row"] == "offer" and not isinstance(row["content"], str):
            raise MalformedMessageError("an offer without a text")
        return books.with_row(row)


def _signed(before: str, row: Mapping[str, Any]) -> bytes:
    """What is signed of a decision: all of it, and the row that it follows."""
    return _CONTEXT + canonical_json([before, row])
