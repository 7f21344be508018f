"""Landlock by its system calls: a process gives up what it may open, connect to and signal, for good.

Source: the kernel's Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h. It holds for the thread
that asks and for all that it starts later, so it is asked for while there is one thread. Not covered by it, up to
version 7: UDP, Unix sockets that have a name in the file system, metadata of files (sizes, times, owners), and
descriptors that were open before. This module loads neither numpy nor the rest of the envoy.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

MIN_ABI = 3  # below it a file can be truncated that cannot be opened for writing
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << at for at in range(6))
_MAKE_DIR, _MAKE_REG, _MAKE_SYM, _REFER, _TRUNCATE = (1 << at for at in (7, 8, 12, 13, 14))
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
_IOCTL_DEV = 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # since which version
_ALL_TCP = 0b11  # bind, connect; since 4
_ALL_SCOPES = 0b11  # abstract Unix sockets, signals; since 6
_TCP_SINCE, _SCOPES_SINCE = 4, 6
_PR_SET_NO_NEW_PRIVS = 38


def abi() -> int:
    """The kernel's version of Landlock; 0: none."""
    found: int = _libc().syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    return max(found, 0)


def restrict(
    readable: Iterable[Path],
    *,
    runnable: Iterable[Path] = (),
    writable: Iterable[Path] = (),
    devices: Iterable[Path] = (),
) -> None:
    """Let this process, and all that it starts, open nothing else. It cannot be undone; another call takes more away.

    Args:
        readable: files and folders; those that are not there are left out.
        runnable: the same, also for starting programs.
        writable: folders in which files may be made and removed.
        devices: files that may be read and written.

    Raises:
        OSError: the kernel refuses, or there is more than one thread, which would keep its rights.
    """
    require_one_thread()
    version = abi()
    if not version:
        raise OSError("the kernel has no Landlock")
    files = _ALL_FILES[max(since for since in _ALL_FILES if since <= version)]
    ruleset = _create(version, files)
    try:
        for paths, rights in (
            (readable, _READ),
            (runnable, _READ | _EXECUTE),
            (writable, _WRITE),
            (devices, _READ_FILE | _WRITE_FILE | _IOCTL_DEV),
        ):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    _allow(ruleset, path, rights & files)
        libc = _libc()
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        _check(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def require_one_thread() -> None:
    """What a thread gives up, the others of its process keep.

    Raises:
        OSError: there is another.
    """
    number = len(list(Path("/proc/self/task").iterdir()))
    if number != 1:
        raise OSError(f"{number} threads run already, expected 1")


def _create(version: int, files: int) -> int:
    fields = [files]
    if version >= _TCP_SINCE:
        fields.append(_ALL_TCP)
    if version >= _SCOPES_SINCE:
        fields.append(_ALL_SCOPES)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    return _check(_libc().syscall(_CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")


def _allow(ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        _check(_libc().syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), f"landlock_add_rule for {path}")
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(answer: int, call: str) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return answer
