"""The cohort: drawn by lot, and the same lot for the same run."""

from __future__ import annotations

import pytest
from fedveil.director.selection import select
from fedveil.utils.messages import EnvoyName
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.sets(st.from_regex(r"[a-z]{1,8}", fullmatch=True).map(EnvoyName), min_size=1, max_size=12)
SEED = bytes(range(32))


def sites(count: int) -> list[EnvoyName]:
    return [EnvoyName(f"site-{nth}") for nth in range(count)]


@given(NAMES)
def test_without_a_size_all_are_asked(names: set[EnvoyName]) -> None:
    assert select(names, None, SEED, 1, 1) == names


@given(NAMES, st.integers(1, 15), st.binary(max_size=40), st.integers(1, 1000), st.integers(1, 5), st.randoms())
def test_a_sample_is_of_those_who_are_there_and_depends_on_nothing_else(
    names: set[EnvoyName], size: int, seed: bytes, number: int, attempt: int, shuffle: object
) -> None:
    mixed = sorted(names)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    chosen = select(mixed, size, seed, number, attempt)
    assert chosen <= names
    assert len(chosen) == min(size, len(names))
    assert chosen == select(sorted(names), size, seed, number, attempt)


@given(st.integers(1, 8), st.integers(1, 100))
def test_one_more_envoy_takes_at_most_one_place(size: int, number: int) -> None:
    before = select(sites(9), size, SEED, number, 1)
    after = select(sites(10), size, SEED, number, 1)
    assert len(before - after) <= 1


def test_a_choice_never_changes_between_versions() -> None:
    assert select(sites(6), 2, SEED, 1, 1) == {"site-1", "site-4"}


def test_rounds_attempts_and_seeds_ask_others() -> None:
    def cohorts(kind: str) -> set[frozenset[EnvoyName]]:
        return {
            select(
                sites(10),
                3,
                bytes([nth]) if kind == "seed" else SEED,
                nth if kind == "round" else 1,
                nth if kind == "attempt" else 1,
            )
            for nth in range(1, 21)
        }

    for kind in ("seed", "round", "attempt"):
        assert len(cohorts(kind)) > 10


def test_every_envoy_is_asked_about_equally_often() -> None:
    asked = [name for number in range(1, 2001) for name in select(sites(10), 3, SEED, number, 1)]
    counts = [asked.count(name) for name in sites(10)]
    assert sum(counts) == 6000
    assert all(500 < count < 700 for count in counts)  # 600 expected, standard deviation 20


def test_a_cohort_of_nobody_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="a cohort of 0"):
        select(sites(3), 0, SEED, 1, 1)
