"""What one piece of work may see of the site's files. What it may write comes as open descriptors, not by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class View:
    """Files, and folders with all that is below them, to be read."""

    readable: frozenset[Path]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> View:
        """These, by their absolute names; a link in a name stays."""
        return cls(frozenset(path.absolute() for path in paths))

    def covers(self, other: View) -> bool:
        """Is everything in the other one in this one too?

        >>> whole, part = View.of([Path("/plans")]), View.of([Path("/plans/one")])
        >>> whole.covers(part), part.covers(whole)
        (True, False)
        """
        return all(any(path.is_relative_to(held) for held in self.readable) for path in other.readable)
