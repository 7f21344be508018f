"""Empty namespaces for the fallback tier, where the kernel lets this process make them: no network, no shared memory.

This module loads neither numpy nor the rest of the envoy.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NEW_USER, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000


def leave_the_network() -> bool:
    """Be in a network namespace without an interface; False where that is not allowed here. Asks for one thread."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_USER | _NEW_NETWORK | _NEW_IPC):
        return False
    me = Path("/proc/self")
    (me / "setgroups").write_text("deny", "ascii")
    (me / "uid_map").write_text(f"{user} {user} 1", "ascii")
    (me / "gid_map").write_text(f"{group} {group} 1", "ascii")
    return True
