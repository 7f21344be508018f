"""What the director says in one task's secure sum, from the thread that holds the line to the one that works.

A line that breaks and opens again says its last item once more, and a long poll says it again and again: each counts
once. A director that says too much is not listened to; the sum's own checks are ``summing``'s.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque

from ..utils.errors import SumAbortedError

_MAX_ITEMS = 16  # four are said in a sum that goes well
_MAX_WAITING = 4  # of them; each may have 4 MiB


class Mailbox:
    """Contents of ``SumItem``s, each once, in the order they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._seen: set[bytes] = set()
        self._is_closed = False

    def is_news(self, content: bytes) -> bool:
        """Would this be taken? Not what came before."""
        with self._changed:
            return not self._is_closed and self._has_room() and _mark(content) not in self._seen

    def put(self, content: bytes) -> None:
        """Take one item, unless it came before; an empty one says nothing."""
        with self._changed:
            mark = _mark(content)
            if content and mark not in self._seen and self._has_room():
                self._seen.add(mark)
                self._waiting.append(content)
                self._changed.notify_all()

    def close(self) -> None:
        """Nothing is waited for any more: the task was withdrawn."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def take(self, what: str, timeout_seconds: float) -> bytes:
        """The next item.

        Args:
            what: is waited for, in words for the error.
            timeout_seconds: to wait at most.

        Raises:
            SumAbortedError: the task was withdrawn meanwhile, or nothing came in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed, timeout_seconds)
            if self._is_closed:
                raise SumAbortedError(f"withdrawn while this site waited for {what}")
            if not self._waiting:
                raise SumAbortedError(f"{what} did not come within {timeout_seconds:.0f} s")
            return self._waiting.popleft()

    def _has_room(self) -> bool:
        return len(self._seen) < _MAX_ITEMS and len(self._waiting) < _MAX_WAITING


def _mark(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
