"""What a learner submitted, remembered in its folder: one answer a round, whoever asks again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...utils.errors import DuplicateUpdateError, StorageError
from ...utils.messages import RunId, TaskRef
from ...utils.private_files import read_private_file, write_private_file
from ...utils.tensors import Digest

SUBMISSIONS_FILE = "submissions.json"
_KEPT = 500  # rounds, the newest
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SubmissionReceipt:
    """The director has what was submitted. Times are seconds since 1970.

    ``digest`` and ``length`` are of the bytes that the director has: in a secure sum of masked words, from which nobody
    can tell the update.
    """

    run: RunId
    round: int
    attempt: int
    plan: Digest
    submitted: Digest  # of the gradients as they were given here; it never leaves
    digest: Digest | None = None  # None: handed in, and no receipt yet
    length: int = 0  # bytes
    received_at: float | None = None
    epsilon: float | None = None  # of noise that was added by hand, and that the site's ledger counts for this round
    delta: float | None = None

    @property
    def ref(self) -> TaskRef:
        """The round that it was handed in for."""
        return TaskRef(self.run, self.round, self.attempt, self.plan)

    def of(self, ref: TaskRef, digest: Digest, length: int, at: float) -> SubmissionReceipt:
        """With the director's receipt, which may be of a later attempt."""
        return replace(self, attempt=ref.attempt, digest=digest, length=length, received_at=at)


class Submissions:
    """The file, in an envoy's folder. One process writes it: the one that holds the folder's socket.

    Raises:
        StorageError: it is damaged, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SUBMISSIONS_FILE
        self._held: list[SubmissionReceipt] = _read(self._path)

    def of(self, run: RunId, number: int, plan: Digest) -> SubmissionReceipt | None:
        """What was submitted for a round."""
        return next((one for one in self._held if (one.run, one.round, one.plan) == (run, number, plan)), None)

    def with_content(self, submitted: Digest, number: int | None) -> SubmissionReceipt | None:
        """The newest round for which just this was submitted."""
        found = (one for one in reversed(self._held) if one.submitted == submitted and number in {None, one.round})
        return next(found, None)

    def latest(self, number: int) -> SubmissionReceipt | None:
        """The newest submission for a round of that number."""
        return next((one for one in reversed(self._held) if one.round == number), None)

    def check(self, ref: TaskRef, submitted: Digest) -> SubmissionReceipt | None:
        """What was submitted for this round before, if it was the same.

        Raises:
            DuplicateUpdateError: it was something else.
        """
        before = self.of(ref.run, ref.round, ref.plan)
        if before is not None and before.submitted != submitted:
            raise DuplicateUpdateError(
                f"round {ref.round} of {ref.run} has this site's submission already ({before.submitted[:12]}…), and"
                f" this is another one ({submitted[:12]}…): a round has one answer of a site"
            )
        return before

    def keep(self, receipt: SubmissionReceipt) -> SubmissionReceipt:
        """Remember it, in the place of what was remembered of its round."""
        self._write([*self._others(receipt), receipt][-_KEPT:])
        return receipt

    def forget(self, receipt: SubmissionReceipt) -> None:
        """It was not handed in after all."""
        self._write(self._others(receipt))

    def _others(self, receipt: SubmissionReceipt) -> list[SubmissionReceipt]:
        key = (receipt.run, receipt.round, receipt.plan)
        return [one for one in self._held if (one.run, one.round, one.plan) != key]

    def _write(self, held: list[SubmissionReceipt]) -> None:
        document = {"version": _VERSION, "submissions": [asdict(one) for one in held]}
        write_private_file(self._path, json.dumps(document, indent=1).encode() + b"\n")
        self._held = held


def _read(path: Path) -> list[SubmissionReceipt]:
    if not path.exists():
        return []
    try:
        document: Mapping[str, Any] = json.loads(read_private_file(path))
        version, held = document["version"], [SubmissionReceipt(**one) for one in document["submissions"]]
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path} is damaged ({error}): what was submitted is not known; move it away") from error
    if version != _VERSION:
        raise StorageError(f"{path} was written by another fedveil (version {version}); use that one")
    return held
