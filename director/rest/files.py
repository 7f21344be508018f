"""The answer that is a file: whole or a part of it (RFC 9110: ranges, conditions), with its digest (RFC 9530).

The bytes of an artifact never change under its name, so its SHA-256 is a strong ETag: whoever was cut off goes on with
``Range`` and ``If-Range``, whoever has it is told so (304), and what came can be held against ``Repr-Digest``. Several
ranges at once are not served; such a request, and one that is none, is answered with the whole, as RFC 9110 allows.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from ...utils.artifacts import ArtifactStore
from ...utils.errors import ChangedMeanwhileError, StorageError
from ...utils.tensors import Digest
from .problems import documented, problem

PIECE_BYTES = 256 << 10
"""Read, encrypted and sent at a time. Larger ones are no quicker, and every caller who waits holds some of them."""
MEDIA_TYPE = "application/octet-stream"
_AT_ONCE: int = getattr(os, "RWF_NOWAIT", 0)
_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))[ \t]*", re.ASCII | re.IGNORECASE)
_TAGS = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_FILE = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_TOLD = {
    name: {"description": said, "schema": {"type": "string"}}
    for name, said in (
        ("ETag", "The file's SHA-256, in quotes."),
        ("Repr-Digest", "Of the whole file, also where a part is sent (RFC 9530)."),
        ("Accept-Ranges", "bytes"),
    )
}
_WHOLE_PART_OR_NOTHING: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": _FILE, "headers": _TOLD},
    206: {"description": "The part that `Range` asked for.", "content": _FILE, "headers": _TOLD},
    304: {"description": "The caller has it already (`If-None-Match`)."},
}
ANSWERS = _WHOLE_PART_OR_NOTHING | documented(412, 416)
"""For the API's description, of every operation that answers with a file."""

