"""What stays at the site between rounds: site-local layers and SCAFFOLD's own control variate.

    RUN/pending-ROUND-ATTEMPT.safetensors   written by training, not in force
    RUN/state-ROUND.safetensors             adopted once the director's receipt for that round is here

A round reads the newest state of an earlier round, so that a second attempt of a round starts from the same
state as the first. This module moves files; ``training.py`` reads and writes them.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..utils.errors import StorageError
from ..utils.messages import NAME_PATTERN, RunId, TaskRef

_STATE = re.compile(r"state-(\d+)\.safetensors")
_PENDING = re.compile(r"pending-(\d+)-(\d+)\.safetensors")


def pending_path(state_folder: Path, ref: TaskRef) -> Path:
    """Where training leaves the state of one attempt."""
    return _run_folder(state_folder, ref.run) / f"pending-{ref.round}-{ref.attempt}.safetensors"


def state_before(state_folder: Path, ref: TaskRef) -> Path | None:
    """The state that a round starts from: the newest that was adopted in an earlier round."""
    earlier = [(number, path) for number, path in _states(state_folder, ref.run) if number < ref.round]
    return max(earlier)[1] if earlier else None


def adopt_state(state_folder: Path, ref: TaskRef) -> None:
    """The director has this round's update: its state is in force. May be called twice, or where there is none.

    Raises:
        StorageError: the disk does not let it be moved.
    """
    pending = pending_path(state_folder, ref)
    try:
        if pending.exists():
            pending.replace(pending.with_name(f"state-{ref.round}.safetensors"))
            _forget_older(state_folder, ref)
    except OSError as error:
        raise StorageError(f"{ref}: its local state in {state_folder} cannot be kept: {error.strerror}") from error


def _forget_older(state_folder: Path, ref: TaskRef) -> None:
    """Keep this round's state and the one before it, which another attempt of this round would start from."""
    before = state_before(state_folder, ref)
    for number, path in _states(state_folder, ref.run):
        if number < ref.round and path != before:
            path.unlink(missing_ok=True)
    for path in pending_path(state_folder, ref).parent.glob("pending-*.safetensors"):
        found = _PENDING.fullmatch(path.name)
        if found and int(found[1]) <= ref.round:
            path.unlink(missing_ok=True)


def _states(state_folder: Path, run: RunId) -> list[tuple[int, Path]]:
    folder = _run_folder(state_folder, run)
    found = [(_STATE.fullmatch(path.name), path) for path in folder.glob("state-*.safetensors")]
    return [(int(match[1]), path) for match, path in found if match]


def _run_folder(state_folder: Path, run: RunId) -> Path:
    if not NAME_PATTERN.fullmatch(run):
        raise StorageError(f"run {run!r}: not a name that a folder may have")
    return state_folder / run
