"""The parent's side of local work: a child process that runs the plan, killed when it hangs, is withdrawn or is done.

``ChildTrainer`` keeps one child for each plan in turn, so that torch is imported once, in the box of ``sandbox``.
``InProcessTrainer`` runs the same work in the caller's process, for simulations and tests of approved plans; it has no
box, and cannot stop a plan that loops.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from ..utils.errors import FederationError, SandboxError, TrainingError
from ..utils.plan_bundle import manifest_in
from ..utils.tensors import Digest
from ..utils.visible import visible
from .exposures import Exposed, Exposures
from .order_files import OrderFiles, open_files
from .order_line import DATA, send
from .orders import CellsOrder, WorkOrder, WorkResult, order_to_json, result_from_json
from .premises import view_of
from .refusals import WORDS_OF_THE_PLAN
from .sandbox.box import Program
from .sandbox.policy import Tier
from .sandbox.sandbox import Sandbox
from .sandbox.scratch import sweep
from .sandbox.view import View
from .splits import Split
from .suppression import table
from .workbench import Workbench
from .worker import CANNOT_NARROW, ONE_THREAD, error_from_json
from .worker_log import WorkerLog

__all__ = ["ChildTrainer", "InProcessTrainer", "Trainer", "WorkOrder", "WorkResult"]

LOG_FILE = "worker.log"
_MAX_ANSWER_BYTES = 16 << 20
_MAX_SAID = 500
_CANCEL_SECONDS = 0.1  # how often a withdrawal is looked for; an answer wakes at once
_log = logging.getLogger(__name__)


class Trainer(Protocol):
    """Performs orders."""

    def run(self, order: WorkOrder, timeout_seconds: float, cancelled: threading.Event) -> WorkResult:
        """Perform one order.

        Raises:
            TrainingError: the plan raised, hung or died, or the order was withdrawn.
            FederationError: as ``Workbench.perform``.
        """
        ...

    def warm_up(self) -> None:
        """The line to the director stands: use the time until the first order."""
        ...

    def close(self) -> None:
        """End what runs; may be called twice."""
        ...


class InProcessTrainer:
    """Runs orders in this process, one at a time in the whole process: torch has one random state."""

    _one_at_a_time = threading.Lock()

    def __init__(self) -> None:
        self._workbench = Workbench()

    def run(self, order: WorkOrder, timeout_seconds: float, cancelled: threading.Event) -> WorkResult:
        """Perform one order; the timeout is only looked at afterwards."""
        started = time.monotonic()
        with self._one_at_a_time:
            if cancelled.is_set():
                raise TrainingError(f"{order.ref}: withdrawn")
            with open_files(order) as opened:
                result = self._workbench.perform(order, opened.files)
                opened.keep_state()
        if time.monotonic() - started > timeout_seconds:
            raise TrainingError(f"{order.ref}: training did not finish within {timeout_seconds:g} s")
        return result

    def warm_up(self) -> None:
        """Nothing to do: this process has what it needs."""

    def close(self) -> None:
        """Let the update's file go."""
        self._workbench.close()