Asked = TypeVar("Asked", bound=Callable[..., Response])


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes from ``start`` up to, not including, ``end``."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """How many."""
        return self.end - self.start


def part_of(asked: str, length: int) -> Part | None:
    """Which bytes of a file a ``Range`` asks for.

    | asked | gives |
    |---|---|
    | nothing; another unit; several ranges; 5-3; what is no range | None: the whole, with 200 |
    | from behind the end on; the last 0 | a part of no bytes: it cannot be satisfied (416) |
    | more than there is | what there is |

    >>> part_of("bytes=2-3", 10), part_of("bytes=8-", 10), part_of("bytes=-3", 10)
    (Part(start=2, end=4), Part(start=8, end=10), Part(start=7, end=10))
    """
    found = _RANGE.fullmatch(asked)
    if found is None:
        return None
    first, last, suffix = (None if one is None else int(one) for one in found.groups())
    if suffix is not None:
        start, end = max(0, length - suffix), length
        if not length and suffix:
            return None  # all of nothing: there is no way to write that as a part
        return Part(start, end)
    if first is None or (last is not None and last < first):
        return None
    return Part(min(first, length), length if last is None else min(last + 1, length))


def file_answer(
    request: Request,
    artifacts: ArtifactStore,
    digest: Digest,
    filename: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An artifact, to a caller who was allowed to have it.

    Args:
        request: the conditions and the range are in its headers. To HEAD the same is answered without content.
        artifacts: where it is.
        digest: its SHA-256.
        filename: under which it is to be saved: letters, digits, ``.``, ``_`` and ``-``.
        headers: further ones.

    Raises:
        UnknownArtifactError: it is not here.
        ChangedMeanwhileError: the caller asked for another (``If-Match``).
        StorageError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(artifacts.open(digest))
        length, told = os.fstat(file.fileno()).st_size, _told(digest, filename) | dict(headers or {})
        answer = _conditional(request.headers, told, headers or {})
        if answer is not None:
            return answer
        part = None
        if request.method == "GET" and request.headers.get("if-range", told["ETag"]) == told["ETag"]:
            part = part_of(",".join(request.headers.getlist("range")), length)
        if part is None:
            if request.method == "GET":
                told["Content-Digest"] = told["Repr-Digest"]
            stack.pop_all()
            return FileAnswer(file, Part(0, length), 200, told)
        if not part.length:
            return _unsatisfiable(length, told)
        told["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{length}"
        stack.pop_all()
        return FileAnswer(file, part, 206, told)


def _told(digest: Digest, filename: str) -> dict[str, str]:
    sha256 = base64.b64encode(bytes.fromhex(digest)).decode("ascii")
    return {
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{sha256}:",
        "Cache-Control": "private, no-cache",  # who asks again is looked at again
        "Content-Disposition": f'attachment; filename="{filename}"',
    }


def download(router: APIRouter, path: str, **about: Any) -> Callable[[Asked], Asked]:
    """Put a function that gives ``file_answer`` under GET and HEAD of a path, with all that it may answer."""
    about["responses"] = ANSWERS | about.get("responses", {})

    def put(ask: Asked) -> Asked:
        for method, said in (("GET", ask.__name__), ("HEAD", f"head_{ask.__name__}")):
            router.add_api_route(path, ask, methods=[method], name=said, response_class=Response, **about)
        return ask

    return put


def _conditional(asked: Headers, told: Mapping[str, str], more: Mapping[str, str]) -> Response | None:
    """304 where the caller has the file, None where it is to be sent.

    Raises:
        ChangedMeanwhileError: the caller asked for another.
    """
    tag, wanted, held = told["ETag"], asked.get("if-match"), asked.get("if-none-match")
    if wanted is not None and wanted.strip() != "*" and tag not in _tags(wanted, weak=False):
        raise ChangedMeanwhileError("this file is another than the one of your If-Match; ask without it")
    if held is not None and (held.strip() == "*" or tag in _tags(held, weak=True)):
        return Response(None, 304, {name: told[name] for name in ("ETag", "Cache-Control")} | dict(more))
    return None


def _tags(said: str, *, weak: bool) -> set[str]:
    """The entity tags of a list; those that are marked as weak only if they count."""
    return {f'"{opaque}"' for mark, opaque in _TAGS.findall(said) if weak or not mark}


def _unsatisfiable(length: int, told: Mapping[str, str]) -> Response:
    detail = f"the file has {length} bytes; ask for some of them"
    headers = {name: told[name] for name in ("ETag", "Accept-Ranges")} | {"Content-Range": f"bytes */{length}"}
    return problem(416, "RangeNotSatisfiable", "There are no such bytes", detail, headers=headers)


class FileAnswer(Response):
    """Streams a part of a file; closes it at the end, also where the caller hangs up."""

    def __init__(self, file: BinaryIO, part: Part, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(None, status, dict(headers) | {"Content-Length": str(part.length)}, MEDIA_TYPE)
        self._file, self._part = file, part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        gone = asyncio.create_task(_hung_up(receive))
        with self._file:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            at = self._part.end if scope["method"] == "HEAD" else self._part.start
            while at < self._part.end and not gone.done():
                piece = await _read(self._file, at, min(PIECE_BYTES, self._part.end - at))
                at += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)  # the others' turn, who asked meanwhile; and who hung up is heard of
        gone.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(file: BinaryIO, at: int, length: int) -> bytes | memoryview:
    """The next bytes: at once where the system has them in memory, by a thread where it must ask the disk.

    Raises:
        StorageError: the file has become shorter; the connection breaks, and the caller sees that bytes are missing.
    """
    if _AT_ONCE:
        piece = bytearray(length)
        with contextlib.suppress(OSError):  # not in memory, or no such reading on this file system
            if came := os.preadv(file.fileno(), [piece], at, _AT_ONCE):
                return memoryview(piece)[:came]
    found = await run_in_threadpool(os.pread, file.fileno(), length, at)
    if not found:
        raise StorageError(f"a file ended {length} bytes too early; it was changed by hand")
    return found
