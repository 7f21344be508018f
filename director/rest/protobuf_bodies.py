"""Bodies that are protobuf messages, or streams of them, and the threads that answer them.

What waits long (a poll, an upload, a turn) has threads of its own, so that it never holds up the others: Starlette has
forty for all. A body is read within a bound; an upload is read piece by piece as the director's disk takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

from anyio import CapacityLimiter, from_thread, move_on_after, to_thread
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ...utils import messages as m
from ...utils.errors import FederationError, UnreachableError
from ...utils.messages import MAX_PART_BYTES
from ...utils.part_frames import Unframing
from ...utils.wire import part_from_wire
from ..standing import LOOK_SECONDS

PROTOBUF = "application/x-protobuf"
STREAM = "application/x-protobuf-stream"
MAX_MESSAGE_BYTES = MAX_PART_BYTES + 1024
"""Of one message, as gRPC bounds its own."""
MAX_THREADS = 1000
SILENT_SECONDS = 60.0
"""An upload of which nothing comes for so long is over; it can be resumed."""
_LEFT_OVER = 8
_T = TypeVar("_T")


def protobuf_route(what: str, media_type: str = PROTOBUF) -> dict[str, Any]:
    """For the API's description: a body of bytes."""
    schema = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "description": what, "content": {media_type: {"schema": schema}}}}


def protobuf_answer(what: str, media_type: str = PROTOBUF) -> dict[int | str, dict[str, Any]]:
    """For the API's description: an answer of bytes."""
    return {200: {"description": what, "content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}}


def threads() -> CapacityLimiter:
    """For the calls of one app that may wait long."""
    return CapacityLimiter(MAX_THREADS)


async def in_thread(request: Request, ask: Callable[[], _T], *, abandons: bool = True) -> _T:
    """The answer of something that may wait long; ``abandons``: where the call ends first, it is not waited for."""
    limiter: CapacityLimiter = request.app.state.waiting
    return await to_thread.run_sync(ask, limiter=limiter, abandon_on_cancel=abandons)


async def whole_body(request: Request) -> bytes:
    """The one message that a request is.

    Raises:
        HTTPException: 413, it is too long; 400, it broke off.
    """
    too_long = HTTPException(413, f"a message has at most {MAX_MESSAGE_BYTES} bytes")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > MAX_MESSAGE_BYTES:
        raise too_long
    found = bytearray()
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise HTTPException(400, "the request broke off")
        found += message.get("body", b"")
        if len(found) > MAX_MESSAGE_BYTES:
            raise too_long
        if not message.get("more_body", False):
            return bytes(found)


class Connection:
    """Is whoever called still there? For calls that wait; begin it once the body was read."""

    def __init__(self, request: Request) -> None:
        self._request, self._is_gone = request, threading.Event()

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._wait())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()

    def check(self) -> None:
        """Raises ``UnreachableError`` where it hung up."""
        if self._is_gone.is_set():
            raise UnreachableError("the caller hung up")

    @property
    def is_gone(self) -> bool:
        """It hung up."""
        return self._is_gone.is_set()

    async def _wait(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while (await self._request.receive())["type"] != "http.disconnect":
                pass
            self._is_gone.set()


class IncomingParts:
    """The parts of an upload, for a thread that takes one after the other; no more of it is held than one part.

    Args:
        request: whose body is a stream of framed parts.
    """

    def __init__(self, request: Request) -> None:
        self._receive, self._unframing = request.receive, Unframing(MAX_MESSAGE_BYTES)
        self._is_over, self._heard_at = False, time.monotonic()

    def parts(self, check: Callable[[], None]) -> Iterator[m.Part]:
        """Each part, from within a thread of ``in_thread``.

        Raises:
            MalformedMessageError: it is no stream of parts.
            UnreachableError: it broke off, or nothing came for a minute.
        """
        while (piece := from_thread.run(self._piece)) is not None:
            check()
            for raw in self._unframing.feed(piece):
                yield part_from_wire(raw)
        self._unframing.end()

    def finish(self) -> None:
        """Take what may follow the last part, so that the connection can be used again."""
        for _ in range(_LEFT_OVER):
            if from_thread.run(self._piece) is None:
                return

    async def _piece(self) -> bytes | None:
        """Some bytes; none where nothing came for a moment; None at the end."""
        if self._is_over:
            return None
        with move_on_after(LOOK_SECONDS) as waiting:
            message = await self._receive()
        if waiting.cancelled_caught:
            if time.monotonic() - self._heard_at > SILENT_SECONDS:
                raise UnreachableError(f"nothing came for {SILENT_SECONDS:.0f} s")
            return b""
        self._heard_at = time.monotonic()
        if message["type"] != "http.request":
            raise UnreachableError("the upload broke off")
        self._is_over = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body


class OutgoingParts(Response):
    """The data of a download, as the caller takes it; what was opened for it is closed at its end.

    Args:
        request: of the caller.
        opening: says how much comes.
        parts: the data.
        check: may it go on?
        opened: what is closed at the end.
    """

    media_type = "application/octet-stream"

    def __init__(
        self,
        request: Request,
        opening: m.Opening,
        parts: Iterator[m.Part],
        check: Callable[[], None],
        opened: contextlib.ExitStack,
    ) -> None:
        super().__init__()
        self._request, self._parts, self._check, self._opened = request, parts, check, opened
        self.headers["Content-Length"] = str(opening.length - opening.offset)
        self.headers["Cache-Control"] = "no-store"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it. What is refused now can only break off: the caller asks again, and is told why."""
        del scope, receive
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with Connection(self._request) as connection:
                while not connection.is_gone:
                    part = await in_thread(self._request, self._next, abandons=False)
                    if part is None:
                        break
                    await send({"type": "http.response.body", "body": bytes(part), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except FederationError:
            return
        finally:
            self._opened.close()

    def _next(self) -> bytes | memoryview | None:
        part = next(self._parts, None)
        self._check()
        return part.content if isinstance(part, m.Data) else None
