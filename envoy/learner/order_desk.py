"""A trainer that waits for somebody: a round's order lies on the desk until it is trained, and until it is handed in.

The session's thread stays in ``run`` for all of it, and does all of the work there; the caller's thread asks and waits.
Nothing leaves before ``hand_in``, and what leaves then passes the site's protection as any update does. An evaluation
waits for nobody.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...utils import errors
from ...utils import messages as m
from ...utils.errors import FederationError, StorageError, TrainingError, UnreachableError
from ...utils.tensors import Vector, bytes_of
from ..orders import WorkOrder, WorkResult
from ..payload import Payloads
from ..trainer import Trainer

_LOOK_SECONDS = 0.2  # how often a withdrawal is looked for; what the caller does wakes at once


@dataclass(slots=True, eq=False)
class OpenOrder:
    """One round's order to train, as it lies on the desk. The desk's lock guards it."""

    order: WorkOrder
    deadline: float  # time.monotonic, until which the director waits
    is_wanted: bool = False
    result: WorkResult | None = None
    update: Vector | None = field(default=None, repr=False)
    handed_in: Vector | None = field(default=None, repr=False)
    failure: FederationError | None = None
    is_over: bool = False  # it left the desk

    @property
    def ref(self) -> m.TaskRef:
        """The round's."""
        return self.order.ref


class OrderDesk:
    """A ``Trainer`` whose training orders wait; safe for one session and many callers.

    Args:
        trainer: does the work, in the site's box.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._changed = threading.Condition()
        self._open: OpenOrder | None = None
        self._refusals: list[m.Refusal] = []
        self._receipts: list[tuple[m.Receipt, float]] = []
        self._closed = False

    # ------------------------------------------------------------ the session's side

    def run(self, order: WorkOrder, timeout_seconds: float, cancelled: threading.Event) -> WorkResult:
        """Perform one order: an evaluation at once, a training when it is asked for, to its end."""
        if order.kind is m.TaskKind.EVALUATE:
            return self._trainer.run(order, timeout_seconds, cancelled)
        lying = OpenOrder(order, time.monotonic() + timeout_seconds)
        with self._changed:
            self._open = lying
            self._changed.notify_all()
        try:
            self._wait_for(lambda: lying.is_wanted, lying, cancelled, "asked to train")
            result = self._trainer.run(order, max(0.0, lying.deadline - time.monotonic()), cancelled)
            self._take(lying, result)
            self._wait_for(lambda: lying.handed_in is not None, lying, cancelled, "given what it submits")
            _replace(order.update_path, lying.handed_in)
        except FederationError as error:
            with self._changed:
                lying.failure = error
            raise
        finally:
            with self._changed:
                lying.is_over, self._open = True, None
                self._changed.notify_all()
        return result

    def warm_up(self) -> None:
        """The line stands."""
        self._trainer.warm_up()

    def close(self) -> None:
        """End what runs, and wake all who wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._trainer.close()

    def note_refusal(self, refusal: m.Refusal) -> None:
        """The site told the director that there will be no answer."""
        with self._changed:
            self._refusals.append(refusal)
            self._changed.notify_all()

    def note_receipt(self, receipt: m.Receipt) -> None:
        """The director has what was sent."""
        with self._changed:
            self._receipts.append((receipt, time.time()))
            self._changed.notify_all()

    # ------------------------------------------------------------ the caller's side

    @property
    def order(self) -> OpenOrder | None:
        """What lies on the desk now."""
        with self._changed:
            return self._open

    def wait(self, seconds: float) -> None:
        """Until something changes here, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def trained(self, lying: OpenOrder) -> tuple[WorkResult, Vector]:
        """Train an order, once; what came out is the caller's, as often as it is asked for.

        Raises:
            FederationError: training failed, or nobody waits for it any more.
        """
        with self._changed:
            lying.is_wanted = True
            self._changed.notify_all()
            while lying.result is None and not lying.is_over:
                self._changed.wait(_LOOK_SECONDS)
            if lying.result is None or lying.update is None:
                raise lying.failure or TrainingError(f"{lying.ref}: this site was ended before it was trained")
            return lying.result, lying.update.copy()

    def hand_in(self, lying: OpenOrder, vector: Vector) -> None:
        """Let a trained order's answer go its way.

        Raises:
            FederationError: nobody waits for it any more.
        """
        with self._changed:
            if lying.is_over or lying.result is None:
                raise lying.failure or TrainingError(f"{lying.ref}: nothing was trained that could be handed in")
            lying.handed_in = vector
            self._changed.notify_all()

    def receipt(self, ref: m.TaskRef, is_at_work: Callable[[], bool], deadline: float) -> tuple[m.Receipt, float]:
        """Wait for the director's receipt of a round, and say when it came (seconds since 1970).

        Args:
            ref: the round; a later attempt of it, with the same answer, counts too.
            is_at_work: is the site still busy with any of it?
            deadline: time.monotonic.

        Raises:
            FederationError: what this site or the director refused.
            UnreachableError: none came in time; the site goes on trying.
        """
        while True:
            is_busy = is_at_work()  # before the lists: what ends its work notes first
            with self._changed:
                for receipt, at in self._receipts:
                    if same_round(receipt.ref, ref):
                        return receipt, at
                if (refusal := self._refusal_of(ref)) is not None:
                    raise refusal
                if self._closed or not is_busy:
                    raise TrainingError(f"{ref} closed, or was withdrawn, before the director had this site's update")
                if time.monotonic() > deadline:
                    raise UnreachableError(f"no receipt of {ref} yet; what was handed in is kept here, and sent")
                self._changed.wait(_LOOK_SECONDS)

    def take_refusal(self) -> FederationError | None:
        """What this site refused last, once."""
        with self._changed:
            return _error_of(self._refusals.pop()) if self._refusals else None

    def _refusal_of(self, ref: m.TaskRef) -> FederationError | None:
        found = next((one for one in self._refusals if one.ref == ref), None)
        return None if found is None else _error_of(found)

    # ------------------------------------------------------------

    def _take(self, lying: OpenOrder, result: WorkResult) -> None:
        size = lying.order.update_path.stat().st_size
        update = Payloads(lying.order.update_path.parent).take_update(size)
        with self._changed:
            lying.result, lying.update = result, update
            self._changed.notify_all()

    def _wait_for(self, is_so: Callable[[], bool], lying: OpenOrder, cancelled: threading.Event, what: str) -> None:
        with self._changed:
            while not is_so():
                if cancelled.is_set() or self._closed:
                    raise TrainingError(f"{lying.ref}: withdrawn before this site was {what}")
                if time.monotonic() > lying.deadline:
                    raise TrainingError(f"{lying.ref}: the round was over before this site was {what}")
                self._changed.wait(_LOOK_SECONDS)


def same_round(one: m.TaskRef, other: m.TaskRef) -> bool:
    """Are they attempts of one round?"""
    return (one.run, one.round, one.plan) == (other.run, other.round, other.plan)


def _error_of(refusal: m.Refusal) -> FederationError:
    kind = getattr(errors, refusal.error) if refusal.error in errors.__all__ else FederationError
    found: FederationError = kind(refusal.reason)
    return found


def _replace(path: Path, vector: Vector | None) -> None:
    """Put what was handed in into the update's place, as a new file: the plan's process still holds the old one open.

    Raises:
        StorageError: there is no room.
    """
    if vector is None:
        return
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of mode 600
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes_of(vector))
        Path(name).replace(path)
    except OSError as error:
        raise StorageError(f"no room for what is submitted: {error.strerror}") from error
