"""CPU seconds and peak memory of running processes and their children, read from Linux's /proc."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.02


def family(pid: int) -> list[int]:
    """A process and all its descendants that live now."""
    members = [pid]
    for member in members:
        for task in _listed(Path(f"/proc/{member}/task")):
            members += [int(child) for child in _text(task / "children").split()]
    return members


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process and its descendants have used, user and system."""
    return sum(cpu_by_process(pid))


def cpu_by_process(pid: int) -> list[float]:
    """CPU seconds that a process has used, and then each of its descendants that lives now."""
    stats = [_text(Path(f"/proc/{member}/stat")).rpartition(")")[2].split() for member in family(pid)]
    return [sum(map(int, fields[11:13])) / _TICKS if fields else 0.0 for fields in stats]


def peak_megabytes(pid: int) -> float:
    """Peak resident memory of a process and its descendants, added up (shared pages count in each)."""
    total = 0
    for member in family(pid):
        for line in _text(Path(f"/proc/{member}/status")).splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
    return total / 1024


class CpuSampler:
    """Samples the CPU seconds of some processes, so that they can be read for any moment afterwards."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids, self._ended = pids, threading.Event()
        self._times: list[float] = []
        self._seconds: list[list[float]] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Sample no more."""
        self._ended.set()
        self._thread.join()

    def at(self, moment: float) -> list[float]:
        """CPU seconds of each process at a moment (seconds since 1970), of the nearest sample after it."""
        return self._seconds[min(bisect_left(self._times, moment), len(self._times) - 1)]

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._times.append(time.time())
            self._seconds.append([cpu_seconds(pid) for pid in self._pids])


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []  # it ended


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""  # it ended
