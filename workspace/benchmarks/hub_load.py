"""What stands at the other end in the benchmark of the hub: many callers over TLS, and the bare socket to compare with.

All of it runs in processes of its own, so that nobody's processor seconds are counted as the director's.
"""

from __future__ import annotations

import multiprocessing
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROCESSES = 2
_BUFFER_BYTES, _PIECE_BYTES = 256 << 10, 1 << 20
_TIMEOUT_SECONDS = 120.0
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Load:
    """Who calls, and what for."""

    root: str  # PEM file of the federation's root
    port: int
    path: str
    token: str
    callers: int  # at once; each has an address of its own, as organizations have
    seconds: float = 0.0  # how long each repeats its call; 0: once


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of it."""

    durations: tuple[float, ...]  # seconds of each call, in no order
    num_bytes: int  # of all answers' contents
    seconds: float  # from the first call to the end of the last

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.durations) / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the calls were answered."""
        ordered = sorted(self.durations)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def put_load(load: Load) -> Answered:
    """Call, from some processes at once.

    Raises:
        ConnectionError: an answer was none, or no 200.
    """
    shares = [[one for one in range(load.callers) if one % PROCESSES == part] for part in range(PROCESSES)]
    shares = [share for share in shares if share]
    with ProcessPoolExecutor(len(shares), mp_context=_SPAWN) as pool:
        list(pool.map(_nothing, shares))  # processes are there before the clock runs
        found = list(pool.map(_call, [load] * len(shares), shares))
    durations = tuple(one for durations, _, _, _ in found for one in durations)
    num_bytes, begun, ended = (list(part) for part in list(zip(*found, strict=True))[1:])
    return Answered(durations, sum(num_bytes), max(ended) - min(begun))


@contextmanager
def bare_server(chain: Path, key: Path, num_bytes: int) -> Iterator[tuple[int, int]]:
    """A process that answers whatever is asked with so many bytes, straight from memory into TLS; its port and pid."""
    ports: multiprocessing.Queue[int] = _SPAWN.Queue()
    process = _SPAWN.Process(target=_serve, args=(str(chain), str(key), num_bytes, ports), daemon=True)
    process.start()
    try:
        yield ports.get(timeout=60), process.pid or 0
    finally:
        process.kill()
        process.join()


def _nothing(_: object) -> None:
    return None


def _call(load: Load, callers: list[int]) -> tuple[list[float], int, float, float]:
    context = ssl.create_default_context(cafile=load.root)
    ready = threading.Barrier(len(callers))
    begun: list[float] = []

    def one(number: int) -> tuple[list[float], int]:
        with _Caller(load, context, number) as caller:
            ready.wait(_TIMEOUT_SECONDS)
            begun.append(time.time())
            durations: list[float] = []
            until, taken = time.perf_counter() + load.seconds, 0
            while not durations or time.perf_counter() < until:
                before = time.perf_counter()
                taken += caller.get()
                durations.append(time.perf_counter() - before)
            return durations, taken

    with ThreadPoolExecutor(len(callers)) as threads:
        found = list(threads.map(one, callers))
    return (
        [each for durations, _ in found for each in durations],
        sum(taken for _, taken in found),
        min(begun),
        time.time(),
    )


class _Caller:
    """One connection that stands."""

    def __init__(self, load: Load, context: ssl.SSLContext, number: int) -> None:
        own = (f"127.0.{1 + number // 250}.{1 + number % 250}", 0)
        raw = socket.create_connection(("127.0.0.1", load.port), _TIMEOUT_SECONDS, own)
        self._line = context.wrap_socket(raw, server_hostname="127.0.0.1")
        said = f"GET {load.path} HTTP/1.1\r\nHost: director\r\nAuthorization: Bearer {load.token}\r\n\r\n"
        self._asked, self._path = said.encode(), load.path
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def get(self) -> int:
        """One call; gives how many bytes its content had."""
        self._line.sendall(self._asked)
        came = b""
        while b"\r\n\r\n" not in came:
            came += self._some(self._line.recv(16384))
        head, content = came.split(b"\r\n\r\n", 1)
        lines = head.lower().split(b"\r\n")
        if b" 200 " not in lines[0] + b" ":
            raise ConnectionError(f"GET {self._path}: {lines[0].decode('latin-1')}")
        length = next(int(one.split(b":")[1]) for one in lines if one.startswith(b"content-length:"))
        left = length - len(content)
        while left:
            taken = self._line.recv_into(self._buffer[: min(left, _BUFFER_BYTES)])
            if not taken:
                raise ConnectionError(f"GET {self._path}: ended {left} bytes too early")
            left -= taken
        return length

    def _some(self, came: bytes) -> bytes:
        if not came:
            raise ConnectionError(f"GET {self._path}: no answer")
        return came

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()


def _serve(chain: str, key: str, num_bytes: int, ports: multiprocessing.Queue[int]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(chain, key)
    content = memoryview(bytes(num_bytes))
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    ports.put(listening.getsockname()[1])
    while True:
        raw, _ = listening.accept()
        threading.Thread(target=_answer, args=(context, raw, content), daemon=True).start()


def _answer(context: ssl.SSLContext, raw: socket.socket, content: memoryview) -> None:
    with context.wrap_socket(raw, server_side=True) as line:
        while line.recv(16384):
            line.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content))
            for place in range(0, len(content), _PIECE_BYTES):
                line.sendall(content[place : place + _PIECE_BYTES])
