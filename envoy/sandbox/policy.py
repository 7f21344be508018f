"""What a site asks of the box: the table ``[sandbox]`` of envoy.toml, and the tiers that it names.

A plan says nothing of it, and can lower nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum

from ...utils.errors import ConfigError

_GIB = 1 << 30
_SHARE_OF_MEMORY = 0.75
_MAX_GB = 1 << 20


class Tier(Enum):
    """How a plan's code is kept in; the strongest first."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"
    NONE = "none"

    def meets(self, minimum: Tier) -> bool:
        """Is it at least as strong?

        >>> Tier.BUBBLEWRAP.meets(Tier.LANDLOCK), Tier.NONE.meets(Tier.LANDLOCK)
        (True, False)
        """
        order = list(Tier)
        return order.index(self) <= order.index(minimum)


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """The table ``[sandbox]``.

    Raises:
        ConfigError: a value is out of range.
    """

    minimum: Tier = Tier.LANDLOCK  # the best that works here is used; below this no plan runs
    memory_gb: float | None = None  # of a plan's processes; none: three quarters of the machine's
    processes: int = 1024  # and threads, of a plan's processes together
    open_files: int = 1024  # of each process
    file_gb: float = 8.0  # the largest file that a plan may write; an update and the site's state are such files
    scratch_gb: float = 1.0  # temporary files, in memory; and shared memory, as much again

    def __post_init__(self) -> None:
        sizes = {"memory_gb": self.memory_gb, "file_gb": self.file_gb, "scratch_gb": self.scratch_gb}
        for name, size in sizes.items():
            if size is not None and not 0 < size <= _MAX_GB:
                raise ConfigError(f"{name} is {size:g}, expected a size in GiB above 0")
        for name, number, least in (("processes", self.processes, 16), ("open_files", self.open_files, 64)):
            if not least <= number <= 1 << 20:
                raise ConfigError(f"{name} is {number}, expected {least} to {1 << 20}")

    @property
    def memory_bytes(self) -> int:
        """For a plan's processes."""
        if self.memory_gb is not None:
            return int(self.memory_gb * _GIB)
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE_OF_MEMORY)

    @property
    def file_bytes(self) -> int:
        """Of the largest file."""
        return int(self.file_gb * _GIB)

    @property
    def scratch_bytes(self) -> int:
        """Of all temporary files."""
        return int(self.scratch_gb * _GIB)


DEFAULT_SANDBOX = SandboxPolicy()
"""Of a site whose envoy.toml has no table ``[sandbox]``."""
