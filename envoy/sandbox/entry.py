"""The first thing that runs in a box: ``python -P -m fedveil.envoy.sandbox.entry CONFINES MODULE ARGUMENT...``.

It gives up what the site said it should, while nothing is loaded and there is one thread, and only then loads the
module, whose ``main`` is called with the arguments. Where anything of it fails, nothing is loaded.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import landlock, limits, namespaces, syscall_filter


@dataclass(frozen=True, slots=True)
class Rights:
    """What may be opened, as Landlock is told it; by the names inside."""

    readable: tuple[str, ...]
    runnable: tuple[str, ...]
    writable: tuple[str, ...]
    devices: tuple[str, ...]

    def take(self) -> None:
        """Open nothing else from now on.

        Raises:
            OSError: it cannot be enforced.
        """
        landlock.restrict(
            map(Path, self.readable),
            runnable=map(Path, self.runnable),
            writable=map(Path, self.writable),
            devices=map(Path, self.devices),
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Sequence[str]]) -> Rights:
        """Read what ``dataclasses.asdict`` made."""
        return cls(**{name: tuple(paths) for name, paths in document.items()})


@dataclass(frozen=True, slots=True)
class Confines:
    """What a process gives up before it runs anything of a plan."""

    limits: limits.Limits
    rights: Rights | None  # none: the kernel has no Landlock, and the tier does not need it
    filters_calls: bool
    is_alone: bool  # bubblewrap has made the namespaces, dropped capabilities, and ends it with its parent

    def take(self) -> None:
        """All of it, for good.

        Raises:
            OSError: something of it cannot be enforced.
        """
        limits.be_the_first_to_go()
        if not self.is_alone:
            limits.die_with_starter()
            namespaces.leave_the_network()
            limits.give_up_privileges(platform.machine())
        self.limits.apply()
        if self.rights is not None:
            self.rights.take()
        if self.filters_calls:
            syscall_filter.restrict()

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Confines:
        """Read what ``to_json`` made."""
        document: dict[str, Any] = json.loads(text)
        rights = document["rights"]
        return cls(
            limits.Limits(**document["limits"]),
            None if rights is None else Rights.from_json(rights),
            document["filters_calls"],
            document["is_alone"],
        )


def main(arguments: list[str]) -> None:
    """Give up, then run."""
    confines, module, *rest = arguments
    if confines:
        Confines.from_json(confines).take()
    importlib.import_module(module).main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
