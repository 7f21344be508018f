"""Trying again while a line is broken, or the director's disk is full: as long as it takes and the work is wanted."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..utils.errors import ProtocolError, StorageError, UnreachableError

_T = TypeVar("_T")
_FIRST_SECONDS = 0.1
_MOST_SECONDS = 2.0  # a director that comes back waits for its envoys a little longer than this


class Patience:
    """Tries again after growing pauses, each shortened by lot so that many envoys do not come back at once.

    Args:
        ended: when set, nothing is wanted any more.
    """

    def __init__(self, ended: threading.Event) -> None:
        self._ended = ended
        self._lot = random.SystemRandom()
        self._pause = _FIRST_SECONDS

    def insist(self, attempt: Callable[[], _T]) -> _T:
        """Call until it is answered.

        Raises:
            ProtocolError: the work is not wanted any more.
            FederationError: what the other side refused.
        """
        while True:
            try:
                answer = attempt()
            except UnreachableError as error:
                if not self.pause():
                    raise ProtocolError(
                        f"given up, as nobody waits for it any more; the line was broken: {error}"
                    ) from error
            else:
                self.succeed()
                return answer

    def pause(self) -> bool:
        """Wait a while; False when nothing is wanted any more."""
        is_over = self._ended.wait(self._pause * self._lot.uniform(0.5, 1.0))
        self._pause = min(self._pause * 2, _MOST_SECONDS)
        return not is_over

    def succeed(self) -> None:
        """The line stands: the next pause is short again."""
        self._pause = _FIRST_SECONDS


def a_few_times(attempt: Callable[[], _T]) -> _T:
    """Call a first time over a new connection: again, within two seconds, while nobody answers.

    gRPC gives a first connection 0.2 s and the next ones more; a busy machine or a long way may need that.

    Raises:
        UnreachableError: nobody answered any of the calls.
        FederationError: what the other side refused.
    """
    pause = threading.Event()
    for seconds in (0.1, 0.2, 0.4, 0.8):
        try:
            return attempt()
        except UnreachableError:
            pause.wait(seconds)
    return attempt()


@contextmanager
def asking_the_director() -> Iterator[None]:
    """A call alone, with nothing of this site's disk in it: a ``StorageError`` is the director's, which makes room.

    Raises:
        UnreachableError: the director's disk is full; ask again.
    """
    try:
        yield
    except StorageError as error:
        raise UnreachableError(f"the director cannot do this yet: {error}") from error
