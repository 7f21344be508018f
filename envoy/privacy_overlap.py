"""Does a data set hold examples of another that has a privacy budget? Then the budget could be walked round.

Examples are compared by the digest of their content, as they were recorded: the same image saved anew, or cropped, is
another one.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..utils.errors import DatasetError
from .datasets import DatasetRegistry


class Overlaps:
    """Looks once at each pair of data sets.

    Args:
        datasets: of the site.
    """

    def __init__(self, datasets: DatasetRegistry) -> None:
        self._datasets = datasets
        self._found: dict[frozenset[str], int] = {}

    def of(self, name: str, others: Iterable[str]) -> dict[str, int]:
        """How many examples a data set shares with each of those others that it shares any with.

        Those that are no longer at the site share none.

        Raises:
            StorageError: a record or an index is damaged.
        """
        try:
            digest = self._datasets.get(name).digest
        except DatasetError:
            return {}
        found = {}
        for other in sorted(set(others) - {name}):
            try:
                pair = frozenset((digest, self._datasets.get(other).digest))
            except DatasetError:
                continue
            if pair not in self._found:
                here, there = self._contents(name), self._contents(other)
                self._found[pair] = len(here & there)
            if self._found[pair]:
                found[other] = self._found[pair]
        return found

    def _contents(self, name: str) -> frozenset[str]:
        return frozenset(example.digest for example in self._datasets.index(name).examples)
