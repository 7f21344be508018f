"""``/api/v1/tasks/{task_id}/events``: what happens to a task, as it happens (server-sent events).

``id`` of the last event that came, in ``Last-Event-ID``, goes on after it. Without news a comment comes every few
seconds, so that neither side believes the other gone. The stream ends with the task, with the caller's right to see it,
and with the director.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from ...utils.errors import FederationError
from ...utils.messages import RunId
from ..history import History
from ..hub.task_events import TaskEvent, after, events_of, progress_of
from ..hub.tasks import Task
from .asking import TheCaller, TheHub, TheToken
from .event_feeds import Feed, Feeds, Seen
from .problems import documented
from .tasks import TaskId, seen_task
from .works import TheWorks

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"], responses=documented(400, 401, 403, 404, 422, 429, 503))
HEARTBEAT_SECONDS = 10.0
_CHECK_SECONDS = 5.0  # how old it may be that the caller may see the task
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `state`, `round` and `metrics`, each with JSON as its data.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def the_task(hub: TheHub, caller: TheCaller, task_id: TaskId) -> Task:
    """One that the caller may see."""
    return seen_task(hub, caller, task_id)


@router.get("/{task_id}/events", responses=_STREAM, response_class=StreamingResponse)
async def follow_task(
    request: Request,
    hub: TheHub,
    works: TheWorks,
    token: TheToken,
    task: Annotated[Task, Depends(the_task)],
    last_event_id: Annotated[str, Header(max_length=64, description="Go on after this one.")] = "",
) -> StreamingResponse:
    """What happened to a task, and what happens from now on, until it is over."""
    feeds: Feeds = request.app.state.feeds

    def check() -> None:
        seen_task(hub, hub.sign_in.caller(token, hub.now()), task.run)

    listening = feeds.listen(task.run, lambda: look(works.history, task.run))
    feed = await listening.__aenter__()  # before the answer begins, so that a refusal is one

    return _Stream(_told(feed, last_event_id, check), lambda: listening.__aexit__(None, None, None))


class _Stream(StreamingResponse):
    """Lets the feed go at its end, also where nobody read a word of it."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], Awaitable[object]]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._end()


def look(history: History, run: RunId) -> Seen:
    """What happened to a run by now."""
    record, rounds, steering = history.run(run), history.rounds(run), history.steering(run)
    patches = tuple(zip(steering.patches, history.patched_at(run), strict=False))
    return Seen(events_of(record, rounds, patches), progress_of(rounds), record.state.is_over)


async def _told(feed: Feed, last_id: str, check: Callable[[], None]) -> AsyncIterator[bytes]:
    """Each event once, in order."""
    rest = after(feed.seen.events, last_id)
    told, progress = {one.id for one in feed.seen.events} - {one.id for one in rest}, None
    clock = asyncio.get_running_loop().time
    checked = clock()
    while True:
        changed, seen = feed.changed, feed.seen
        for event in seen.events:
            if event.id not in told:
                told.add(event.id)
                yield _text(event)
        if seen.is_over or feed.is_closing:
            return
        if seen.progress is not None and seen.progress != progress:
            progress = seen.progress
            yield _text(progress)
        try:
            await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
        except TimeoutError:
            yield b": nothing new\n\n"
        if clock() - checked >= _CHECK_SECONDS:
            checked = clock()
            try:
                await run_in_threadpool(check)
            except FederationError:
                return


def _text(event: TaskEvent) -> bytes:
    lines = [f"event: {event.kind}", f"data: {json.dumps(event.data | {'at': event.at})}"]
    return "\n".join([*([f"id: {event.id}"] if event.id else []), *lines, "", ""]).encode()
