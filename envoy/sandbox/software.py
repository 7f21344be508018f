"""What Python needs of this machine to run the envoy's own code: the interpreter, its libraries, the package itself.

Worked out from the running interpreter, so that a virtual environment, an editable install and a checkout that is
reached by PYTHONPATH all work. The package is shown file by file under a folder of its own: a checkout may hold an
envoy's folder with its keys, so the checkout as a whole is never shown.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = "fedveil"
_ROOT = Path(__file__).parents[2]
_LIBRARIES = tuple(Path(above, name) for above in ("/", "/usr", "/usr/local") for name in ("lib", "lib32", "lib64"))
_ETC = tuple(Path("/etc", name) for name in ("ld.so.cache", "localtime", "ld.so.conf", "ld.so.conf.d"))
_SYSTEM = (Path("/usr/share/zoneinfo"), Path("/sys/devices/system/cpu"))
_GPU = (Path("/sys/module/nvidia"), Path("/sys/bus/pci"), Path("/sys/devices/pci0000:00"), Path("/sys/devices/system"))
_SHARED_PREFIXES = frozenset({Path("/usr"), Path("/usr/local"), Path("/")})


@dataclass(frozen=True, slots=True)
class Software:
    """What is shown to be read, under its own name."""

    interpreter: tuple[Path, ...]  # programs may be started from these
    libraries: tuple[Path, ...]
    package: tuple[Path, ...]  # files and folders of the package
    executable: Path

    @property
    def all_paths(self) -> tuple[Path, ...]:
        """Every one of them."""
        return (*self.interpreter, *self.libraries, *self.package)


@cache
def installed() -> Software:
    """Of the interpreter that runs now."""
    interpreter = dict.fromkeys(_interpreter())
    libraries = dict.fromkeys(path for path in (*_LIBRARIES, *_linked(), *_ETC, *_SYSTEM) if path.exists())
    return Software(tuple(interpreter), tuple(libraries), tuple(package_files()), Path(sys.executable))


def package_files() -> list[Path]:
    """The package's own module and its rooms; nothing else that lies in a checkout."""
    rooms = (path.parent for path in _ROOT.glob("*/__init__.py"))
    return sorted([_ROOT / "__init__.py", *rooms])


def gpu_devices() -> tuple[Path, ...]:
    """NVIDIA's device files; none where there is no such device."""
    return tuple(sorted(Path("/dev").glob("nvidia*")))


def gpu_descriptions() -> tuple[Path, ...]:
    """What the driver reads of the machine."""
    return tuple(path for path in _GPU if path.exists())


def _interpreter() -> Iterator[Path]:
    prefixes = (Path(sys.prefix), Path(sys.base_prefix), Path(sys.exec_prefix), Path(sys.base_exec_prefix))
    for prefix in prefixes:
        for path in (prefix, prefix.resolve()):
            if path not in _SHARED_PREFIXES:
                yield path
    yield from _hops(Path(sys.executable))
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        path = Path(sysconfig.get_path(name))
        if path.is_dir():
            yield path
    for name in (*site.getsitepackages(), site.getusersitepackages()):
        if name in sys.path and Path(name).is_dir():
            yield Path(name)


def _hops(executable: Path) -> Iterator[Path]:
    """A program and each file that its links lead over."""
    for _ in range(40):
        yield executable
        if not executable.is_symlink():
            return
        executable = Path(os.path.normpath(executable.parent / executable.readlink()))


def _linked() -> Iterator[Path]:
    """Folders that the dynamic linker was told of beside the usual ones."""
    for file in sorted(Path("/etc/ld.so.conf.d").glob("*.conf")):
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for line in lines:
            path = Path(line.strip())
            if path.is_absolute() and path.is_dir() and not any(path.is_relative_to(held) for held in _LIBRARIES):
                yield path
