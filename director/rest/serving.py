"""The REST API on a port of its own: TLS 1.3 alone, with the director's certificate, beside the gRPC port.

Callers prove who they are by a token or key, so no client certificate is asked for; that is why it is another port. The
certificate is the one that gRPC shows; whether it was renewed is looked at every few seconds, since Python has no word
in a handshake without a server's name, and callers may know the director by its IP address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import tempfile
import threading
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from ...utils.addresses import Address
from ...utils.errors import ConfigError
from ...utils.transport import Shown
from ..server_certificate import ServerCertificate
from .connections import BoundedConnection, ImpatientLoop

_LOG = logging.getLogger(__name__)
_BACKLOG = 512
_GOODBYE_SECONDS = 2
_KEEP_ALIVE_SECONDS = 30
_LOOK_SECONDS = 10.0
_ABORT_SECONDS = 0.05


class RestServer:
    """Listens from its start to ``close``.

    Args:
        app: the API.
        address: where; port 0 takes one that is free.
        certificate: what is shown.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """

    def __init__(self, app: FastAPI, address: Address, certificate: ServerCertificate) -> None:
        self._socket = _listening(address)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=BoundedConnection,
            log_config=None,
            access_log=False,  # paths may hold names of people; what is done is in the audit log
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GOODBYE_SECONDS,
            ws="none",
            lifespan="off",
        )
        config.load()
        config.ssl = self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._ends: threading.Event = app.state.ends
        self._certificate, self._shown = certificate, certificate.latest()
        _show(self._context, self._shown)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer what was asked, and take no more."""
        self._ends.set()
        self._server.should_exit = True
        self._thread.join(_GOODBYE_SECONDS + 5)
        with contextlib.suppress(OSError):
            self._socket.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=ImpatientLoop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        looking = asyncio.create_task(self._look())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            looking.cancel()
            for connection in list(self._server.server_state.connections):  # of callers who did not hang up in time
                connection.transport.abort()
            await asyncio.sleep(_ABORT_SECONDS)  # the loop's own work of closing them

    async def _look(self) -> None:
        """New handshakes show what was renewed; connections that stand keep what they were opened with."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            latest = await asyncio.to_thread(self._certificate.latest)
            if latest != self._shown:
                self._shown = latest
                _show(self._context, latest)


def _show(context: ssl.SSLContext, shown: Shown) -> None:
    """Python takes certificates from files alone; these are this process's own, and gone at once."""
    with tempfile.TemporaryDirectory(prefix="fedveil-tls-") as folder:
        files = []
        for name, content in (("chain", shown.chain), ("key", shown.key)):
            path = Path(folder, name)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            files.append(path)
        context.load_cert_chain(str(files[0]), str(files[1]))


def _listening(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port or 0))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(f"cannot listen on {address} for the REST API: {error.strerror}") from error
    return listening
