"""The site's box: the best tier that works here, and never one below the site's minimum.

It is found when the first process is started, and looked for again as long as nothing meets the minimum, so that who
installs bubblewrap need not start the envoy anew.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ...utils.errors import SandboxError
from . import landlock
from .box import Box, Program
from .boxed import Boxed
from .entry import Rights
from .policy import SandboxPolicy, Tier
from .probing import report
from .view import View

_log = logging.getLogger(__name__)


class Sandbox:
    """Of one site.

    Args:
        policy: the table ``[sandbox]``.
        folder: the envoy's.
        has_gpu: show NVIDIA's devices, where there are any.
    """

    def __init__(self, policy: SandboxPolicy, folder: Path, *, has_gpu: bool = False) -> None:
        self._box = Box(policy, folder.absolute(), has_gpu)
        self._tier: Tier | None = None

    @classmethod
    def of_tier(cls, tier: Tier, policy: SandboxPolicy, folder: Path) -> Sandbox:
        """A tier that was chosen, not looked for: for benchmarks and tests. ``Tier.NONE`` is no box at all."""
        sandbox = cls(policy, folder)
        sandbox._tier = tier
        return sandbox

    @property
    def tier(self) -> Tier:
        """The best that works here.

        Raises:
            SandboxError: it is below the site's minimum.
        """
        if self._tier is None:
            self._tier = self._best()
            _log.info("sandbox tier=%s", self._tier.value)
        return self._tier

    @property
    def can_narrow(self) -> bool:
        """May a process be started before it is known what its plan may see, and give up the rest later?"""
        return self.tier is Tier.NONE or landlock.abi() > 0

    def narrowed(self, view: View, boxed: Boxed) -> Rights | None:
        """What such a process takes on before it runs a plan; None without a box."""
        return None if boxed.tier is Tier.NONE else self._box.rights(boxed.tier, view, boxed.scratch)

    def start(self, program: Program) -> Boxed:
        """Start a program in the box.

        Raises:
            SandboxError: no tier that meets the minimum works here, or it would see the envoy's own folder.
            StorageError: it cannot be started.
        """
        return self._box.start(self.tier, program)

    def _best(self) -> Tier:
        minimum = self._box.policy.minimum
        reasons = []
        for tier in Tier:
            if tier.meets(minimum):
                found = report(self._box, tier)
                if found.works:
                    return tier
                reasons.append(f"{tier.value}: {found.reason} ({found.fix})")
        raise SandboxError(
            f"no plan may run here: [sandbox] minimum is {minimum.value}, and nothing that works on this machine meets"
            f" it; {'; '.join(reasons)}. envoy.toml may name a lower minimum"
        )