class ChildTrainer:
    """Runs orders in a child process, in the site's box.

    Args:
        log_folder: takes the child's stdout and stderr as ``worker.log``; it stays at the site.
        sandbox: the box.
        preload_torch: ``warm_up``, and the end of a child that was killed, start one that imports torch while nobody
            waits.
        premises: what such a child is started with, before it is known which plan it will run.
    """

    def __init__(
        self,
        log_folder: Path,
        sandbox: Sandbox,
        *,
        preload_torch: bool = False,
        premises: Callable[[], View] = lambda: View(frozenset()),
    ) -> None:
        self._log_folder, self._sandbox, self._premises, self._preload = log_folder, sandbox, premises, preload_torch
        sweep(log_folder)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._child: _Child | None = None
        self._exposures = Exposures()

    def warm_up(self) -> None:
        """Start a child that imports torch, if that was asked for and there is none yet."""
        with self._lock:
            self._warm_up()

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one: of its box, where that is a process of its own."""
        return self._child.pid if self._child else None

    def run(self, order: WorkOrder, timeout_seconds: float, cancelled: threading.Event) -> WorkResult:
        """Perform one order in the child; another plan gets a fresh one."""
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            if self._closed.is_set():
                raise TrainingError(f"{order.ref}: the envoy is shutting down")
            data = self._exposures.of(order, manifest_in(order.bundle, order.ref.plan), deadline, cancelled)
            order = _with_cells(order, data)
            # Its pages stay warm from round to round of one plan; another plan reads nothing of what this one made.
            is_anothers = self._child is None or not self._child.has_run(order.ref.plan)
            with open_files(order, wipes_update=is_anothers) as opened:
                try:
                    answer = self._ask(order, opened.files, data, deadline, timeout_seconds, cancelled)
                    if CANNOT_NARROW in answer:
                        _log.warning("a fresh training process is started: %s", _said(answer))
                        self._let_go()
                        answer = self._ask(order, opened.files, data, deadline, timeout_seconds, cancelled)
                except BaseException:
                    self._let_go()
                    self._warm_up()
                    raise
                result = _told(_result(order, answer), data)
                opened.keep_state()
        return result

    def close(self) -> None:
        """End the child, also in the middle of an order of another thread."""
        self._closed.set()
        self._exposures.kill()
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._let_go()
            self._exposures.forget()

    def _ask(
        self,
        order: WorkOrder,
        files: OrderFiles,
        data: Exposed | None,
        deadline: float,
        timeout_seconds: float,
        cancelled: threading.Event,
    ) -> dict[str, object]:
        child = self._child_for(order)
        child.send(order, files, data)
        while True:
            left = deadline - time.monotonic()
            answer = child.receive(min(_CANCEL_SECONDS, max(0.0, left)))
            if answer is not None:
                return answer
            if cancelled.is_set() or self._closed.is_set():
                raise TrainingError(f"{order.ref}: withdrawn while it was trained")
            if left <= 0:
                raise TrainingError(f"{order.ref}: training did not finish within {timeout_seconds:g} s and was ended")

    def _child_for(self, order: WorkOrder) -> _Child:
        """The one that runs this plan already, one that waits for its first order, or a fresh one."""
        view = view_of(order)
        if self._child is not None and not (self._child.is_alive and self._child.may_run(order.ref.plan, view)):
            self._let_go()
        if self._child is None:
            self._child = _Child(self._log_folder, self._sandbox, view, preload_torch=False)
        return self._child

    def _warm_up(self) -> None:
        if not self._preload or self._child is not None or self._closed.is_set():
            return
        try:
            if self._sandbox.can_narrow:
                self._child = _Child(self._log_folder, self._sandbox, self._premises(), preload_torch=True)
        except FederationError as error:  # the first order says it again, to the director too
            _log.warning("no training process waits for work: %s", error)

    def _let_go(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def _result(order: WorkOrder, answer: dict[str, object]) -> WorkResult:
    if CANNOT_NARROW in answer:
        raise SandboxError(f"{order.ref}: the training process cannot be confined: {_said(answer)}")
    if "error" in answer:
        raise error_from_json(answer)
    try:
        return result_from_json(answer)
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{order.ref}: the worker's answer cannot be read ({type(error).__name__})") from error


def _with_cells(order: WorkOrder, data: Exposed | None) -> WorkOrder:
    """The order with the cells that the child is to evaluate: those that may be told, and no others."""
    if data is None or data.scheme is None or data.scheme.whole is None:
        return order
    places = tuple((one.attribute, one.code) for one in data.scheme.cells)
    return replace(order, cells=CellsOrder(Split[data.scheme.split.upper()].value, places))


def _told(result: WorkResult, data: Exposed | None) -> WorkResult:
    """What the child measured, rounded and suppressed; the bare numbers go no further."""
    scheme = None if data is None else data.scheme
    return replace(result, cells={}, fairness=None if scheme is None else table(scheme, result.cells))


def _said(answer: dict[str, object]) -> str:
    """Why a process cannot be confined; a plan's code may have said it."""
    return visible(str(answer[CANNOT_NARROW])[:_MAX_SAID])


