"""Temporary files beside a site's state: they go with the work that they are for, or at the next start of an envoy.

A folder of the fallback tier's boxes, a state that is being written, the canaries of a leak test.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ...utils.errors import StorageError
from .software import PACKAGE, installed

PREFIX = "sandbox-"
"""Of all temporary names; the number of the process that made them follows."""
_swept: set[Path] = set()


def make_scratch(state: Path) -> Path:
    """A folder with an empty ``tmp`` to write to, and ``imports``, by which the package is found.

    Raises:
        StorageError: there is no room for it.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(state)
        scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=state))
        package = scratch / "imports" / PACKAGE
        package.mkdir(mode=0o700, parents=True)
        (scratch / "tmp").mkdir(mode=0o700)
        for path in installed().package:
            (package / path.name).symlink_to(path)
    except OSError as error:
        raise StorageError(f"no room for temporary files in {state}: {error.strerror}") from error
    return scratch


def sweep(state: Path) -> None:
    """Wipe what envoys that were killed have left; once a process, before it makes any itself."""
    if state in _swept:
        return
    _swept.add(state)
    for path in state.glob(f"{PREFIX}*-*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner != str(os.getpid()) and Path("/proc", owner).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
