"""CPU seconds and peak memory of running processes and their children, read from Linux's /proc."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
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
    return _cpu_seconds(family(pid))


def cpu_seconds_in_bubblewrap(pid: int) -> float:
    """CPU seconds of what runs now in bubblewrap's boxes below a process.

    bubblewrap does not wait for what is in its box, so once that has ended ``getrusage`` tells nobody of it. Boxes of
    other sorts are waited for, and are not counted here.
    """
    boxes = [family(member) for member in family(pid) if _text(Path(f"/proc/{member}/comm")).strip() == "bwrap"]
    return _cpu_seconds({inside for _, *box in boxes for inside in box})


def _cpu_seconds(members: Iterable[int]) -> float:
    total = 0
    for member in members:
        fields = _text(Path(f"/proc/{member}/stat")).rpartition(")")[2].split()
        total += sum(map(int, fields[11:13])) if fields else 0
    return total / _TICKS


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
