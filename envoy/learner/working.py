"""A learner's site at work: its session in a thread, the desk on which orders wait, and what is asked of both.

The folder is an envoy's, and all that an envoy asks of its site is asked here: approvals, protection, the leak test,
the ledger, the roster of a secure sum. Nothing here speaks HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...utils import messages as m
from ...utils.data_spec import DataKind
from ...utils.errors import (
    ConfigError,
    DatasetError,
    NotApprovedError,
    PlanError,
    UnreachableError,
    WrongRoundError,
)
from ...utils.plan_bundle import Bundle, Manifest, manifest_in, open_bundle
from ...utils.tensors import Digest, Layout
from ..approval_guard import Approvals
from ..approvals import State
from ..config import EnvoyConfig
from ..decisions import opened, plan_proposed
from ..enrolment import Credentials
from ..fetching import PLANS_FOLDER
from ..link import Link
from ..renewing import Renewer
from ..site import boxed_trainer, site_of
from .noting_link import NotingLink
from .order_desk import OpenOrder, OrderDesk
from .own_data import Given, OwnData
from .ready_approvals import ReadyApprovals

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2
_END_SECONDS = 30.0


class WorkingSite:
    """One site, from ``start`` to ``close``.

    Args:
        folder: an envoy's, that has joined.
        config: its ``envoy.toml``.
        credentials: what it holds.
        link: the director.
        renewer: of what it holds.
        data: its data sets.
    """

    def __init__(
        self,
        folder: Path,
        config: EnvoyConfig,
        credentials: Credentials,
        link: Link,
        renewer: Renewer,
        data: OwnData,
    ) -> None:
        self.folder, self.config, self.name = folder, config, credentials.peer.name
        self._data, self._renewer = data, renewer
        sandbox, boxed = boxed_trainer(folder, config)
        self.desk = OrderDesk(boxed)
        self._ready: ReadyApprovals
        noting = NotingLink(link, self.desk.note_receipt, self.desk.note_refusal)
        self._site = site_of(folder, config, credentials, noting, sandbox, self.desk, self._only_ready)
        self._crash: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)

    def start(self) -> None:
        """Listen to the director."""
        self._renewer.start()
        self._thread.start()

    def close(self) -> None:
        """Finish what was handed in, and end."""
        deadline = time.monotonic() + _END_SECONDS
        while self._is_finishing() and time.monotonic() < deadline:
            self.desk.wait(_LOOK_SECONDS)
        self._site.end()
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS)
        self._renewer.close()
        self._site.close()

    def is_at_work(self, ref: m.TaskRef) -> bool:
        """Is the session busy with a round still?"""
        return self._thread.is_alive() and self._site.session.status().task == str(ref)

    def task(self, ref: m.TaskRef) -> tuple[m.Task, Manifest]:
        """What a round asks, and its plan.

        Raises:
            WrongRoundError: it was not begun here.
        """
        found = self._ready.task(ref)
        if found is None:
            raise WrongRoundError(f"{ref} was not begun at this site")
        return found

    def bundle(self, ref: m.TaskRef) -> Bundle:
        """A round's plan, every byte of it checked."""
        return open_bundle(self.folder / PLANS_FOLDER / ref.plan, ref.plan)

    def layout(self, ref: m.TaskRef) -> Layout:
        """Of a round's updates."""
        return self.bundle(ref).layout

    # ------------------------------------------------------------ waiting for a round

    def order(self, given: Given, name: str | None, timeout: float, approval_timeout: float) -> OpenOrder:
        """The round's order, once it is here; what was given is registered as the plan's data set meanwhile.

        Args:
            given: a registered name, a path, or arrays.
            name: the data set's; None: as the approved plan calls it.
            timeout: seconds, for the order.
            approval_timeout: seconds that a proposal may lie here undecided.

        Raises:
            NotApprovedError: something is proposed, and the site's data manager approved nothing of it.
            DatasetError: it is no data set, or not the one that the plan reads.
            UnreachableError: no round came.
            FederationError: this site refused a task meanwhile; the reason is the error's.
        """
        deadline, undecided_since = time.monotonic() + timeout, time.monotonic()
        self._see_that_it_is_data(given)
        while self.desk.take_refusal() is not None:
            pass  # of earlier rounds
        while True:
            self._check_alive()
            if (lying := self.desk.order) is not None:
                self._see_that_it_is(given, name, lying)
                return lying
            if (refusal := self.desk.take_refusal()) is not None:
                raise refusal
            plans = self._ready.plans()
            if plans:
                undecided_since = time.monotonic()
                self._register(given, name, plans)
            elif time.monotonic() - undecided_since > approval_timeout:
                self._complain_of_undecided()
            if time.monotonic() > deadline:
                self._complain_of_undecided()
                raise UnreachableError(self._why_no_order())
            self.desk.wait(_LOOK_SECONDS)

    def _see_that_it_is_data(self, given: Given) -> None:
        if isinstance(given, str | Path) and not self._data.is_name(given) and not Path(given).expanduser().exists():
            known = ", ".join(self._data.names) or "none"
            raise DatasetError(f"{str(given)[:200]!r} is no path here, and no registered data set; registered: {known}")

    def _register(self, given: Given, name: str | None, plans: tuple[Manifest, ...]) -> None:
        if self._data.is_name(given):
            return
        wanted = {plan.data.name for plan in plans if plan.data.kind is not DataKind.NONE}
        if name is None and len(wanted) > 1:
            raise DatasetError(f"the approved plans read {', '.join(sorted(wanted))}: say which with name=...")
        for one in {name} if name is not None else wanted:
            if not self._data.has(one):
                self._data.register(one, given)

    def _see_that_it_is(self, given: Given, name: str | None, lying: OpenOrder) -> None:
        record = lying.order.dataset
        if record is None:
            return  # the plan reads none
        if (name or record.name) != record.name or not self._data.fits(record.name, given):
            raise DatasetError(
                f"{lying.ref} reads the data set {record.name} of this site, which was recorded from something else"
                f" than what was given; train_local({record.name!r}) takes it as it is, and register_data(...,"
                " replace=True) records another before the round begins"
            )

    def _check_alive(self) -> None:
        if not self._thread.is_alive():
            raise UnreachableError(f"this learner's session has ended: {self._crash or 'it was closed or stopped'}")

    def _complain_of_undecided(self) -> None:
        with opened(self.folder) as (_, store):
            standings = store.books().standings.values()
        waiting = [one for one in standings if one.state(time.time()) is State.OFFERED]
        if waiting:
            digest = waiting[-1].proposal.digest
            raise NotApprovedError(
                f"study {waiting[-1].proposal.study} is proposed to this site, and nothing trains before its data"
                f" manager approved it: `envoy plan show {digest[:12]} --folder {self.folder}`, then `envoy plan"
                f" approve {digest[:12]} --folder {self.folder}`"
            )

    def _why_no_order(self) -> str:
        status = self._site.session.status()
        said = f"; last error: {status.last_error}" if status.last_error else ""
        line = "the line to the director stands" if status.is_connected else "there is no line to the director"
        return f"no round asked for this site's training in time; {line}{said}"

    # ------------------------------------------------------------

    def _only_ready(self, guard: Approvals) -> Approvals:
        self._ready = ReadyApprovals(guard, self._manifest_of, self._data.has)
        return self._ready

    def _manifest_of(self, proposal: Digest) -> Manifest | None:
        try:
            plan = plan_proposed(self.folder, proposal)
            return manifest_in(self.folder / PLANS_FOLDER / plan, plan)
        except (PlanError, NotApprovedError):
            return None  # on its way

    def _is_finishing(self) -> bool:
        lying = self.desk.order
        if not self._thread.is_alive() or (lying is not None and lying.handed_in is None):
            return False  # nobody hands it in any more
        return bool(self._site.session.status().task)

    def _run(self) -> None:
        try:
            self._site.run()
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            self._crash = error
            _LOG.exception("the learner's session ended")


def settings_of(lying: OpenOrder, manifest: Manifest) -> Mapping[str, Any]:
    """A round's settings: the approved plan's, and what approved patches changed."""
    return {**manifest.settings, **lying.order.settings}


def require_settings(lying: OpenOrder, manifest: Manifest, epochs: int | None, batch_size: int | None) -> None:
    """Are these the settings that this site approved?

    Raises:
        ConfigError: they are others; the approved ones hold.
    """
    held = settings_of(lying, manifest)
    for argument, key, given in (("epochs", "local_epochs", epochs), ("batch_size", "batch_size", batch_size)):
        if given is not None and given != held.get(key):
            raise ConfigError(
                f"{argument}={given!r}: plan {manifest.name} was approved with {key} = {held.get(key)}, and a learner"
                f" trains as it was approved; leave {argument} out, or let the researcher steer the run"
            )
