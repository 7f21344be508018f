"""The data managers of a federation on one machine, of which all sites have the same owner: each approves what comes.

What they do is what ``envoy plan approve --yes`` does, with the same files, checks and signatures; only the reading is
spared. Each approval is told to whoever runs the federation; the demo prints it. Between hospitals that is for each own
data manager.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ..envoy.approval_store import APPROVALS_FILE, ApprovalStore
from ..envoy.approvals import Standing, State
from ..envoy.decisions import Wish, approvable, approve_here, opened
from ..utils.errors import FederationError, PlanError

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.1


class OwnDataManagers:
    """Looks into the folders of sites, and approves what waits there, as long as the federation lives.

    Args:
        approved: is told the site's folder and what was approved there.
    """

    def __init__(self, approved: Callable[[Path, Standing], None] = lambda _folder, _standing: None) -> None:
        self._approved = approved
        self._folders: tuple[Path, ...] = ()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="data-managers")

    def watch(self, folder: Path) -> None:
        """One more site."""
        self._folders = (*self._folders, folder)
        if not self._thread.is_alive() and not self._ended.is_set():
            self._thread.start()

    def end(self) -> None:
        """Approve nothing any more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        with ExitStack() as stack:
            stores: dict[Path, ApprovalStore] = {}
            while not self._ended.wait(_LOOK_SECONDS):
                for folder in self._folders:
                    try:
                        if folder not in stores and (folder / APPROVALS_FILE).exists():
                            stores[folder] = stack.enter_context(opened(folder))[1]
                        if folder in stores:
                            self._approve_what_waits(folder, stores[folder])
                    except FederationError as error:
                        _LOG.warning("nothing is approved in %s: %s", folder.name, error)

    def _approve_what_waits(self, folder: Path, store: ApprovalStore) -> None:
        now = time.time()
        for digest, standing in store.books().standings.items():
            if standing.state(now) is State.OFFERED:
                try:
                    found = approvable(folder, digest, Wish())
                except PlanError:
                    continue  # its plan is still on its way
                self._approved(folder, approve_here(folder, found, "the owner of all sites"))
