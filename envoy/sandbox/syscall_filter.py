"""System calls that training needs none of, refused by the kernel (seccomp-BPF) for good: sockets before all.

It holds in both tiers, beside what the tier does by itself. ``socket`` is refused whole, so that neither UDP nor a Unix
socket with a name can be reached where Landlock is the tier; ``socketpair`` is not, which processes of one plan speak
by. ``setsid`` and ``setpgid`` are, so that all that a plan starts stays in the group that is killed; owners, modes and
extended attributes of files, which Landlock does not keep, and the limits of other processes. This module loads
neither numpy nor the rest of the envoy.

Source: the kernel's Documentation/userspace-api/seccomp_filter.rst; numbers from asm/unistd_64.h and asm-generic.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

_X86: Final = {
    "socket": 41, "ptrace": 101, "syslog": 103, "setsid": 112, "setpgid": 109, "personality": 135, "quotactl": 179,
    "pivot_root": 155, "acct": 163, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
    "init_module": 175, "delete_module": 176, "chroot": 161, "kexec_load": 246, "add_key": 248, "request_key": 249,
    "keyctl": 250, "unshare": 272, "perf_event_open": 298, "fanotify_init": 300, "open_by_handle_at": 304, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313, "kexec_file_load": 320, "bpf": 321,
    "userfaultfd": 323, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260,
    "fchmodat": 268, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198,
    "fremovexattr": 199,
}  # fmt: skip
_ARM: Final = {
    "socket": 198, "ptrace": 117, "syslog": 116, "setsid": 157, "setpgid": 154, "personality": 92, "quotactl": 60,
    "pivot_root": 41, "acct": 89, "mount": 40, "umount2": 39, "swapon": 224, "swapoff": 225, "reboot": 142,
    "init_module": 105, "delete_module": 106, "chroot": 51, "kexec_load": 104, "add_key": 217, "request_key": 218,
    "keyctl": 219, "unshare": 97, "perf_event_open": 241, "fanotify_init": 262, "open_by_handle_at": 265, "setns": 268,
    "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273, "kexec_file_load": 294, "bpf": 280,
    "userfaultfd": 282, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "setxattr": 5, "lsetxattr": 6,
    "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
}  # fmt: skip
_SINCE_5: Final = {
    "pidfd_getfd": 438, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466,
}  # fmt: skip  # numbered alike everywhere
_CLONE3 = 435
_MACHINES: Final = {  # AUDIT_ARCH_*, the calls, clone, prctl, prlimit64
    "x86_64": (0xC000003E, _X86, 56, 157, 302),
    "aarch64": (0xC00000B7, _ARM, 220, 167, 261),
}
_X32 = 0x40000000
_CLONE_NAMESPACES = 0x7E020000  # CLONE_NEW*: mount, cgroup, uts, ipc, user, pid, net
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; little-endian low half

_Instruction = tuple[int, int, int, int]
_REFUSE: Final[_Instruction] = (_RETURN, 0, 0, _ERRNO | errno.EPERM)


def is_known() -> bool:
    """Are this machine's system calls known here, and does its kernel filter?"""
    return platform.machine() in _MACHINES and os.path.exists("/proc/sys/kernel/seccomp/actions_avail")  # noqa: PTH110


def restrict() -> None:
    """Refuse those calls to this process and all that it starts; it cannot be undone.

    Raises:
        OSError: the kernel has no filters, or this machine's calls are not known here.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"no filter of system calls for {machine}")
    program = _program(machine)
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    held = ctypes.create_string_buffer(code)
    header = struct.pack("@HP", len(program), ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    answer = libc.syscall(_SECCOMP[machine], _SECCOMP_SET_MODE_FILTER, _FLAG_TSYNC, header)
    if answer:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number) if answer < 0 else 'a thread has a filter of its own'}")


def _program(machine: str) -> list[_Instruction]:
    """One step after the other, no long jumps: read whom it is, then compare."""
    architecture, calls, clone, prctl, prlimit = _MACHINES[machine]
    found: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":  # the same calls under other numbers
        found += [(_JUMP_AT_LEAST, 0, 1, _X32), _REFUSE]
    for number in sorted({*calls.values(), *_SINCE_5.values()}):
        found += [(_JUMP_EQUAL, 0, 1, number), _REFUSE]
    # Its flags lie in memory, where a filter cannot look; libraries fall back to clone.
    found += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    found += _where(clone, (_JUMP_ANY_BIT, 0, 1, _CLONE_NAMESPACES))
    found += _where(prctl, (_JUMP_EQUAL, 0, 1, _PR_SET_PDEATHSIG))
    found += _where(prlimit, (_JUMP_EQUAL, 1, 0, 0))  # of another process
    return [*found, (_RETURN, 0, 0, _ALLOW)]


def _where(number: int, test: _Instruction) -> list[_Instruction]:
    """Refuse one call where its first argument passes the test, which steps over the refusal otherwise."""
    return [
        (_JUMP_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        test,
        _REFUSE,
        (_LOAD, 0, 0, _NUMBER),
    ]
