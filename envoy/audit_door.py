"""Opens the site's log for a command: beside a running envoy, or without one."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.certificates import read_identity_key
from .audit import SiteAudit
from .enrolment import load_credentials


@contextmanager
def logging_to(folder: Path, clock: Callable[[], float] = time.time) -> Iterator[SiteAudit]:
    """The log of an envoy's folder, for as long as a command needs it.

    An envoy that runs in that folder goes on logging beside it: the two make one chain.

    Raises:
        IdentityError: this folder's credentials cannot be read.
        StorageError: the log cannot be written; what was to be logged must not be done.
        SuspectLogError: it was damaged.
    """
    credentials = load_credentials(folder, clock())
    key = read_identity_key(credentials.identity_key, "the identity key")
    log = SiteAudit.open(folder, credentials.peer, key, clock=clock)
    try:
        yield log
    finally:
        log.close()


def this_user() -> str:
    """Who types a command, by the name that this machine knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry in passwd
        return "unknown"
