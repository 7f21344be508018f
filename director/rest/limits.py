"""What is refused before anybody looks at it: bodies that are too large or too slow, and callers who ask too often.

Each address has a bucket of calls that fills steadily; an address that empties it is answered 429 and told when to come
back. Addresses are those of the connection: a proxy before the director counts as one caller, so it limits itself.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import problem

MAX_BODY_BYTES = 4 << 20
_STREAMED = re.compile(
    r"/api/v1/plans/[0-9a-f]{64}/blobs/[0-9a-f]{64}"  # the route looks at how long it is, before it reads any of it
    r"|/api/v1/federated/sites/[^/]+/[a-z]+"  # messages, each bounded as those of gRPC
)
CALLS_A_SECOND, BURST = 100.0, 400.0
_MAX_ADDRESSES = 10_000
BODY_SECONDS, SILENT_SECONDS = 120.0, 60.0
"""How long a body may take in all, and, where it is streamed, each of its pieces."""
_TOO_LARGE = f"a body has at most {MAX_BODY_BYTES} bytes, and says how many"
_MOST_DIGITS = 20
_CLOSE = {"Connection": "close"}
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"strict-transport-security", b"max-age=31536000"),
)


class Buckets:
    """How many calls each address has left. Pure but for its memory; the clock is an argument."""

    def __init__(self, calls_a_second: float = CALLS_A_SECOND, burst: float = BURST) -> None:
        self._rate, self._burst = calls_a_second, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, address: str, now: float) -> float:
        """One call of an address; gives how many seconds it has to wait, 0 for none."""
        with self._lock:
            left, since = self._left.pop(address, (self._burst, now))
            left = min(self._burst, left + max(0.0, now - since) * self._rate)
            wait = 0.0 if left >= 1 else (1 - left) / self._rate
            self._left[address] = (left - 1 if not wait else left, now)
            while len(self._left) > _MAX_ADDRESSES:
                self._left.popitem(last=False)
        return wait


class Limits:
    """ASGI middleware before all else."""

    def __init__(
        self, app: ASGIApp, buckets: Buckets | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._buckets, self._clock = app, buckets or Buckets(), clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        wait = self._buckets.take((scope.get("client") or ("", 0))[0], self._clock())
        if wait:
            detail = f"too many calls from this address: wait {wait:.2f} s"
            headers = {"Retry-After": str(int(wait) + 1)}
            await problem(429, "TooManyCalls", "Too often", detail, headers=headers)(scope, receive, guarded)
            return
        said = Headers(scope=scope)
        if "transfer-encoding" in said and "content-length" in said:
            # One of the two is a lie, and a proxy before us may have believed the other.
            await _refusal(
                400, "Refused", "Unclear where it ends", "say Content-Length or Transfer-Encoding, not both"
            )(scope, receive, guarded)
            return
        announced = said.get("content-length", "0")
        is_streamed = _STREAMED.fullmatch(scope["path"]) is not None
        if not is_streamed and (
            not announced.isdecimal() or len(announced) > _MOST_DIGITS or int(announced) > MAX_BODY_BYTES
        ):
            await _too_large()(scope, receive, guarded)
            return
        await self._bounded(scope, receive, guarded, is_streamed)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, is_streamed: bool) -> None:
        taken, is_whole, until = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS
        has_begun = False

        async def bounded() -> Message:
            nonlocal taken, is_whole
            if is_whole:  # what comes now is that the caller hung up
                return await receive()
            now = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout_at(now + SILENT_SECONDS if is_streamed else until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(400, "the body did not come in time", _CLOSE) from None
            taken += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if taken > MAX_BODY_BYTES and not is_streamed:
                raise HTTPException(413, _TOO_LARGE, _CLOSE)
            return message

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, bounded, noted)
        except HTTPException as error:  # where none of the app's own handlers was around
            if has_begun:
                raise
            answer = _too_large() if error.status_code == 413 else _refusal(400, "Refused", error.detail, error.detail)
            await answer(scope, receive, send)


def _too_large() -> Response:
    return _refusal(413, "TooLarge", "Too large", _TOO_LARGE)


def _refusal(status: int, kind: str, title: str, detail: str) -> Response:
    """Of a request whose rest is not read: nothing else is heard on its connection."""
    return problem(status, kind, title, detail, headers=_CLOSE)
