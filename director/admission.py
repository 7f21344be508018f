"""Who may call, and how often at once: the same for whatever door a caller comes through.

Each call passes ``admit``, which asks whether the caller is still good (``standing``); calls that stay open are asked
about again while they are. Each call holds a thread for as long as it lasts, an upload that never begins too, so one
name has at most ``MAX_CALLS`` of them at a door: it can hold up itself, and nobody else.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..utils.errors import TooManyCallsError
from ..utils.identity import PeerId
from .standing import Standing

MAX_CALLS = 8  # at once, of one name: an envoy has five, and after a cut some that the director has yet to miss


class Admission:
    """Counts the open calls of each name; safe to share between threads.

    Args:
        standing: who was revoked.
    """

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._lock = threading.Lock()
        self._calls: Counter[PeerId] = Counter()

    @contextmanager
    def admit(self, peer: PeerId, certificate: str) -> Iterator[Callable[[], None]]:
        """One call, from its start to the end of its thread's work; gives a check that it may go on.

        Args:
            peer: who calls.
            certificate: SHA-256 of what it is known by.

        Raises:
            NotAuthorizedError: it was revoked.
            TooManyCallsError: it has too many calls open.
            StorageError: it cannot be known now whether it was revoked.
        """
        self._standing.check(peer, certificate)
        with self._lock:
            if self._calls[peer] >= MAX_CALLS:
                raise TooManyCallsError(f"{peer} has {MAX_CALLS} calls open already: too many calls at once; end one")
            self._calls[peer] += 1
        try:
            yield lambda: self._standing.check_open(peer, certificate)
        finally:
            with self._lock:
                self._calls[peer] -= 1
                self._calls += Counter()  # forget who has none
