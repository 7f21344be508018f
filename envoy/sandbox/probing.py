"""Which tiers work on this machine, why the others do not, and what to do: each is tried, with a program that ends."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...utils.errors import FederationError, SandboxError
from . import landlock, syscall_filter
from .box import Box, Program, bubblewrap
from .cgroup import is_bounded_outside, make_group
from .policy import SandboxPolicy, Tier
from .view import View

_TRIAL_SECONDS = 20.0
_NAMESPACES = (
    "allow unprivileged user namespaces: on Ubuntu 24.04 and later an AppArmor profile for bwrap"
    " (apt install apparmor-profiles, then ln -s /usr/share/apparmor/extra-profiles/bwrap-userns-restrict"
    " /etc/apparmor.d/ and systemctl reload apparmor); elsewhere sysctl kernel.unprivileged_userns_clone=1 and"
    " user.max_user_namespaces above 0; in a container, allow it to make namespaces"
)


@dataclass(frozen=True, slots=True)
class TierReport:
    """Whether one tier works here."""

    tier: Tier
    works: bool
    reason: str = ""  # why it does not
    fix: str = ""  # what to do about it


def probe_tiers(policy: SandboxPolicy | None = None, folder: Path | None = None) -> tuple[TierReport, ...]:
    """Every tier, the strongest first.

    Args:
        policy: its limits are those that are tried; the defaults without one.
        folder: the envoy's; without one, a folder that goes again.
    """
    with tempfile.TemporaryDirectory(prefix="fedveil-probe-") as empty:
        box = Box(policy or SandboxPolicy(), folder or Path(empty))
        return tuple(report(box, tier) for tier in Tier)


def report(box: Box, tier: Tier) -> TierReport:
    """Of one tier, in the boxes of one site."""
    if tier is Tier.NONE:
        return TierReport(tier, works=True)
    return _lacking(tier) or _unbounded(box, tier) or _trial(box, tier)


def _lacking(tier: Tier) -> TierReport | None:
    if tier is Tier.BUBBLEWRAP:
        try:
            bubblewrap()
        except SandboxError:
            bubblewrap.cache_clear()
            return TierReport(tier, works=False, reason="bubblewrap is not installed", fix="apt install bubblewrap")
        return None
    if landlock.abi() < landlock.MIN_ABI:
        reason = f"the kernel has Landlock {landlock.abi()}, expected {landlock.MIN_ABI} or later (Linux 6.2)"
        return TierReport(tier, works=False, reason=reason, fix="apt install bubblewrap, or a newer kernel")
    if not syscall_filter.is_known():
        reason = "system calls cannot be filtered on this machine (x86_64 and aarch64 can, with seccomp)"
        return TierReport(tier, works=False, reason=reason, fix="apt install bubblewrap")
    return None


def _unbounded(box: Box, tier: Tier) -> TierReport | None:
    """Root is stopped by no limit on processes but that of a control group."""
    if os.getuid() != 0 or is_bounded_outside():
        return None
    group = make_group(box.policy)
    if group is not None:
        group.remove()
        return None
    reason = "the envoy runs as root, whom no limit on processes stops, and no pids control group can be made"
    return TierReport(tier, works=False, reason=reason, fix="run the envoy as a user of its own")


def _trial(box: Box, tier: Tier) -> TierReport:
    with tempfile.TemporaryFile() as said:
        program = Program("fedveil.envoy.sandbox.trial", (), View(frozenset()), (), said.fileno(), {})
        try:
            boxed = box.start(tier, program)
        except FederationError as error:
            return TierReport(tier, works=False, reason=str(error), fix="see the reason")
        try:
            code = boxed.exit_code(_TRIAL_SECONDS)
        except subprocess.TimeoutExpired:
            return TierReport(tier, works=False, reason="a trial does not come to an end", fix="look at the load")
        finally:
            boxed.end()
        if not code:
            return TierReport(tier, works=True)
        said.seek(0)
        lines = said.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    fix = _NAMESPACES if tier is Tier.BUBBLEWRAP else "apt install bubblewrap"
    return TierReport(tier, works=False, reason=lines[-1] if lines else f"a trial ends with code {code}", fix=fix)
