"""The parent's side of local work: a child process that runs the plan, killed when it hangs, is withdrawn or is done.

``ChildTrainer`` keeps one child for each plan in turn, so that torch is imported once. ``InProcessTrainer`` runs the
same work in the caller's process, for simulations and tests of approved plans; it cannot stop a plan that loops.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO, Protocol

from ..utils.errors import StorageError, TrainingError
from ..utils.plan_bundle import manifest_in
from ..utils.tensors import Digest
from .exposures import Exposed, Exposures
from .order_line import DATA, send
from .orders import WorkOrder, WorkResult, order_to_json, result_from_json
from .workbench import Workbench
from .worker import error_from_json

__all__ = ["ChildTrainer", "InProcessTrainer", "Trainer", "WorkOrder", "WorkResult"]

LOG_FILE = "worker.log"
_MAX_LOG_BYTES = 10 << 20
_MAX_ANSWER_BYTES = 16 << 20
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
            result = self._workbench.perform(order)
        if time.monotonic() - started > timeout_seconds:
            raise TrainingError(f"{order.ref}: training did not finish within {timeout_seconds:g} s")
        return result

    def warm_up(self) -> None:
        """Nothing to do: this process has what it needs."""

    def close(self) -> None:
        """Let the update's file go."""
        self._workbench.close()


class ChildTrainer:
    """Runs orders in a child process.

    Args:
        log_folder: takes the child's stdout and stderr as ``worker.log``; it stays at the site.
        preload_torch: ``warm_up``, and the end of a child that was killed, start one that imports torch while nobody
            waits.
    """

    def __init__(self, log_folder: Path, *, preload_torch: bool = False) -> None:
        self._log_folder, self._preload = log_folder, preload_torch
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._child: _Child | None = None
        self._plan: Digest | None = None  # what the child has run; None as long as it is fresh
        self._exposures = Exposures()

    def warm_up(self) -> None:
        """Start a child that imports torch, if that was asked for and there is none yet."""
        with self._lock:
            if self._preload and self._child is None and not self._closed.is_set():
                self._child = _Child(self._log_folder, preload_torch=True)

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.process.pid if self._child else None

    def run(self, order: WorkOrder, timeout_seconds: float, cancelled: threading.Event) -> WorkResult:
        """Perform one order in the child; another plan gets a fresh one."""
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            if self._closed.is_set():
                raise TrainingError(f"{order.ref}: the envoy is shutting down")
            manifest = manifest_in(order.bundle, order.ref.plan)
            data = self._exposures.of(order, manifest, deadline, cancelled)
            child = self._child_for(order.ref.plan)
            try:
                child.send(order, data)
                answer = self._wait(child, order, deadline, timeout_seconds, cancelled)
            except BaseException:
                self._retire()
                raise
        if "error" in answer:
            raise error_from_json(answer)
        try:
            return result_from_json(answer)
        except (ValueError, TypeError, KeyError) as error:
            raise TrainingError(f"{order.ref}: the worker's answer cannot be read ({type(error).__name__})") from error

    def close(self) -> None:
        """End the child, also in the middle of an order of another thread."""
        self._closed.set()
        self._exposures.kill()
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            if self._child is not None:
                self._child.end()
                self._child = None
            self._exposures.forget()

    def _wait(
        self, child: _Child, order: WorkOrder, deadline: float, timeout_seconds: float, cancelled: threading.Event
    ) -> dict[str, object]:
        while True:
            left = deadline - time.monotonic()
            answer = child.receive(min(_CANCEL_SECONDS, max(0.0, left)))
            if answer is not None:
                return answer
            if cancelled.is_set() or self._closed.is_set():
                raise TrainingError(f"{order.ref}: withdrawn while it was trained")
            if left <= 0:
                raise TrainingError(f"{order.ref}: training did not finish within {timeout_seconds:g} s and was ended")

    def _child_for(self, plan: Digest) -> _Child:
        if self._child is not None and (self._plan not in (None, plan) or not self._child.is_alive):
            self._child.end()
            self._child = None
        if self._child is None:
            self._child = _Child(self._log_folder, preload_torch=False)
        self._plan = plan
        return self._child

    def _retire(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child, self._plan = None, None
        if self._preload and not self._closed.is_set():
            self._child = _Child(self._log_folder, preload_torch=True)


class _Child:
    """One worker process and the two lines to it."""

    def __init__(self, log_folder: Path, *, preload_torch: bool) -> None:
        theirs, self._socket = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        arguments = [str(theirs.fileno()), str(lifeline), *(["torch"] if preload_torch else [])]
        try:
            with theirs, _log_file(log_folder) as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "fedveil.envoy.worker", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs.fileno(), lifeline),
                    start_new_session=True,
                )
        except OSError as error:
            self._socket.close()
            os.close(self._lifeline)
            raise StorageError(f"the training process cannot be started: {error.strerror}") from error
        finally:
            os.close(lifeline)
        self._answer = bytearray()
        self._data: Digest | None = None  # which exposed dataset it was given
        self._ended = False

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def send(self, order: WorkOrder, data: Exposed | None) -> None:
        """Hand an order over, and the dataset's file where the child has not had it yet."""
        is_new = data is not None and data.key != self._data
        try:
            send(self._socket, order_to_json(order), {DATA: data.file} if data is not None and is_new else {})
            self._data = None if data is None else data.key
        except OSError as error:
            raise TrainingError(f"{order.ref}: {self._how_it_died()}") from error

    def receive(self, seconds: float) -> dict[str, object] | None:
        """The answer, or None if it did not come in this time."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return None
        try:
            piece = self._socket.recv(1 << 20)
        except ConnectionResetError:
            piece = b""
        self._answer += piece
        if not piece or len(self._answer) > _MAX_ANSWER_BYTES:
            raise TrainingError(self._how_it_died() if not piece else "the worker's answer is too long")
        if not self._answer.endswith(b"\n"):
            return None
        line, self._answer = bytes(self._answer), bytearray()
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise TrainingError("the worker's answer is no JSON") from error
        if not isinstance(answer, dict):
            raise TrainingError("the worker's answer is no JSON object")
        return answer

    def kill(self) -> None:
        """End the process and all that it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, and let its lines go."""
        if self._ended:
            return
        self._ended = True
        self.kill()
        self.process.wait()
        self._socket.close()
        os.close(self._lifeline)

    def _how_it_died(self) -> str:
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "the training process hung up; see the worker log"
        if code >= 0:
            return f"the training process ended with code {code}; see the worker log"
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"the training process was ended by {name}{hint}"


def _log_file(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOG_FILE
    if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")
