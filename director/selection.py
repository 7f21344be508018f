"""Which envoys a round asks.

Pure: the choice depends on the run's seed, the round, the attempt and the names alone, so a director that was
killed asks the same envoys again, and anybody who knows the seed can check the choice. Who is there is known to
``coordinator``; whether a cohort is large enough is decided by ``rounds``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from ..utils.messages import EnvoyName


def select(
    available: Collection[EnvoyName], size: int | None, seed: bytes, round_number: int, attempt: int
) -> frozenset[EnvoyName]:
    """All who are there, or a sample without replacement; each envoy is as likely as any other.

    Envoys are ranked by a hash of their own, so that one more envoy takes at most one other's place.

    Args:
        available: names, in any order.
        size: envoys to ask, at least 1; None, or more than are there: all.
        seed: of the run.
        round_number: from 1.
        attempt: from 1; another attempt asks another sample, so that a silent cohort is not asked for ever.
    """
    if size is not None and size < 1:
        raise ValueError(f"a cohort of {size}, expected at least 1")
    if size is None or size >= len(available):
        return frozenset(available)
    key = hashlib.sha256(b"fedveil/selection/1\0" + round_number.to_bytes(8) + attempt.to_bytes(8) + seed).digest()
    ranked = sorted(frozenset(available), key=lambda name: (hashlib.sha256(key + name.encode()).digest(), name))
    return frozenset(ranked[:size])
