"""What is counted of calls, for ``/metrics``."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Numbers:
    """What is counted of calls, by route and never by what is in them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "fedveil_http_requests", "Calls answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fedveil_http_request_seconds",
            "How long an answer took to begin.",
            ["method", "route"],
            registry=self.registry,
        )


class Counting:
    """ASGI middleware around all of an app."""

    def __init__(self, app: ASGIApp, numbers: Numbers) -> None:
        self._app, self._numbers = app, numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")  # never the path: that may hold ids without end
                method = scope["method"] if scope["method"] in _METHODS else "other"  # a caller may invent them
                self._numbers.calls.labels(method, route, str(message["status"])).inc()
                self._numbers.seconds.labels(method, route).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)