class _Child:
    """One worker process in its box, and the two lines to it.

    Args:
        log_folder: takes what it prints.
        sandbox: the box.
        view: what it may see; with ``preload_torch``, what it can give up all but one plan's of.
        preload_torch: import torch at once, and wait.
    """

    def __init__(self, log_folder: Path, sandbox: Sandbox, view: View, *, preload_torch: bool) -> None:
        self._sandbox, self._view, self._is_wide = sandbox, view, preload_torch
        self._plan: Digest | None = None  # what it has run; None as long as it is fresh
        self._data: Digest | None = None  # which exposed dataset it was given
        self._answer = bytearray()
        self._ended = False
        self._log = WorkerLog(log_folder / LOG_FILE)
        theirs, self._socket = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        program = Program(
            module="fedveil.envoy.worker",
            arguments=(str(theirs.fileno()), str(lifeline), *(["torch"] if preload_torch else [])),
            view=view,
            descriptors=(theirs.fileno(), lifeline),
            output=self._log.writable,
            environment=ONE_THREAD if preload_torch else {},
        )
        try:
            self._boxed = sandbox.start(program)
        except BaseException:
            self._socket.close()
            os.close(self._lifeline)
            self._log.close()
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        self._log.handed_over()

    @property
    def is_alive(self) -> bool:
        return self._boxed.is_alive

    @property
    def pid(self) -> int:
        return self._boxed.process.pid

    def has_run(self, plan: Digest) -> bool:
        """Was it this plan that it ran last? One that is fresh ran none."""
        return self._plan == plan

    def may_run(self, plan: Digest, view: View) -> bool:
        """Has it run nothing but this plan, and may it see this and nothing else, or give up what is too much?"""
        if self._plan is not None:
            return self._plan == plan and (self._view == view or self._boxed.tier is Tier.NONE)
        return self._boxed.tier is Tier.NONE or (self._view.covers(view) if self._is_wide else self._view == view)

    def send(self, order: WorkOrder, files: OrderFiles, data: Exposed | None) -> None:
        """Hand an order and its files over, and the dataset's file where the child has not had it yet."""
        rights = None
        if self._is_wide:
            self._is_wide, self._view = False, view_of(order)
            rights = self._sandbox.narrowed(self._view, self._boxed)
        self._plan = order.ref.plan
        is_new = data is not None and data.key != self._data
        document = {"order": order_to_json(order), "rights": None if rights is None else asdict(rights)}
        try:
            held = {DATA: data.file} if data is not None and is_new else {}
            send(self._socket, document, files.named() | held)
            self._data = None if data is None else data.key
        except OSError as error:
            raise self._death(f"{order.ref}: ") from error

    def receive(self, seconds: float) -> dict[str, object] | None:
        """The answer, or None if it did not come in this time; what is printed meanwhile goes to the log."""
        lines = [self._socket.fileno(), *([self._log.readable] if self._log.may_say_more else [])]
        ready = select.select(lines, [], [], seconds)[0]
        self._log.copy()
        if self._socket.fileno() not in ready:
            return None
        try:
            piece = self._socket.recv(1 << 20)
        except ConnectionResetError:
            piece = b""
        self._answer += piece
        if not piece:
            raise self._death()
        if len(self._answer) > _MAX_ANSWER_BYTES:
            raise TrainingError("the worker's answer is too long")
        if not self._answer.endswith(b"\n"):
            return None
        self._log.copy()
        line, self._answer = bytes(self._answer), bytearray()
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TrainingError("the worker's answer is no JSON") from error
        if not isinstance(answer, dict):
            raise TrainingError("the worker's answer is no JSON object")
        return answer

    def kill(self) -> None:
        """End the process and all that it started."""
        self._boxed.kill()

    def end(self) -> None:
        """Kill it, and let its lines go."""
        if self._ended:
            return
        self._ended = True
        self._boxed.end()
        self._log.close()
        self._socket.close()
        os.close(self._lifeline)

    def _death(self, task: str = "") -> TrainingError:
        """How it ended is the plan's to choose, a byte each time: it is for the site alone."""
        error = TrainingError(f"{task}{self._how_it_died()}")
        error.add_note(WORDS_OF_THE_PLAN)
        return error

    def _how_it_died(self) -> str:
        try:
            code = self._boxed.exit_code(2)
        except subprocess.TimeoutExpired:
            return "the training process hung up; see the worker log"
        if code >= 0:
            return f"the training process ended with code {code}; see the worker log"
        known = {one.value: one.name for one in signal.Signals}  # most real-time signals have no name
        name = known.get(-code, f"signal {-code}")
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"the training process was ended by {name}{hint}"
