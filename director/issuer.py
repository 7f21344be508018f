"""The issuer that is online: read anew when its files change, and made anew by whoever holds the root's key.

Certificates that an older issuer signed stay good until they end: what is believed is the root, and each chain brings
its own issuer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from ..utils.certificates import DAY_SECONDS, Authority, certificate_pem, key_pem, make_issuer
from ..utils.errors import IdentityError
from ..utils.identity import check_issued, check_validity, expires_at, when
from ..utils.private_files import write_private_file
from .founding import ISSUER_FILE, ISSUER_KEY_FILE, load_issuer, load_root

WARNED_DAYS = 90
"""With less of the issuer's life left there are warnings: identities and renewal certificates end with it."""


class IssuerFile:
    """The issuer in a director's folder, as it is now; safe to share between threads.

    Args:
        folder: the director's.
        clock: seconds since 1970.

    Raises:
        IdentityError: missing, damaged, readable by others, or expired.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._lock = threading.Lock()
        self._mark = self._look()
        self._issuer, self.root = load_issuer(folder, clock())

    def __call__(self) -> Authority:
        """The present issuer. Whether it is still good shows when it issues."""
        with self._lock:
            mark = self._look()
            if mark != self._mark:
                try:
                    self._issuer, _ = load_issuer(self._folder, self._clock())
                    self._mark = mark
                except IdentityError:
                    pass  # key and certificate are two files: between them the one before is in force
            return self._issuer

    def _look(self) -> tuple[tuple[int, int], ...]:
        """What changes whenever a file is replaced."""
        marks = []
        for name in (ISSUER_FILE, ISSUER_KEY_FILE):
            try:
                found = (self._folder / name).stat()
            except OSError:
                marks.append((0, 0))
            else:
                marks.append((found.st_ino, found.st_mtime_ns))
        return tuple(marks)


def issuer_warning(issuer: x509.Certificate, now: float) -> str | None:
    """What to say of an issuer that nears its end, or is past it; None where there is nothing to say."""
    left = expires_at(issuer) - now
    if left > WARNED_DAYS * DAY_SECONDS:
        return None
    remedy = "`director ca renew`, with the root's key and its passphrase, makes another one"
    if left < 0:
        return f"the issuer expired on {when(expires_at(issuer))}: nobody joins and nothing is renewed; {remedy}"
    return (
        f"the issuer ends on {when(expires_at(issuer))}, in {left / DAY_SECONDS:.0f} days, and all that it issues ends"
        f" with it; {remedy}"
    )


def renew_issuer(folder: Path, federation: str, passphrase: bytes, now: float, root_key: Path | None = None) -> float:
    """Make another issuer, good for a year, and put it in the place of the present one.

    Args:
        folder: the director's; a director that runs there uses it from its next certificate on.
        federation: its name.
        passphrase: of the root's key.
        now: seconds since 1970.
        root_key: where the root's key is, if it was moved out of the folder as it should be.

    Returns:
        when it ends, in seconds since 1970.

    Raises:
        PassphraseError: the passphrase does not open the root's key.
        IdentityError: the root's key is missing, or another's; or the root expired.
        StorageError: the files cannot be written; do it again.
    """
    root = load_root(folder, passphrase, root_key)
    check_validity(root.certificate, "the root", now)
    issuer = make_issuer(root, federation, now)
    check_issued(issuer.certificate, root.certificate, "the new issuer")
    write_private_file(folder / ISSUER_KEY_FILE, key_pem(issuer.key))
    write_private_file(folder / ISSUER_FILE, certificate_pem(issuer.certificate))
    return expires_at(issuer.certificate)
