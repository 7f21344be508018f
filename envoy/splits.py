"""Which examples train, validate and test: drawn once at the site, by a hash, and never again.

Pure: the split of an example depends on the dataset's name, the seed and the example's group alone, so files that
are added later move none of the others. A group is a patient where the site says how to tell one, else the content
of the example itself: all images of a patient, and every copy of an image, fall into the same split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from ..utils.errors import DatasetError
from ..utils.tensors import canonical_json


class Split(IntEnum):
    """What an example is for; the code is what ``LoadedDataset.split`` holds."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2

    @property
    def word(self) -> str:
        """As it is written down: train, validation or test."""
        return self.name.lower()


_WORDS: Mapping[str, Split] = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "0": Split.TRAIN,
    "val": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "validation": Split.VALIDATION,
    "1": Split.VALIDATION,
    "test": Split.TEST,
    "testing": Split.TEST,
    "2": Split.TEST,
}


class GivenSplits(Enum):
    """What happens to a split that the files came with (folders, npz keys, a column)."""

    KEEP = "keep"  # as given; a validation or test part that is not there is drawn from the training part
    KEEP_TEST = "keep-test"  # the test part as given; all else is drawn anew into training and validation
    IGNORE = "ignore"  # all is drawn anew


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How examples are drawn into splits.

    Raises:
        DatasetError: fractions that are not three shares of one, or no share for training.
    """

    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    given: GivenSplits = GivenSplits.KEEP

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if not all(map(math.isfinite, shares)) or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise DatasetError(f"train, validation and test must be shares that sum to 1, got {shares}")
        if not self.train:
            raise DatasetError("train is 0: a site without training examples cannot take part")

    def share(self, split: Split) -> float:
        """The split's share of all examples."""
        return (self.train, self.validation, self.test)[split]


def split_named(word: str) -> Split | None:
    """The split that a folder or a column calls so, or None.

    >>> split_named("Val")
    <Split.VALIDATION: 1>
    """
    return _WORDS.get(word.strip().casefold())


def assign(dataset: str, examples: Sequence[tuple[str, Split | None]], rule: SplitRule) -> list[Split]:
    """A split for each example, given as its group and the split that it came with.

    | given parts            | keep                             | keep-test                   | ignore    |
    |------------------------|----------------------------------|-----------------------------|-----------|
    | none                   | all drawn                        | all drawn                   | all drawn |
    | train, validation, test| as given                         | test; the rest is drawn     | all drawn |
    | train, test            | test; train gives validation too | test; the rest is drawn     | all drawn |
    | train, validation      | validation; train gives test too | all drawn                   | all drawn |

    Guarantees (each has a property test):
        - examples of one group that are drawn get the same split;
        - an example's split does not depend on which others are there, as long as the same parts are given.
    """
    given = {split for _, split in examples if split is not None}
    if rule.given is GivenSplits.IGNORE or not given:
        return [_draw(dataset, group, rule, frozenset(Split)) for group, _ in examples]
    kept = frozenset({Split.TEST} if rule.given is GivenSplits.KEEP_TEST else {Split.VALIDATION, Split.TEST}) & given
    among = frozenset(Split) - kept
    return [split if split in kept else _draw(dataset, group, rule, among) for group, split in examples]


def _draw(dataset: str, group: str, rule: SplitRule, among: frozenset[Split]) -> Split:
    """One split of those, by their shares: the hash as a number in [0, 1] falls into one of adjoining intervals."""
    if len(among) == 1:
        return next(iter(among))
    raw = hashlib.sha256(canonical_json([dataset, rule.seed, group])).digest()
    place = int.from_bytes(raw[:8], "big") / 2**64 * sum(rule.share(split) for split in among)
    for split in (Split.TEST, Split.VALIDATION):
        if split in among:
            if place < rule.share(split):
                return split
            place -= rule.share(split)
    return Split.TRAIN
