"""Starts a module of this package in a box of a given tier.

What the process may do is decided here and taken on by ``entry`` inside, before anything else is loaded. Which tier it
is to be is ``sandbox``'s to say.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...utils.errors import SandboxError
from . import landlock, syscall_filter
from .boxed import Boxed, first_process, started
from .bubblewrap import IMPORTS, SCRATCH, SHARED_MEMORY, Bubblewrap
from .cgroup import ControlGroup, make_group
from .entry import Confines, Rights
from .limits import Limits, running_of_user
from .policy import SandboxPolicy, Tier
from .scratch import make_scratch
from .software import gpu_descriptions, gpu_devices, installed
from .view import View

_ENTRY = "fedveil.envoy.sandbox.entry"
_SAFE_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_PROC_OF_ITS_OWN = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/sys/vm")
_HANDED_ON = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TZ")
# A process joins its groups before it becomes what it is to be.
_JOIN = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 > "$1" || exit 125; shift; n=$((n-1)); done; exec "$@"'


@dataclass(frozen=True, slots=True)
class Program:
    """What is to run in a box."""

    module: str  # of this package, with a ``main``
    arguments: Sequence[str]
    view: View  # what it may read beside the software
    descriptors: Sequence[int]  # open files that it gets, under the same numbers
    output: int  # takes its standard output and error
    environment: Mapping[str, str]  # beside the few variables that every box has


@dataclass(frozen=True, slots=True)
class Box:
    """The boxes of one site.

    Args:
        policy: what the site asks for.
        folder: the envoy's; it is never shown, and temporary files of the fallback tier lie in its ``state``.
        has_gpu: show NVIDIA's devices, where there are any.
    """

    policy: SandboxPolicy
    folder: Path
    has_gpu: bool = False

    def start(self, tier: Tier, program: Program) -> Boxed:
        """Start it.

        Raises:
            SandboxError: what it would see holds the envoy's own folder.
            StorageError: it cannot be started.
        """
        if tier is Tier.NONE:
            command = [*_python(), "", program.module, *program.arguments]
            environment = os.environ | dict(program.environment)
            return Boxed(started(command, program.descriptors, program.output, environment), tier)
        self._require_apart(program.view)
        group = make_group(self.policy)
        try:
            return self._bubblewrap(group, program) if tier is Tier.BUBBLEWRAP else self._landlock(group, program)
        except BaseException:
            if group is not None:
                group.remove()
            raise

    def rights(self, tier: Tier, view: View, scratch: Path | None) -> Rights:
        """What a process may open, by the names inside."""
        software = installed()
        system: tuple[str, ...]
        if tier is Tier.BUBBLEWRAP or scratch is None:
            package, writable, system = [IMPORTS], [SCRATCH, SHARED_MEMORY], ("/proc", "/dev")  # of its own
        else:
            package, writable, system = [scratch / "imports", *software.package], [scratch / "tmp"], _PROC_OF_ITS_OWN
        return Rights(
            readable=(*map(str, package), *system, *map(str, self._gpu_read), *sorted(map(str, view.readable))),
            runnable=tuple(map(str, (*software.interpreter, *software.libraries))),
            writable=tuple(map(str, writable)),
            devices=(*_SAFE_DEVICES, *map(str, self._gpu)),
        )

    def _bubblewrap(self, group: ControlGroup | None, program: Program) -> Boxed:
        confines = Confines(
            limits=self._limits(0 if group else running_of_user()),
            rights=self.rights(Tier.BUBBLEWRAP, program.view, None) if landlock.abi() else None,
            filters_calls=syscall_filter.is_known(),
            is_alone=True,
        )
        told, info = os.pipe()
        try:
            command = [
                *bubblewrap().command(
                    installed(),
                    View.of([*program.view.readable, *self._gpu_read]),
                    scratch_bytes=self.policy.scratch_bytes,
                    environment=_environment(IMPORTS, SCRATCH) | dict(program.environment),
                    devices=self._gpu,
                    info_descriptor=info,
                ),
                *_inside(confines, program),
            ]
            process = started(_joining(group, command), (*program.descriptors, info), program.output, {})
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(info)
        try:
            return Boxed(process, Tier.BUBBLEWRAP, group, first=first_process(told))
        finally:
            os.close(told)

    def _landlock(self, group: ControlGroup | None, program: Program) -> Boxed:
        scratch = make_scratch(self.folder / "state")
        try:
            confines = Confines(
                limits=self._limits(0 if group else running_of_user(by_namespace=False)),
                rights=self.rights(Tier.LANDLOCK, program.view, scratch),
                filters_calls=True,
                is_alone=False,
            )
            environment = _environment(scratch / "imports", scratch / "tmp") | dict(program.environment)
            command = _joining(group, _inside(confines, program))
            return Boxed(
                started(command, program.descriptors, program.output, environment), Tier.LANDLOCK, group, scratch
            )
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def _limits(self, running: int) -> Limits:
        policy = self.policy
        return Limits(policy.memory_bytes, running + policy.processes, policy.open_files, policy.file_bytes)

    @property
    def _gpu(self) -> tuple[Path, ...]:
        return gpu_devices() if self.has_gpu else ()

    @property
    def _gpu_read(self) -> tuple[Path, ...]:
        return gpu_descriptions() if self._gpu else ()

    def _require_apart(self, view: View) -> None:
        own = self.folder.resolve()
        shown = next((path for path in view.readable if own.is_relative_to(path.resolve())), None)
        if shown is not None:
            raise SandboxError(
                f"{shown} holds the envoy's own folder {own}, with its keys, so no plan may see it; keep them apart"
            )


@cache
def bubblewrap() -> Bubblewrap:
    """The program of this machine.

    Raises:
        SandboxError: it is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bubblewrap is not installed; apt install bubblewrap")
    said = ""
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, timeout=10).stdout
    return Bubblewrap(program, can_size="--size BYTES" in said, can_disable_namespaces="--disable-userns" in said)


def _python() -> list[str]:
    return [sys.executable, "-P", "-m", _ENTRY]


def _inside(confines: Confines, program: Program) -> list[str]:
    return [*_python(), confines.to_json(), program.module, *program.arguments]


def _environment(imports: Path, scratch: Path) -> dict[str, str]:
    """All of it: nothing of the envoy's own environment but how many threads and which devices."""
    fixed = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "USER": "plan",
        "LOGNAME": "plan",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(imports),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return fixed | {name: os.environ[name] for name in _HANDED_ON if name in os.environ}


def _joining(group: ControlGroup | None, command: Sequence[str]) -> list[str]:
    if group is None:
        return list(command)
    members = list(map(str, group.members))
    return ["/bin/sh", "-c", _JOIN, "sh", str(len(members)), *members, *command]
