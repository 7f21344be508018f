"""A control group for a plan's processes: how many there may be, and their memory together.

For root it is the only limit on processes (RLIMIT_NPROC stops root in nothing). Version 1 and 2 are used as they are
mounted; where this process may make no group there is none, and nothing is changed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .policy import SandboxPolicy

_PREFIX = "fedveil-"
_MEMBERS = "cgroup.procs"
_CONTROLLERS = ("pids", "memory")
_EMPTY_WITHIN_SECONDS = 2.0
_counter = itertools.count(1)


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """Folders of one group, one a hierarchy."""

    folders: tuple[Path, ...]
    limits_processes: bool
    limits_memory: bool

    @property
    def members(self) -> tuple[Path, ...]:
        """Files that a process writes 0 to in order to join."""
        return tuple(folder / _MEMBERS for folder in self.folders)

    def kill(self) -> None:
        """End every process in it, also those that it starts meanwhile."""
        deadline = time.monotonic() + _EMPTY_WITHIN_SECONDS
        while (left := self._processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.002)

    def remove(self) -> None:
        """Away with it; processes in it are ended first."""
        self.kill()
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _processes(self) -> set[int]:
        found: set[int] = set()
        for path in self.members:
            with contextlib.suppress(OSError, ValueError):
                found |= {int(line) for line in path.read_text("ascii").split()}
        return found - {0}


def make_group(policy: SandboxPolicy) -> ControlGroup | None:
    """A group with the policy's limits; None where none can be made that limits processes."""
    name = f"{_PREFIX}{os.getpid()}-{next(_counter)}"
    folders: dict[Path, None] = {}
    limited = set()
    for controller in _CONTROLLERS:
        for parent in _parents(controller):
            _sweep(parent)
            folder = parent / name
            if _limit(folder, controller, policy):
                folders[folder] = None
                limited.add(controller)
                break
            if folder not in folders:
                with contextlib.suppress(OSError):
                    folder.rmdir()
    group = ControlGroup(tuple(folders), "pids" in limited, "memory" in limited)
    if group.limits_processes:
        return group
    group.remove()
    return None


def is_bounded_outside() -> bool:
    """Does somebody else limit the processes of the group that this one is in, as containers are?"""
    for folder in _parents("pids"):
        with contextlib.suppress(OSError):
            if (folder / "pids.max").read_text("ascii").strip().isdigit():
                return True
    return False


def _limit(folder: Path, controller: str, policy: SandboxPolicy) -> bool:
    if controller == "pids":
        wanted = {"pids.max": policy.processes}
    else:
        is_old = (folder.parent / "memory.limit_in_bytes").exists()
        wanted = {"memory.limit_in_bytes" if is_old else "memory.max": policy.memory_bytes}
    try:
        folder.mkdir(exist_ok=True)
        for file, number in wanted.items():
            path = folder / file
            if not path.exists():
                return False
            path.write_text(str(number), "ascii")
        # Version 2 lets no process into a group whose parent has processes of its own, the root's aside.
        return os.access(folder / _MEMBERS, os.W_OK)
    except OSError:
        return False


def _parents(controller: str) -> Iterator[Path]:
    """Groups under which one might be made: this process's own, then the root of the hierarchy."""
    mounts = _mounts()
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        key = controller if controller in controllers.split(",") else "" if not controllers else None
        mount = mounts.get(key) if key is not None else None
        if mount is None:
            continue
        place, root = mount
        own = place / os.path.relpath(path, root)
        for folder in dict.fromkeys((own.resolve(), place)):
            if folder.is_relative_to(place) and folder.is_dir():
                yield folder


def _mounts() -> dict[str, tuple[Path, str]]:
    """Where hierarchies are mounted, by controller; version 2 under the empty name."""
    found: dict[str, tuple[Path, str]] = {}
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, place = before.split(" ")[3:5]
        if kind == "cgroup2":
            found[""] = (Path(place), root)
        elif kind == "cgroup":
            for name in _CONTROLLERS:
                if name in options.split(","):
                    found[name] = (Path(place), root)
    return found


def _sweep(parent: Path) -> None:
    """Groups of envoys that were killed: what ran in them is ended."""
    for folder in parent.glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            ControlGroup((folder,), limits_processes=True, limits_memory=False).remove()
