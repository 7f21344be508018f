"""A process in its box: started by one thread that outlives it, ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ...utils.errors import StorageError
from .cgroup import ControlGroup
from .policy import Tier

_SILENT_SECONDS = 2.0
_ENDED = frozenset("ZX")  # proc(5): states of what its parent has yet to ask for
_BY_SIGNAL = 128  # bubblewrap's exit status is this and the signal's number


@dataclass(slots=True)
class Boxed:
    """One box; ``end`` leaves nothing of it."""

    process: subprocess.Popen[bytes]
    tier: Tier
    group: ControlGroup | None = None
    scratch: Path | None = None
    first: tuple[int, int] | None = None  # pid, pidfd of the first inside; all others end before it is gone
    _ended: bool = field(default=False)

    @property
    def is_alive(self) -> bool:
        """Does it run?"""
        return self.process.poll() is None

    def exit_code(self, timeout_seconds: float) -> int:
        """As ``Popen.wait``: below 0 it is a signal's.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        code = self.process.wait(timeout_seconds)
        return _BY_SIGNAL - code if self.tier is Tier.BUBBLEWRAP and code > _BY_SIGNAL else code

    def cpu_seconds(self) -> float:
        """That all of its processes have used up to now; 0 when it is gone. Asked often, the last answer is the sum."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return _cpu_seconds(self.process.pid if self.first is None else self.first[0])
        return 0.0

    def kill(self) -> None:
        """End the process and all that it started; from any thread."""
        if self._ended:
            return
        if self.first is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.first[1], signal.SIGKILL)
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.group is not None:
            self.group.kill()

    def end(self) -> None:
        """Kill it, wait until nothing of it runs, and wipe what it left."""
        if self._ended:
            return
        self.kill()
        self.process.wait()
        self._ended = True
        if self.first is None:
            _wait_for_group(self.process.pid)
        else:
            select.select([self.first[1]], [], [], _SILENT_SECONDS)
            os.close(self.first[1])
        if self.group is not None:
            self.group.remove()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


def started(
    command: Sequence[str], descriptors: Sequence[int], output: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A process in a session of its own, that gets these descriptors alone.

    Raises:
        StorageError: it cannot be started.
    """
    try:
        return _starter().submit(_start, command, descriptors, output, environment).result()
    except OSError as error:
        raise StorageError(f"the training process cannot be started: {error.strerror}") from error


def first_process(told: int) -> tuple[int, int] | None:
    """Pid and pidfd of the first process in bubblewrap's box, which it names on this pipe; None if there is none."""
    said = b""
    while select.select([told], [], [], _SILENT_SECONDS)[0] and (piece := os.read(told, 4096)):
        said += piece
    with contextlib.suppress(ValueError, KeyError, ProcessLookupError):
        number = int(json.loads(said)["child-pid"])
        return number, os.pidfd_open(number)
    return None


def _wait_for_group(leader: int) -> None:
    """Until nothing of a killed group runs, for a while.

    What has ended stays in the group until its parent asks for it. That is the machine's first process once its own
    parent was killed, and some of those ask late or never: it is not waited for.
    """
    deadline = time.monotonic() + _SILENT_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(leader, 0)
            if not _runs(leader):
                return
            time.sleep(0.002)


def _runs(group: int) -> bool:
    """Does a process of this group run that has not ended?"""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
            # A process whose first thread has ended says Z too, as long as another of its threads runs.
            has_ended = fields[0] in _ENDED and int(fields[17]) <= 1
            if int(fields[2]) == group and not has_ended:
                return True
    return False


def _cpu_seconds(process: int) -> float:
    """Of a process, of those below it, and of those that it has seen end."""
    folder = Path("/proc", str(process))
    fields = (folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
    ticks = sum(int(one) for one in fields[11:15])  # utime, stime, cutime, cstime
    below = (folder / "task" / str(process) / "children").read_text("ascii").split()
    return ticks / os.sysconf("SC_CLK_TCK") + sum(_cpu_seconds(int(child)) for child in below)


@cache
def _starter() -> ThreadPoolExecutor:
    """The kernel ends a box with the thread that started it, so one thread starts all, and lives as long as we do."""
    return ThreadPoolExecutor(1, "sandbox-starter")


def _start(
    command: Sequence[str], descriptors: Sequence[int], output: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=tuple(descriptors),
        start_new_session=True,
        env=dict(environment),
    )
