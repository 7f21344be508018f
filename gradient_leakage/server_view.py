"""A statistical smoke test of what a director saw of secure sums. It is a smoke test and NO PROOF.

It asks whether masked vectors look independent of the updates in them: correlations (of each vector, of differences and
sums of several, of one site over rounds, of neighbouring words) and the evenness of bytes, each with a p-value, all
together under one bound on false alarms (Holm 1979). ``two_inputs`` repeats sums with two inputs of one total, and
compares the distributions of what is seen on a ring so small that its outcomes can be counted.

That nothing is found says that gross defects are absent, and no more. Masks from a generator with 32 bits of seed pass
as well (a test shows it), and so do masks whose keys the director knows. What says that masks hide is the argument in
the project's ``SECURITY.md``, which has had no outside review.

What it finds, at ``LEVEL``, in vectors of 25,000 words of four sites over two rounds (each has a test that plants it):

| defect | found by | from |
|---|---|---|
| one number as the whole mask (OpenFL 1.9), as floats or in the ring | correlation | 100 words |
| all masks of a site used in two rounds; a pair's, seen by a coalition of all others | correlation over rounds | 100 |
| two sites with the same mask, some whose masks cancel | correlation of differences and sums | 100 |
| a mask that begins anew after 1, 4, 2^14 or 2^18 words | correlation of words so far apart | 100 beyond it |
| words sent without a mask, at random places | bytes | 1 word in 100 |
| a mask whose highest bit is set 55 times in 100 | bytes | 25,000 words |
| a linear share of the update in the vector | correlation | ``least_correlation``: 0.05 |
| a short seed; a known key; a mask that only another run shows | nothing here | - |

Pure: numbers in, numbers out. Only somebody who owns all sites has the true updates to correlate with; the looks at
bytes need none, and are all that an auditor can take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from ..utils.errors import ConfigError

LEVEL = 1e-6
"""Chance of at least one false alarm in one smoke test, as far as its approximations hold."""
MOST_WORDS = 1 << 20  # of each vector that are looked at
_LAGS = (1, 4, 1 << 14, 1 << 18)  # words: neighbours, a block of AES, a piece of keystream, a message on the wire
_LEAST = 100  # words to correlate; fewer say nothing
_PER_CELL = 5  # expected counts below which chi-square is no approximation
_MOST_SITES = 8  # whose subsets are all summed; of more, pairs alone

Seen: TypeAlias = Mapping[str, NDArray[Any]]
"""Of one round, by site: uint32 words as they arrived, read modulo 2^32 with their sign; or floats (broken schemes)."""
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Look:
    """One question to the numbers."""

    kind: str  # such as "correlation"
    of: str  # which sites, which rounds
    statistic: float
    p_value: float  # chance of as much or more where masks are even and independent of all else
    size: int  # numbers that were looked at


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """All looks, and those that would hardly come by chance."""

    looks: tuple[Look, ...]
    level: float = LEVEL

    @property
    def findings(self) -> tuple[Look, ...]:
        """Looks that do not fit even and independent masks, by Holm's step-down; strongest first."""
        ordered = sorted(self.looks, key=lambda look: look.p_value)
        for place, look in enumerate(ordered):
            if look.p_value > self.level / (len(ordered) - place):
                return tuple(ordered[:place])
        return tuple(ordered)

    def by_kind(self) -> dict[str, tuple[Look, ...]]:
        """In the order in which they were made."""
        kinds: dict[str, tuple[Look, ...]] = {}
        for look in self.looks:
            kinds[look.kind] = (*kinds.get(look.kind, ()), look)
        return kinds


@dataclass(frozen=True, slots=True)
class _Combination:
    """Vectors that are added and taken away, as a director might do it."""

    kind: str
    of: str
    parts: tuple[tuple[int, str, int], ...]  # round, site, sign

    def seen(self, rounds: Sequence[Seen]) -> NDArray[Any]:
        """Modulo 2^32, or as floats."""
        first = rounds[self.parts[0][0]][self.parts[0][1]]
        total = np.zeros(first.size, np.uint32 if first.dtype == np.uint32 else np.float64)
        for number, site, sign in self.parts:
            (np.add if sign > 0 else np.subtract)(total, rounds[number][site], out=total)
        return total

    def true(self, truths: Sequence[Mapping[str, NDArray[Any]]]) -> Floats:
        """The same of what was masked."""
        total = np.zeros(truths[self.parts[0][0]][self.parts[0][1]].size)
        for number, site, sign in self.parts:
            total += sign * truths[number][site].astype(np.float64)
        return total


