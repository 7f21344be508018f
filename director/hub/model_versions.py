"""Versions of a model's name: semantic versions (semver.org 2.0.0), which grow by what changed. Pure.

>>> first, second = Version.parse("1.4.2"), Version.parse("2.0.0-rc.1")
>>> first < second < Version.parse("2.0.0")
True
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

from ...utils.errors import ConfigError

MAX_VERSION = 32
_NUMBER = r"(0|[1-9]\d*)"
_PIECE = r"(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-({_PIECE}(?:\.{_PIECE})*))?", re.ASCII)


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """One version; ordered as semver.org says, item 11."""

    major: int
    minor: int
    patch: int
    pre_release: tuple[int | str, ...] = ()  # before the version without it

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read one.

        Build metadata (``+...``) is refused: versions that differ in it alone have no order.

        Raises:
            ConfigError: it is none.
        """
        found = _VERSION.fullmatch(text) if len(text) <= MAX_VERSION else None
        if found is None:
            raise ConfigError(
                f"semver: {text[:80]!r} is no version; expected MAJOR.MINOR.PATCH such as 1.4.0 or 2.0.0-rc.1, of at"
                f" most {MAX_VERSION} characters"
            )
        pieces = found[4].split(".") if found[4] else ()
        return cls(
            int(found[1]), int(found[2]), int(found[3]), tuple(int(one) if one.isdigit() else one for one in pieces)
        )

    def __str__(self) -> str:
        core = f"{self.major}.{self.minor}.{self.patch}"
        return f"{core}-{'.'.join(map(str, self.pre_release))}" if self.pre_release else core

    def __lt__(self, other: Version) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]:
        """Numbers come before words, and what is shorter before what goes on; no pre-release after all of them."""
        pieces = tuple((isinstance(one, str), 0 if isinstance(one, str) else one, str(one)) for one in self.pre_release)
        return self.major, self.minor, self.patch, not self.pre_release, pieces


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that a name has already."""

    version: Version
    plan: str  # digest
    layout: str  # digest: names and shapes of the tensors


def check_grows(kept: Iterable[Kept], new: Kept) -> None:
    """May this be the next version of its name? It grows, and as far as what changed since the last release asks for.

    | since the last release | grows at least in |
    |---|---|
    | tensors of other names or shapes: who loads the model must change | major; minor below 1.0.0 |
    | another plan | minor; anything below 1.0.0 |
    | trained further or anew | anything |

    A pre-release (1.0.0-rc.1) promises nothing, so nothing is asked of what follows one.

    Raises:
        ConfigError: it may not; the message says the next version that may.
    """
    there = sorted(kept, key=lambda one: one.version)
    if there and new.version <= there[-1].version:
        raise ConfigError(f"semver: {new.version} does not grow; the last version is {there[-1].version}")
    released = [one for one in there if not one.version.pre_release]
    if not released:
        return
    last = released[-1]
    before, after = last.version, new.version
    if new.layout != last.layout:
        has_grown, what = (after.major > before.major, "major") if before.major else (_minor(before, after), "minor")
        why = "its tensors have other names or shapes than those of"
    elif new.plan != last.plan and before.major:
        has_grown, what, why = _minor(before, after), "minor", "it comes from another plan than"
    else:
        return
    if not has_grown:
        least = Version(before.major + 1, 0, 0) if what == "major" else Version(before.major, before.minor + 1, 0)
        raise ConfigError(f"semver: {after}: {why} {before}; expected another {what} version, {least} or later")


def _minor(before: Version, after: Version) -> bool:
    return (after.major, after.minor) > (before.major, before.minor)
