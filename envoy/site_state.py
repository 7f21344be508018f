"""What stays at the site between rounds: site-local layers, SCAFFOLD's own control variate, what codes have lost.

    RUN/pending-ROUND-ATTEMPT.safetensors   written by training, not in force
    RUN/state-ROUND.safetensors             adopted once the director's receipt for that round is here
    RUN/pending-residual-ROUND-ATTEMPT.f32, RUN/residual-ROUND.f32   the same, for the residual of a codec

A round reads the newest file of an earlier round, so that a second attempt of a round starts from the same state as
the first. This module moves files; ``training.py`` and ``residual.py`` read and write them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import StorageError
from ..utils.messages import NAME_PATTERN, RunId, TaskRef


@dataclass(frozen=True, slots=True)
class Kept:
    """A kind of file that is kept from round to round."""

    pending: str
    adopted: str
    suffix: str

    def pending_path(self, state_folder: Path, ref: TaskRef) -> Path:
        """Where it is left by one attempt."""
        return _run_folder(state_folder, ref.run) / f"{self.pending}-{ref.round}-{ref.attempt}.{self.suffix}"

    def before(self, state_folder: Path, ref: TaskRef) -> Path | None:
        """What a round starts from: the newest that was adopted in an earlier round."""
        earlier = [(number, path) for number, path in self._adopted(state_folder, ref.run) if number < ref.round]
        return max(earlier)[1] if earlier else None

    def adopt(self, state_folder: Path, ref: TaskRef) -> None:
        """Put the attempt's file in force, if it left one."""
        pending = self.pending_path(state_folder, ref)
        if pending.exists():
            pending.replace(pending.with_name(f"{self.adopted}-{ref.round}.{self.suffix}"))
            self._forget_older(state_folder, ref)

    def _forget_older(self, state_folder: Path, ref: TaskRef) -> None:
        """Keep this round's file and the one before it, which another attempt of this round would start from."""
        before = self.before(state_folder, ref)
        for number, path in self._adopted(state_folder, ref.run):
            if number < ref.round and path != before:
                path.unlink(missing_ok=True)
        for path in _run_folder(state_folder, ref.run).glob(f"{self.pending}-*.{self.suffix}"):
            found = re.fullmatch(rf"{self.pending}-(\d+)-\d+\.{self.suffix}", path.name)
            if found and int(found[1]) <= ref.round:
                path.unlink(missing_ok=True)

    def _adopted(self, state_folder: Path, run: RunId) -> list[tuple[int, Path]]:
        pattern = re.compile(rf"{self.adopted}-(\d+)\.{self.suffix}")
        paths = _run_folder(state_folder, run).glob(f"{self.adopted}-*.{self.suffix}")
        found = [(pattern.fullmatch(path.name), path) for path in paths]
        return [(int(match[1]), path) for match, path in found if match]


STATE = Kept("pending", "state", "safetensors")
RESIDUAL = Kept("pending-residual", "residual", "f32")


def pending_path(state_folder: Path, ref: TaskRef) -> Path:
    """Where training leaves the state of one attempt."""
    return STATE.pending_path(state_folder, ref)


def state_before(state_folder: Path, ref: TaskRef) -> Path | None:
    """The state that a round's training starts from."""
    return STATE.before(state_folder, ref)


def adopt_state(state_folder: Path, ref: TaskRef) -> None:
    """The director has this round's update: its state is in force. May be called twice, or where there is none.

    Raises:
        StorageError: the disk does not let it be moved.
    """
    try:
        for kept in (STATE, RESIDUAL):
            kept.adopt(state_folder, ref)
    except OSError as error:
        raise StorageError(f"{ref}: its local state in {state_folder} cannot be kept: {error.strerror}") from error


def forget_pending(state_folder: Path, ref: TaskRef) -> None:
    """The attempt was ended: what it left is deleted, and what was in force before it stays.

    Raises:
        StorageError: a file cannot be deleted.
    """
    try:
        for kept in (STATE, RESIDUAL):
            kept.pending_path(state_folder, ref).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{ref}: its local state cannot be deleted: {error.strerror}") from error


def _run_folder(state_folder: Path, run: RunId) -> Path:
    if not NAME_PATTERN.fullmatch(run):
        raise StorageError(f"run {run!r}: not a name that a folder may have")
    return state_folder / run
