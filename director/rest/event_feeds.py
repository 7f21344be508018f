"""Who listens to tasks: one look at a task every quarter of a second serves all who listen to it.

Listeners are coroutines of the loop that serves the API, and hold no thread; a look takes one of the pool for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from ...utils.errors import FederationError, TooManyCallsError
from ..hub.task_events import TaskEvent

MAX_LISTENERS = 1000
LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Seen:
    """A task as it was at one look."""

    events: tuple[TaskEvent, ...]
    progress: TaskEvent | None
    is_over: bool


@dataclass(eq=False, slots=True)
class Feed:
    """One task, as those who listen to it see it."""

    seen: Seen
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # another one after each change
    listeners: int = 0
    is_closing: bool = False
    looking: asyncio.Task[None] | None = None

    def tell(self, seen: Seen | None = None) -> None:
        """Wake all who listen."""
        self.seen = seen or self.seen
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Feeds:
    """All tasks that somebody listens to.

    Args:
        ends: set when the director closes: then all listeners are let go.
    """

    def __init__(self, ends: threading.Event) -> None:
        self._ends = ends
        self._feeds: dict[tuple[int, str], Feed] = {}  # by the loop: an app may be served by several
        self._count = 0

    @asynccontextmanager
    async def listen(self, run: str, look: Callable[[], Seen]) -> AsyncIterator[Feed]:
        """The feed of a task, for as long as the context lasts.

        Args:
            run: the task.
            look: at what happened to it; blocks, so a thread does it.

        Raises:
            TooManyCallsError: too many listen already.
            FederationError: as ``look``.
        """
        if self._count >= MAX_LISTENERS:
            raise TooManyCallsError(f"{MAX_LISTENERS} listen to tasks already; ask for the task itself now and then")
        self._count += 1
        key = id(asyncio.get_running_loop()), run
        try:
            if key not in self._feeds:
                first = await run_in_threadpool(look)
                if key not in self._feeds:
                    made = self._feeds[key] = Feed(first)
                    made.looking = asyncio.create_task(self._look(made, look))
            feed = self._feeds[key]
            feed.listeners += 1
            try:
                yield feed
            finally:
                feed.listeners -= 1
                if not feed.listeners:
                    del self._feeds[key]
                    if feed.looking is not None:
                        feed.looking.cancel()
        finally:
            self._count -= 1

    async def _look(self, feed: Feed, look: Callable[[], Seen]) -> None:
        while not self._ends.is_set():
            await asyncio.sleep(LOOK_SECONDS)
            with contextlib.suppress(FederationError):  # the database is away for a moment: it is looked at again
                seen = await run_in_threadpool(look)
                if seen != feed.seen:
                    feed.tell(seen)
                if seen.is_over:
                    return
        feed.is_closing = True
        feed.tell()
