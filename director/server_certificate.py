"""The certificate that the director shows: another one from two thirds of its life on, without a restart.

gRPC and the REST door ask for it at each handshake, which is when it can matter, so there is no clock of its own here.
Connections that stand keep the one that they were opened with.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..utils import transport
from ..utils.certificates import DAY_SECONDS, Authority
from ..utils.errors import FederationError
from ..utils.identity import Role
from .config import DirectorConfig
from .issuer import issuer_warning
from .own_leaves import next_look, own_leaf

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 60.0


class ServerCertificate:
    """What the server shows, as gRPC asks for it; safe to share between threads.

    Args:
        folder: the director's.
        config: names its hosts.
        issuer: gives the present issuer.
        clock: seconds since 1970.

    Raises:
        IdentityError: there is no good certificate, and none can be issued.
        StorageError: a new one cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        config: DirectorConfig,
        issuer: Callable[[], Authority],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._config, self._issuer, self._clock = folder, config, issuer, clock
        self._lock = threading.Lock()
        self._warned_at = float("-inf")
        self._held = own_leaf(folder, config, Role.DIRECTOR, issuer(), clock(), self._complain)
        self._look_at = max(next_look(self._held), clock() + _RETRY_SECONDS)
        self._told = self.shown  # to gRPC
        self._warn(clock())

    @property
    def shown(self) -> transport.Shown:
        """What is shown now."""
        return transport.Shown(self._held.chain, self._held.key, self._held.root)

    def latest(self) -> transport.Shown:
        """At a handshake: what is shown from now on."""
        with self._lock:
            now = self._clock()
            self._warn(now)
            if now >= self._look_at:
                self._look(now)
            return self.shown

    def renewed(self) -> transport.Shown | None:
        """As gRPC asks at a handshake: what is shown from now on, or None for what it was told before."""
        latest = self.latest()
        with self._lock:
            if latest == self._told:
                return None
            self._told = latest
            return latest

    def _look(self, now: float) -> None:
        before = self._held
        try:
            self._held = own_leaf(self._folder, self._config, Role.DIRECTOR, self._issuer(), now, self._complain)
        except FederationError as error:
            self._complain(str(error))
        self._look_at = max(next_look(self._held), now + _RETRY_SECONDS)
        if self._held != before:
            _LOG.info("renewed the director's own certificate")

    def _warn(self, now: float) -> None:
        """Once a day, while the issuer nears its end."""
        if now - self._warned_at >= DAY_SECONDS:
            self._warned_at = now
            warning = issuer_warning(self._issuer().certificate, now)
            if warning:
                _LOG.warning("%s", warning)

    def _complain(self, reason: str) -> None:
        _LOG.error("the director's own certificate was not renewed: %s", reason)
