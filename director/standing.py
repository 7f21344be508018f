"""Is a caller's certificate still good? Asked at each call, and of calls that stay open.

Each call asks the database, since ``director revoke`` is another process: what it wrote counts from the next call on.
A call that stays open (a line, a long poll, an upload) is asked about again and again, of what was read half a second
ago at most; where that cannot be read, calls end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..utils.errors import NotAuthorizedError
from ..utils.identity import PeerId, Role, when
from .revocations import Revocations

LOOK_SECONDS = 0.5
"""How old what is known of open calls may be."""


class Standing:
    """Asks the memory of revocations; safe to share between threads.

    Args:
        revocations: the memory.
        clock: seconds that never go back.
    """

    def __init__(self, revocations: Revocations, clock: Callable[[], float] = time.monotonic) -> None:
        self._revocations, self._clock = revocations, clock
        self._lock = threading.Lock()
        self._names: frozenset[str] = frozenset()
        self._looked_at = float("-inf")

    def check(self, peer: PeerId, sha256: str) -> None:
        """Is this caller still good, now?

        Args:
            peer: whom its certificate names.
            sha256: of that certificate, 64 hexadecimal digits.

        Raises:
            NotAuthorizedError: it was revoked; the message says when, not why.
            StorageError: it cannot be known now, so the call is refused.
        """
        if peer.role is Role.JOIN:
            bad_since = self._revocations.join_file_bad_since(peer.name)
        else:
            bad_since = self._revocations.bad_since(peer.name, sha256)
        if bad_since is not None:
            raise NotAuthorizedError(
                f"{peer} was revoked on {when(bad_since)} and may do nothing here; ask the director's operator"
            )

    def check_open(self, peer: PeerId, sha256: str) -> None:
        """May a call that is open already go on?

        Raises:
            NotAuthorizedError: as ``check``, at most half a second late.
            StorageError: as ``check``.
        """
        with self._lock:
            if self._clock() - self._looked_at >= LOOK_SECONDS:
                self._names = self._revocations.names()
                self._looked_at = self._clock()
            names = self._names
        if peer.name in names:
            self.check(peer, sha256)