def smoke_test(
    rounds: Sequence[Seen], truths: Sequence[Mapping[str, NDArray[Any]]] = (), level: float = LEVEL
) -> SmokeTest:
    """Look at the vectors of some rounds, at their differences, and at sums of some of them.

    Args:
        rounds: what the director saw, all of one length: the body alone, without the tallies behind it.
        truths: what was masked, of the same rounds and sites; without it only bytes are looked at.
        level: chance of a false alarm.

    Raises:
        ConfigError: no vector, vectors of different lengths, or truths that are not of these rounds and sites.
    """
    lengths = {vector.size for seen in (*rounds, *truths) for vector in seen.values()}
    if len(lengths) != 1 or min(lengths) < 1:
        raise ConfigError(f"vectors of lengths {sorted(lengths)}: expected some, and all of one length")
    if truths and [set(seen) for seen in rounds] != [set(truth) for truth in truths]:
        raise ConfigError("truths of other rounds or sites than those that were seen")
    rounds = [{site: vector[:MOST_WORDS] for site, vector in seen.items()} for seen in rounds]
    truths = [{site: vector[:MOST_WORDS] for site, vector in truth.items()} for truth in truths]
    looks: list[Look] = []
    for combination in _combinations(rounds):
        seen = combination.seen(rounds)
        looks += _looks_at_bytes(combination, seen)
        if truths:
            looks += _looks_at_correlation(combination, seen, combination.true(truths))
    return SmokeTest(tuple(looks), level)


