"""A secret of 32 bytes, shared so that any ``threshold`` of the shares give it back and fewer say nothing.

Source: Shamir 1979, "How to share a secret", in the field of p = 2^256 + 297, the least prime above 2^256, so that
every 32 bytes are a field element. A share is the value of a random polynomial of degree ``threshold - 1`` at x = 1,
2, ...; the secret is its value at 0.

Nothing here says whether a share is the one that was dealt: a wrong one gives a wrong secret. The protocol commits to
each share beforehand and compares. Python's integers take time that depends on their values; what this could tell, it
would tell to somebody on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from ..errors import MalformedMessageError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_WIDE = 49
"""Random bytes of a coefficient: 136 bits more than the field has, so that the remainder is uniform to 2^-128."""


def split(secret: bytes, threshold: int, count: int, random: Callable[[int], bytes]) -> list[bytes]:
    """Deal ``count`` shares, the one for x = 1 first.

    Args:
        secret: 32 bytes.
        threshold: how many shares give the secret back, 1 to ``count``.
        count: how many shares.
        random: gives so many unpredictable bytes; asked once. Every 49 bytes, big endian, are one coefficient modulo p,
            the one of x^1 first.

    Returns:
        Each 33 bytes, big endian.

    Raises:
        ValueError: a secret of another length, or a threshold that no number of shares meets.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes, expected {SECRET_BYTES}")
    if not 1 <= threshold <= count:
        raise ValueError(f"threshold {threshold} of {count} shares")
    drawn = random(_WIDE * (threshold - 1))
    if len(drawn) != _WIDE * (threshold - 1):
        raise ValueError(f"asked for {_WIDE * (threshold - 1)} random bytes, got {len(drawn)}")
    coefficients = [int.from_bytes(drawn[at : at + _WIDE], "big") % PRIME for at in range(0, len(drawn), _WIDE)]
    coefficients.reverse()
    constant, shares = int.from_bytes(secret, "big"), []
    for x in range(1, count + 1):
        y = 0
        for coefficient in coefficients:  # Horner's rule, the highest power first
            y = (y + coefficient) * x % PRIME
        shares.append(((y + constant) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from the ``threshold`` shares of the lowest x.

    Coefficients of the last few sets of x are kept: the second secret of the same senders costs a fraction.

    Args:
        shares: by x, which is 1 for the first of ``split``.
        threshold: as it was dealt with.

    Raises:
        MalformedMessageError: a share is no field element of 33 bytes.
        ValueError: too few shares, an x that is none, or the value at 0 is no secret of 32 bytes.
    """
    if not 1 <= threshold <= len(shares):
        raise ValueError(f"{len(shares)} shares, expected {threshold} or more")
    chosen = tuple(sorted(shares)[:threshold])
    if not 1 <= chosen[0] <= chosen[-1] < PRIME:
        raise ValueError("shares are numbered from 1 on")
    weights = _weights_at_zero(chosen)
    value = sum(weight * field_element(shares[x]) for x, weight in zip(chosen, weights, strict=True)) % PRIME
    if value >> (8 * SECRET_BYTES):
        raise ValueError("these shares are not of one secret of 32 bytes")
    return value.to_bytes(SECRET_BYTES, "big")


def field_element(share: bytes) -> int:
    """A share as a number below p.

    Raises:
        MalformedMessageError: another length, or p and above.
    """
    if len(share) != SHARE_BYTES:
        raise MalformedMessageError(f"a share of {len(share)} bytes, expected {SHARE_BYTES}")
    value = int.from_bytes(share, "big")
    if value >= PRIME:
        raise MalformedMessageError("a share that is no element of the field")
    return value


@lru_cache(maxsize=64)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """What each share counts for in the value at 0 (Lagrange): the product of x_j / (x_j - x_i) over the others j.

    >>> _weights_at_zero((1, 2)) == (2, PRIME - 1)
    True
    """
    weights = []
    for x in points:
        above, below = 1, 1
        for other in points:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
