"""The heads of audit logs that go with heartbeats: this site's to the director, the director's back.

One is logged when a task began or ended since the last, so that every round leaves the other side's head at each; in
between they are only looked at. While the director's log is suspect, no task of it is done.
"""

from __future__ import annotations

import logging
import threading

from ..utils import messages as m
from ..utils.errors import ProtocolError, StorageError
from .audit import SiteAudit

_LOG = logging.getLogger(__name__)


class Witnessing:
    """What a session does about heads.

    Args:
        audit: this site's log; None in rehearsals without one, where nothing is exchanged.
    """

    def __init__(self, audit: SiteAudit | None) -> None:
        self._audit = audit
        self._is_due, self._wake = threading.Event(), threading.Event()
        self._told = ""

    def round_changed(self) -> None:
        """A task began or ended: heads are exchanged at once, and logged."""
        self._is_due.set()
        self._wake.set()

    def pause(self, seconds: float) -> None:
        """Wait for the time of the next heartbeat."""
        self._wake.wait(seconds)
        self._wake.clear()

    def wake(self) -> None:
        """Wait no longer."""
        self._wake.set()

    def own_head(self) -> bytes:
        """This site's, as it travels; empty without a log."""
        return self._audit.head.to_bytes() if self._audit is not None else b""

    def see(self, acknowledgement: m.Acknowledgement) -> None:
        """Look at the director's head, and log it where it is due.

        Raises:
            SuspectLogError: the director's log is not the one that was seen before; or this site's own was changed.
            StorageError: it cannot be logged; it is due again.
        """
        if self._audit is None:
            return
        is_due = self._is_due.is_set()
        self._is_due.clear()
        try:
            self._audit.refresh()  # somebody may have taken the director's log anew
            self._audit.witnessed(acknowledgement.audit_head, is_due=is_due)
            self._told = ""
        except StorageError:
            if is_due:
                self._is_due.set()
            raise

    def complain(self, text: str) -> None:
        """Say once in the site's log what is wrong."""
        if text != self._told:
            _LOG.error("audit: %s", text)
        self._told = text

    def check(self, task: m.Task) -> None:
        """May this site work for this director?

        Raises:
            ProtocolError: the director's log is not the one that was seen before.
        """
        if self._audit is not None and self._audit.suspicion:
            raise ProtocolError(f"{task.ref}: {self._audit.suspicion}")
