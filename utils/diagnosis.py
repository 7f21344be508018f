"""What a doctor finds: one line a check, and where it is not well the fix, in words that a hospital's IT understands.

Director and envoy judge clocks, certificates and disks by the same limits; with copies of their own a clock could be
right at one and wrong at the other. All of it is pure: who looks gives numbers, and ``now`` is an argument. A finding
holds no key, password or value of a patient, so that it can be pasted into a ticket.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from cryptography import x509

from .certificates import CLOCK_SKEW_SECONDS, DAY_SECONDS
from .command_line import in_bytes
from .identity import expires_at, when

SKEW_TO_NAME_SECONDS = 30.0
"""Clocks that differ by more are worth a warning; ``CLOCK_SKEW_SECONDS`` is what certificates bear."""
_NEVER_FULL_BYTES = 200_000_000
_DAYS_TO_NAME = 30.0
_SHARE_TO_NAME = 1 / 6  # of a certificate's life; renewal comes at 2/3


class Status(Enum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a doctor."""

    check: str  # what was looked at, in one word
    status: Status
    what: str
    fix: str = ""  # what to do; empty where all is well


def passed(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, Status.PASS, what)


def warned(check: str, what: str, fix: str) -> Finding:
    """It works, but somebody should look."""
    return Finding(check, Status.WARN, what, fix)


def failed(check: str, what: str, fix: str) -> Finding:
    """It does not work until somebody does something."""
    return Finding(check, Status.FAIL, what, fix)


def is_well(findings: Iterable[Finding]) -> bool:
    """Did nothing fail?"""
    return all(one.status is not Status.FAIL for one in findings)


def in_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """One line a finding, the fix below; the count at the end.

    >>> for line in in_lines([failed("port", "10.1.2.3:9443 refuses", "start it"), passed("disk", "9 GB free")]):
    ...     print(line)
    FAIL  port  10.1.2.3:9443 refuses
          fix:  start it
    pass  disk  9 GB free
    1 of 2 checks failed
    """
    width = max((len(one.check) for one in findings), default=0)
    for one in findings:
        word = one.status.value if one.status is Status.PASS else one.status.value.upper()
        yield f"{word:<5} {one.check:<{width}}  {one.what}"
        if one.fix:
            yield f"{'':<5} {'fix:':<{width}}  {one.fix}"
    count = sum(one.status is Status.FAIL for one in findings)
    warnings = sum(one.status is Status.WARN for one in findings)
    aside = f", {warnings} to look at" if warnings else ""
    yield f"{count or 'none'} of {len(findings)} checks failed{aside}"


def in_json(findings: Iterable[Finding]) -> str:
    """An array of objects: check, status, what, fix."""
    rows = [{"check": one.check, "status": one.status.value, "what": one.what, "fix": one.fix} for one in findings]
    return json.dumps(rows, indent=1)


def in_time(seconds: float) -> str:
    """A length of time as people say it.

    >>> in_time(5), in_time(200), in_time(3600), in_time(-90 * 86400)
    ('5 s', '3 min', '1.0 h', '90 days')
    """
    length = abs(seconds)
    if length < 119.5:
        return f"{length:.0f} s"
    if length < 3570:
        return f"{length / 60:.0f} min"
    return f"{length / 3600:.1f} h" if length < 2 * DAY_SECONDS else f"{length / DAY_SECONDS:.0f} days"


def judge_clock(ahead_seconds: float, other: str) -> Finding:
    """This machine's clock against another's.

    Args:
        ahead_seconds: how much this one is ahead; negative: behind.
        other: whose the other is, for instance "the director's".
    """
    way = "ahead of" if ahead_seconds > 0 else "behind"
    what = f"this machine's clock is {in_time(ahead_seconds)} {way} {other}"
    fix = (
        "let this machine take its time from the hospital's time server (NTP): `timedatectl` shows whether it does."
        f" If it does, the other clock is wrong: tell whoever runs {other.removesuffix(chr(39) + 's')}"
    )
    if abs(ahead_seconds) > CLOCK_SKEW_SECONDS:
        return failed("clock", f"{what}; certificates bear {in_time(CLOCK_SKEW_SECONDS)}", fix)
    if abs(ahead_seconds) > SKEW_TO_NAME_SECONDS:
        return warned("clock", what, fix)
    return passed("clock", f"agrees with {other} to {max(1.0, abs(ahead_seconds)):.0f} s")


def judge_certificate(certificate: x509.Certificate, name: str, now: float, fix: str) -> Finding:
    """Is a certificate good, and for how long?

    Args:
        certificate: the one.
        name: what it is called in the line.
        now: this machine's clock, seconds since 1970.
        fix: how to get a new one.
    """
    begin, end = certificate.not_valid_before_utc.timestamp(), expires_at(certificate)
    if now > end:
        return failed("certificates", f"{name} expired on {when(end)}; it is {when(now)}, if this clock is right", fix)
    if now < begin:
        behind = in_time(begin - now)
        return failed(
            "certificates",
            f"{name} is good from {when(begin)} on, and it is {when(now)} here: this clock is at least {behind} behind",
            "set this machine's clock; `timedatectl` shows whether it takes its time from a time server (NTP)",
        )
    left = end - now
    if left < min(_DAYS_TO_NAME * DAY_SECONDS, (end - begin) * _SHARE_TO_NAME):
        return warned("certificates", f"{name} expires in {in_time(left)}, on {when(end)}", fix)
    return passed("certificates", f"{name} is good until {when(end)}")


def judge_space(free_bytes: int, model_bytes: int, copies: int, folder: str) -> Finding:
    """Is there room for what a round writes?

    Args:
        free_bytes: of the disk that holds the folder.
        model_bytes: of the largest model that is known here; 0: none is.
        copies: how often a round may write it.
        folder: shown.
    """
    needed = max(_NEVER_FULL_BYTES, copies * model_bytes)
    largest = f"{copies} times the largest model here ({in_bytes(model_bytes)})" if model_bytes else "what is the least"
    if free_bytes < needed:
        return failed(
            "disk",
            f"{in_bytes(free_bytes)} free where {folder} lies; a round may need {in_bytes(needed)}, {largest}",
            "make room on that disk, or move the folder to a larger one",
        )
    if free_bytes < 3 * needed:
        return warned(
            "disk",
            f"{in_bytes(free_bytes)} free where {folder} lies; a round may need {in_bytes(needed)}",
            "make room soon",
        )
    return passed("disk", f"{in_bytes(free_bytes)} free, written and flushed")
