"""The command line of bubblewrap for one box: what is in it, and nothing else. Pure: nothing is started here.

Inside there is no network, no other process, no shell and no key: the interpreter, its libraries, the package and what
the view names, all read-only; a scratch folder and shared memory that lie in memory, are of a fixed size, and go when
the last process does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .software import PACKAGE, Software
from .view import View

SCRATCH = Path("/scratch")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - as SCRATCH
IMPORTS = Path("/run/fedveil")
_ALONE = (
    *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"),
    *("--cap-drop", "ALL", "--hostname", "plan"),
)


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """The program, and what this version of it can do."""

    program: str
    can_size: bool  # --size, since 0.7
    can_disable_namespaces: bool  # --disable-userns, since 0.8

    def command(
        self,
        software: Software,
        view: View,
        *,
        scratch_bytes: int,
        environment: Mapping[str, str],
        devices: Iterable[Path] = (),
        info_descriptor: int | None = None,
    ) -> list[str]:
        """All of it but the program that is to run inside."""
        size = ["--size", str(scratch_bytes)] if self.can_size else []
        return [
            self.program,
            *_ALONE,
            *(["--disable-userns"] if self.can_disable_namespaces else []),
            *(["--info-fd", str(info_descriptor)] if info_descriptor is not None else []),
            *("--proc", "/proc", "--dev", "/dev"),
            *(word for device in devices for word in ("--dev-bind", str(device), str(device))),
            *(*size, "--tmpfs", str(SHARED_MEMORY), "--remount-ro", "/dev"),
            *(*size, "--tmpfs", str(SCRATCH)),
            *_shown((*software.interpreter, *software.libraries, *view.readable)),
            *_package(software.package),
            *("--remount-ro", "/", "--chdir", str(SCRATCH)),
            *(word for name, value in environment.items() for word in ("--setenv", name, value)),
            "--",
        ]


def _shown(paths: Iterable[Path]) -> Iterator[str]:
    """Read-only and under their own names; what lies in a folder that is shown already needs no line of its own."""
    shown: list[Path] = []
    for path in sorted(set(paths), key=lambda one: (len(one.parts), one)):
        if any(path.is_relative_to(held) for held in shown):
            continue
        if path.is_symlink() and len(path.parts) == len(("/", "lib")):  # /lib is a link into /usr on most machines
            yield from ("--symlink", str(path.readlink()), str(path))
        else:
            yield from ("--ro-bind", str(path), str(path))
        shown.append(path)


def _package(files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        yield from ("--ro-bind", str(path), str(IMPORTS / PACKAGE / path.name))
