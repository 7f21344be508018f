"""Opens the site's log for a command: beside a running envoy, or without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.certificates import read_identity_key
from ..utils.errors import StorageError
from ..utils.tensors import digest_of
from .audit import SiteAudit
from .config import CONFIG_FILE
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


def log_policy(log: SiteAudit, folder: Path) -> None:
    """What may leave this site stands in envoy.toml: log its digest where it is another than at the last start.

    Raises:
        StorageError: it cannot be read, or logged.
    """
    path = folder / CONFIG_FILE
    try:
        digest = digest_of(path.read_bytes()) if path.exists() else ""
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    if digest != log.policy_digest:
        log.policy(digest, log.policy_digest)
