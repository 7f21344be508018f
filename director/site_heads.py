"""The heads of the sites' audit logs, as they come with heartbeats: kept, and refused where a log does not go forward.

A site's log is signed by its identity key, which the registrar certified. A head is logged when a round ended since the
site's last, so that no site can write its log anew without the director's showing it. A site whose log went back, was
forked or is of another key is told so, and is not asked in further rounds, until somebody says ``director audit
accept-site``; also after a restart, since all of this is read from the director's log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from ..utils.audit_chain import Entry, SignedHead
from ..utils.audit_witness import SITE, SITE_ANEW, SITE_HEAD, SITE_SUSPECT, SITE_WITNESSED, check_follows, head_in
from ..utils.errors import MalformedMessageError, ProtocolError, StorageError, SuspectLogError
from ..utils.messages import EnvoyName
from .audit import DirectorAudit

_LOG = logging.getLogger(__name__)
_REGISTRAR = "registrar: the site joined anew, with another identity key"


class SiteHeads:
    """What is known of each site's log; safe to share between threads.

    Args:
        audit: the director's log.
        entries: what stands in it already.
        key_of: a member's identity key by the registrar; None for nobody.
    """

    def __init__(
        self, audit: DirectorAudit, entries: Iterable[Entry], key_of: Callable[[EnvoyName], bytes | None]
    ) -> None:
        self._audit, self._key_of = audit, key_of
        self._lock = threading.Lock()
        self._last: dict[EnvoyName, SignedHead] = {}  # that came
        self._logged: dict[EnvoyName, SignedHead] = {}
        self._logged_at: dict[EnvoyName, int] = {}  # how many rounds had ended then
        self._was_behind: set[EnvoyName] = set()
        self._suspicions: dict[EnvoyName, str] = {}
        for entry in entries:
            self._take_in(entry)

    def exchange(self, envoy: EnvoyName, raw: bytes) -> bytes:
        """A heartbeat brought a head, empty from an envoy that keeps no log; gives the director's own.

        A disk that is full is this director's own matter: the head is kept with a later heartbeat.

        Raises:
            ProtocolError: this site's log is not the one that was seen before; the text says what to do.
        """
        try:
            self._see(envoy, raw)
        except StorageError as error:
            _LOG.error("audit: the head of envoy=%s is not kept: %s", envoy, error)
        return self._audit.head_bytes

    def _see(self, envoy: EnvoyName, raw: bytes) -> None:
        self._audit.refresh()
        with self._lock:
            self._drain()
            if envoy in self._suspicions:
                raise ProtocolError(_refusal(envoy, self._suspicions[envoy]))
            try:
                head = self._checked(envoy, raw)
            except (MalformedMessageError, SuspectLogError) as error:
                self._audit.suspects(envoy, str(error), raw)
                self._suspicions[envoy] = str(error)
                _LOG.error("audit: the log of envoy=%s is suspect: %s", envoy, error)
                raise ProtocolError(_refusal(envoy, str(error))) from error
            if head is not None:
                self._keep(envoy, head)

    @property
    def suspicions(self) -> dict[EnvoyName, str]:
        """The sites that are not asked, and why."""
        with self._lock:
            self._drain()
            return dict(self._suspicions)

    def _checked(self, envoy: EnvoyName, raw: bytes) -> SignedHead | None:
        """The head, if it could be of this site's log.

        One that is older than the last is believed to be late the first time: a call may be overtaken by the next.
        """
        before = self._last.get(envoy)
        if not raw:
            check_follows(before, None, envoy)
            return None
        head = SignedHead.from_bytes(raw)
        if before is None or head.key != before.key:
            if head.key != self._key_of(envoy):
                raise SuspectLogError(f"the audit log of {envoy} is not signed by its identity key")
            if before is not None:
                self._audit.takes_anew(envoy, _REGISTRAR)
                self._forget(envoy)
                return head
        if before is not None and head.number < before.number and envoy not in self._was_behind:
            self._was_behind.add(envoy)
            return None
        check_follows(before, head, envoy)
        self._was_behind.discard(envoy)
        return head

    def _keep(self, envoy: EnvoyName, head: SignedHead) -> None:
        ended = self._audit.rounds_ended
        if head != self._logged.get(envoy) and self._logged_at.get(envoy) != ended:
            self._audit.witnessed(envoy, head)
            self._logged[envoy], self._logged_at[envoy] = head, ended
        self._last[envoy] = head

    def _drain(self) -> None:
        while not self._audit.learned.empty():  # this alone takes from it
            self._take_in(self._audit.learned.get())

    def _take_in(self, entry: Entry) -> None:
        envoy = EnvoyName(str(entry.event.get(SITE, "")))
        match entry.event.get("what"):
            case what if what == SITE_WITNESSED:
                head = head_in(entry, SITE_HEAD)
                if head is not None:
                    self._last[envoy] = self._logged[envoy] = head
            case what if what == SITE_SUSPECT:
                self._suspicions[envoy] = str(entry.event.get("reason"))
            case what if what == SITE_ANEW:
                self._forget(envoy)

    def _forget(self, envoy: EnvoyName) -> None:
        for known in (self._last, self._logged, self._logged_at, self._suspicions):
            known.pop(envoy, None)
        self._was_behind.discard(envoy)


def _refusal(envoy: EnvoyName, suspicion: str) -> str:
    return (
        f"{suspicion}. The director does not ask {envoy} any more. If the site was set up anew or from a backup, tell"
        f" the director's operator, who says `director audit accept-site {envoy}`"
    )
