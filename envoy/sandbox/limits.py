"""What a plan's processes may use up, and what root gives up before a plan's code runs in its name.

The limits hold for each process; the number of processes for all of a user's together. This module loads neither numpy
nor the rest of the envoy.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 1, 4, 24, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_MAX_CAPABILITY = 63
_COUNTED_BY_NAMESPACE = (5, 14)  # since then RLIMIT_NPROC counts within a user namespace


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a plan's processes."""

    memory_bytes: int  # of writable memory, of one process
    processes: int  # and threads
    open_files: int
    file_bytes: int  # of the largest file

    def apply(self) -> None:
        """Take them on; what is lower already stays."""
        for kind, wanted in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_DATA, self.memory_bytes),
            (resource.RLIMIT_FSIZE, self.file_bytes),
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_NPROC, self.processes),
        ):
            held = resource.getrlimit(kind)[1]
            most = wanted if held == resource.RLIM_INFINITY else min(wanted, held)
            resource.setrlimit(kind, (most, most))


def running_of_user(*, by_namespace: bool = True) -> int:
    """Threads of this process's user on the whole machine: what the limit on processes counts from.

    Args:
        by_namespace: the box has a user namespace of its own; 0 then, where the kernel counts by it.
    """
    release = tuple(int(piece) for piece in os.uname().release.replace("-", ".").split(".")[:2])
    return 0 if by_namespace and release >= _COUNTED_BY_NAMESPACE else threads_of(os.getuid())


def threads_of(user: int) -> int:
    """All threads that run in a user's name now."""
    number = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == user:
                number += len(list((folder / "task").iterdir()))
    return number


def give_up_privileges(machine: str) -> None:
    """Drop every capability, for good: root is then an owner of files and nothing more.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_MAX_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused without CAP_SETPCAP: nothing to drop then
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if libc.syscall(_CAPSET[machine], header, bytes(24)):
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def die_with_starter() -> None:
    """The kernel ends this process when the thread that started it is gone; the filter keeps a plan from undoing it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def be_the_first_to_go() -> None:
    """When memory runs out, the kernel ends this process, not the envoy."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
