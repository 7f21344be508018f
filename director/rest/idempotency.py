"""``Idempotency-Key``: a POST that is sent again, since its answer was lost, is answered as it was and not done again.

Kept for a day, by who asked and their key: a user, signed in or by one API key. Whoever is nobody (any more) is told so
by the call itself, is shown no answer, and leaves no trace here. Another request under the same key is refused. An
answer that must not be stored (``Cache-Control: no-store``: it holds what is told once) is not kept: sent again, it is
said that it was done. A request under way is marked before it is done; where the director was killed amid it, or its
answer could not be kept (the disk is full), the mark goes after 5 minutes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...utils.errors import IdentityError, StorageError
from ..database import reading, transaction
from ..hub.sign_in import Caller
from ..hub.tables import IDEMPOTENCY
from .problems import problem, refusal

_LOG = logging.getLogger(__name__)
MAX_KEY = 255
MAX_BODY_BYTES = 4 << 20  # as much as any body that comes at once
_DAY_SECONDS, _UNDER_WAY_SECONDS = 86400.0, 300.0
_UNDER_WAY, _NOT_KEPT = 0, 1


@dataclass(frozen=True, slots=True)
class Kept:
    """What was answered."""

    request: str
    status: int
    headers: dict[str, str]
    body: bytes


class Answers:
    """The memory of answers; safe to share between threads and processes."""

    def __init__(self, engine: Engine, now: Callable[[], float]) -> None:
        self._engine, self._now = engine, now

    def begin(self, who: str, key: str, request: str) -> Kept | None:
        """Mark a request as under way; or give what was answered to it, or to another under this key."""
        now = self._now()
        row = {"user": who, "key": key, "request": request, "status": _UNDER_WAY, "headers": {}, "body": b""}
        old = (IDEMPOTENCY.c.status == _UNDER_WAY) & (IDEMPOTENCY.c.created_at < now - _UNDER_WAY_SECONDS)
        try:
            with transaction(self._engine) as connection:
                connection.execute(delete(IDEMPOTENCY).where(old | (IDEMPOTENCY.c.created_at < now - _DAY_SECONDS)))
                connection.execute(insert(IDEMPOTENCY), row | {"created_at": now})
        except IntegrityError:
            with reading(self._engine) as connection:
                found = connection.execute(select(IDEMPOTENCY).where(_of(who, key))).first()
            if found is None:
                raise StorageError("what was answered before went away just now: send it again") from None
            return Kept(found.request, found.status, found.headers, found.body)
        return None

    def end(self, who: str, key: str, status: int, headers: dict[str, str], body: bytes) -> None:
        """Keep an answer; of a failure of ours nothing, so that it may be tried again."""
        with transaction(self._engine) as connection:
            if status >= 500:
                connection.execute(delete(IDEMPOTENCY).where(_of(who, key)))
            else:
                values = {"status": status, "headers": headers, "body": body}
                connection.execute(update(IDEMPOTENCY).where(_of(who, key)).values(values))


class Idempotency:
    """ASGI middleware before the app's POSTs."""

    def __init__(self, app: ASGIApp, answers: Answers, caller: Callable[[str], Caller]) -> None:
        self._app, self._answers, self._caller = app, answers, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        key, who = headers.get("idempotency-key"), headers.get("authorization")
        if scope["type"] != "http" or scope["method"] != "POST" or key is None or who is None:
            await self._app(scope, receive, send)
            return
        try:
            caller = await run_in_threadpool(self._who, who)
        except StorageError as error:
            await refusal(error)(scope, receive, send)
            return
        if caller is None:
            await self._app(scope, receive, send)
        else:
            await self._once(caller, key, scope, receive, send)

    async def _once(self, caller: str, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        if not 0 < len(key) <= MAX_KEY or not key.isprintable():
            detail = f"Idempotency-Key: expected 1 to {MAX_KEY} printable characters"
            await problem(422, "MalformedRequest", "The request is not as it should be", detail)(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            detail = f"with an Idempotency-Key a body has at most {MAX_BODY_BYTES} bytes"
            await problem(413, "TooLarge", "Too large", detail)(scope, receive, send)
            return
        request = hashlib.sha256(repr((scope["path"], scope["query_string"])).encode() + b"\0" + body).hexdigest()
        try:
            kept = await run_in_threadpool(self._answers.begin, caller, key, request)
        except StorageError as error:
            await refusal(error)(scope, receive, send)
            return
        if kept is not None:
            await _again(kept, request, scope, receive, send)
            return
        await self._first(caller, key, body, scope, send)

    def _who(self, authorization: str) -> str | None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            found = self._caller(token.strip())
        except IdentityError:
            return None
        return hashlib.sha256(repr((found.user.id, found.key)).encode()).hexdigest()[:32]

    async def _first(self, caller: str, key: str, body: bytes, scope: Scope, send: Send) -> None:
        told: list[Message] = []

        async def given() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            told.append(message)

        try:
            await self._app(scope, given, keep)
            start = next(one for one in told if one["type"] == "http.response.start")
        except BaseException:
            await run_in_threadpool(self._answers.end, caller, key, 500, {}, b"")
            raise
        status, raw = start["status"], MutableHeaders(raw=start["headers"])
        content = b"".join(one.get("body", b"") for one in told if one["type"] == "http.response.body")
        headers = {name: raw[name] for name in ("content-type", "location", "etag") if name in raw}
        if "no-store" in raw.get("cache-control", ""):
            status, headers, content = _NOT_KEPT, {}, b""
        try:
            await run_in_threadpool(self._answers.end, caller, key, status, headers, content)
        except StorageError as error:  # it was done: the mark stays, so that whoever sends it again is not served twice
            _LOG.warning("answer not kept path=%s status=%d reason=%s", scope["path"], start["status"], error)
        for message in told:
            await send(message)


async def _again(kept: Kept, request: str, scope: Scope, receive: Receive, send: Send) -> None:
    from starlette.responses import Response

    if kept.request != request:
        detail = "another request was sent under this Idempotency-Key"
        answer: Response = problem(422, "MalformedRequest", "The request is not as it should be", detail)
    elif kept.status == _UNDER_WAY:
        answer = problem(
            409, "UnderWay", "It is under way", "the same request is being answered: ask again in a moment"
        )
    elif kept.status == _NOT_KEPT:
        answer = problem(
            409, "DoneBefore", "It was done", "it was done, and what it told is told once: look, or make another"
        )
    else:
        answer = Response(kept.body, kept.status, kept.headers | {"Idempotent-Replayed": "true"})
    await answer(scope, receive, send)


async def _whole(receive: Receive) -> bytes | None:
    """The body; None where it is too large, or whoever sends it hung up."""
    found = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        found += message.get("body", b"")
        if len(found) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(found)


def _of(who: str, key: str) -> ColumnElement[bool]:
    return (IDEMPOTENCY.c.user == who) & (IDEMPOTENCY.c.key == key)