def least_correlation(size: int, looks: int, level: float = LEVEL, power: float = 0.9) -> float:
    """The least correlation that one of so many looks at ``size`` numbers finds with that chance.

    >>> round(least_correlation(25_000, 400), 3)
    0.049
    """
    return (math.sqrt(2 * math.log(2 * looks / level)) + float(norm.ppf(power))) / math.sqrt(size)


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Of uint32 words read with their sign, or of floats; 0 where one of them is constant."""
    first, second = _signed(one), _signed(other)
    first, second = first - first.mean(), second - second.mean()
    length = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / length if length else 0.0


def two_inputs(
    view: Callable[[NDArray[np.uint32], int], NDArray[np.uint32]],
    first: NDArray[np.uint32],
    second: NDArray[np.uint32],
    repeats: int,
    bits: int = 3,
    level: float = LEVEL,
) -> SmokeTest:
    """Does what is seen of sums tell which of two inputs went in? By counting outcomes on a small ring.

    The lowest bits of words modulo 2^32 are themselves a secure sum, modulo 2^bits: small enough to count all joint
    outcomes of up to three vectors. Both inputs have one total, as that is what a director is to learn; all that was
    seen must then have one distribution (chi-square of two samples; each word of a sum is a draw).

    Args:
        view: of inputs (sites, words) and the number of the repetition, what is seen: (rows, words).
        first: inputs, (sites, words).
        second: others of the same total.
        repeats: sums with each.
        bits: of the ring.
        level: chance of a false alarm.

    Raises:
        ConfigError: the totals differ, or there are too few draws to count so many outcomes.
    """
    if first.shape != second.shape or not np.array_equal(first.sum(0, np.uint32), second.sum(0, np.uint32)):
        raise ConfigError("two inputs of different totals: a director learns the total, and may tell them apart by it")
    seen = [
        np.concatenate([view(given, start + n) for n in range(repeats)], axis=1)
        for given, start in ((first, 0), (second, repeats))
    ]
    low = [(part & np.uint32((1 << bits) - 1)).astype(np.int64) for part in seen]
    high = [(part >> np.uint32(32 - bits)).astype(np.int64) for part in seen]
    looks = []
    for width in (1, 2, 3):
        for rows in combinations(range(len(seen[0])), width):
            cells = [sum((part[row] << bits * place) for place, row in enumerate(rows)) for part in low]
            named = ", ".join(str(row) for row in rows)
            looks.append(_alike("lowest bits together", f"rows {named}", cells, 1 << bits * width))
    looks += [
        _alike("highest bits", f"row {row}", [part[row] for part in high], 1 << bits) for row in range(len(seen[0]))
    ]
    return SmokeTest(tuple(looks), level)


def _combinations(rounds: Sequence[Seen]) -> Iterator[_Combination]:
    """What a director would try: vectors, differences and sums of some within a round, one site's over rounds.

    The sum of all sites is what it is to learn, and not among them.
    """
    for number, seen in enumerate(rounds):
        sites = sorted(seen)
        where = f"round {number + 1}"
        for site in sites:
            yield _Combination("each vector", f"{site}, {where}", ((number, site, 1),))
        for one, other in combinations(sites, 2):
            yield _Combination(
                "differences of two", f"{one} - {other}, {where}", ((number, one, 1), (number, other, -1))
            )
        for count in range(2, len(sites)) if len(sites) <= _MOST_SITES else (2,):
            for some in combinations(sites, count):
                parts = tuple((number, site, 1) for site in some)
                yield _Combination("sums of some", f"{' + '.join(some)}, {where}", parts)
    for one_round, other_round in combinations(range(len(rounds)), 2):
        for site in sorted(set(rounds[one_round]) & set(rounds[other_round])):
            named = f"{site}, round {other_round + 1} - round {one_round + 1}"
            yield _Combination("over rounds", named, ((other_round, site, 1), (one_round, site, -1)))


def _looks_at_bytes(combination: _Combination, seen: NDArray[Any]) -> Iterator[Look]:
    words = seen if seen.dtype == np.uint32 else seen.astype(np.float32).view(np.uint32)
    kind = f"bytes, {combination.kind}"
    for place in (3, 2, 1, 0) if seen.dtype == np.uint32 else (3,):
        yield from _even(kind, f"{combination.of}, byte {place}", _bytes(words, place))
    if combination.kind == "each vector" and seen.dtype == np.uint32:
        for lag in _LAGS:
            named = f"{combination.of}, {lag} words apart"
            yield from _even("bytes, words apart", named, _bytes(words[lag:] - words[:-lag], 3))


def _looks_at_correlation(combination: _Combination, seen: NDArray[Any], true: Floats) -> Iterator[Look]:
    if seen.size >= _LEAST:
        yield _correlated(f"correlation, {combination.kind}", combination.of, seen, true)
    for lag in _LAGS:
        if seen.size - lag >= _LEAST:
            named = f"{combination.of}, {lag} words apart"
            apart = seen[lag:] - seen[:-lag], true[lag:] - true[:-lag]
            yield _correlated("correlation, words apart", named, *apart)


def _correlated(kind: str, of: str, seen: NDArray[Any], true: Floats) -> Look:
    """Of even words with anything fixed: at most 2 exp(-n r^2 / 2), as even numbers are strictly subgaussian."""
    found = correlation(seen, true)
    return Look(kind, of, found, min(1.0, 2 * math.exp(-(seen.size - 1) * found * found / 2)), seen.size)


def _even(kind: str, of: str, values: NDArray[np.uint8]) -> Iterator[Look]:
    """Chi-square against even counts: in 256 cells, or 16 where there are few; nothing where there are too few."""
    cells = 256 if values.size >= _PER_CELL * 256 else 16
    if values.size < _PER_CELL * cells:
        return
    counts = np.bincount(values // (256 // cells), minlength=cells)
    expected = values.size / cells
    statistic = float(((counts - expected) ** 2).sum() / expected)
    yield Look(kind, of, statistic, float(chi2.sf(statistic, cells - 1)), values.size)


def _alike(kind: str, of: str, cells: Sequence[NDArray[np.int64]], count: int) -> Look:
    """Chi-square of two samples of one size over the outcomes that either had."""
    draws = len(cells[0])
    if draws < _PER_CELL * count:
        raise ConfigError(f"{draws} draws for {count} outcomes: at least {_PER_CELL * count} are needed; repeat more")
    one, other = (np.bincount(part, minlength=count) for part in cells)
    both = one + other
    held = both > 0
    statistic = float((((one - other) ** 2)[held] / both[held]).sum())
    return Look(kind, of, statistic, float(chi2.sf(statistic, max(1, int(held.sum()) - 1))), draws)


def _bytes(words: NDArray[np.uint32], place: int) -> NDArray[np.uint8]:
    return (words >> np.uint32(8 * place)).astype(np.uint8)


def _signed(values: NDArray[Any]) -> Floats:
    return (values.view(np.int32) if values.dtype == np.uint32 else values).astype(np.float64)
