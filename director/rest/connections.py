"""How long a caller may say nothing, and how many connections one may hold: who only holds them takes nobody's place.

uvicorn waits for a request for as long as it takes to come, and TLS in Python waits a minute for a handshake. Here each
has a time, and what one address holds, and what all hold together, has an end; whoever comes too late or too often is
hung up on. Addresses are those of connections: behind a proxy all callers are one.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HANDSHAKE_SECONDS = 10.0
HEADER_SECONDS = 30.0
"""From the handshake, or from the answer before, to the end of a request's headers."""
MOST_OF_ONE = 1000
"""Connections of one address."""
_MOST = 4000


def most_connections() -> int:
    """Of all addresses: half of the files that the process may open, since the database and models need some too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(_MOST, soft // 2)


class ImpatientLoop(asyncio.SelectorEventLoop):
    """Waits less long for a TLS handshake."""

    async def create_server(self, *args: Any, **more: Any) -> asyncio.Server:
        """As in asyncio."""
        return await super().create_server(*args, ssl_handshake_timeout=HANDSHAKE_SECONDS, **more)


class BoundedConnection(H11Protocol):
    """One connection of a caller; all belong to the one thread of their server."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """It stands; it may be one too many."""
        super().connection_made(transport)
        held = Counter(_host(one) for one in self.connections)
        if held[_host(self)] > MOST_OF_ONE or held.total() > most_connections():
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer went out whole; the next request may be here already, or a part of it."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._rest()

    def _watch(self) -> None:
        """While nothing is answered a request has so long to come whole, and what nobody reads any more, to end."""
        if self._is_answered():
            self._rest()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def _is_answered(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        self._deadline = None
        if not self._is_answered() and not self.transport.is_closing():
            self.transport.abort()


def _host(connection: Any) -> str:
    return connection.client[0] if connection.client else ""
