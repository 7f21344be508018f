"""Sign-ins through the OpenID provider that are under way: handles of ours for device codes that stay here.

They are in memory: a director that restarts forgets them, and the user begins again. Bounded, so that nobody fills the
director's memory, or asks the provider more often than it allows.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...utils.errors import IdentityError, TooManyCallsError, UnknownEntityError
from .open_id import DeviceCode, NotYet, OpenIdProvider

MOST = 1000
"""Sign-ins under way at once."""


@dataclass(frozen=True, slots=True)
class Pending:
    """One sign-in that nobody finished yet."""

    id: str
    code: DeviceCode
    ask_at: float  # not before, in seconds since 1970


class DeviceSignIns:
    """All that are under way; safe to share between threads."""

    def __init__(self, provider: OpenIdProvider, now: Callable[[], float]) -> None:
        self.provider, self._now = provider, now
        self._lock = threading.Lock()
        self._pending: dict[str, Pending] = {}

    def begin(self) -> Pending:
        """Start one.

        Raises:
            TooManyCallsError: a thousand are under way.
            UnreachableError: as ``OpenIdProvider.begin``.
        """
        with self._lock:
            now = self._now()
            self._pending = {id_: one for id_, one in self._pending.items() if one.code.expires_at > now}
            if len(self._pending) >= MOST:
                raise TooManyCallsError(f"{MOST} sign-ins are under way; try again in some minutes")
        code = self.provider.begin()
        made = Pending(secrets.token_urlsafe(24), code, self._now() + code.interval)
        with self._lock:
            self._pending[made.id] = made
        return made

    def finish(self, id_: str) -> str | Pending:
        """Who it is, once; or the sign-in as it stands. The provider is not asked more often than it allows.

        Raises:
            UnknownEntityError: there is none of that id, or it is over.
            IdentityError, UnreachableError: as ``OpenIdProvider.ask``; after the former it is over.
        """
        with self._lock:
            pending = self._pending.get(id_)
            if pending is None or pending.code.expires_at <= self._now():
                self._pending.pop(id_, None)
                raise UnknownEntityError("there is no such sign-in, or it is over: begin again")
            if self._now() < pending.ask_at:
                return pending
            asked = replace(pending, ask_at=self._now() + pending.code.interval)
            self._pending[id_] = asked  # whoever comes meanwhile waits
        return self._asked(asked)

    def _asked(self, asked: Pending) -> str | Pending:
        try:
            found = self.provider.ask(asked.code)
        except IdentityError:
            self._drop(asked.id)
            raise
        if isinstance(found, NotYet):
            slower = found.after(asked.code.interval)
            later = replace(asked, code=replace(asked.code, interval=slower), ask_at=self._now() + slower)
            with self._lock:
                self._pending[asked.id] = later
            return later
        self._drop(asked.id)
        return found

    def _drop(self, id_: str) -> None:
        with self._lock:
            self._pending.pop(id_, None)
