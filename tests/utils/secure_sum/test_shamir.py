"""Shares give the secret back from any threshold of them, and fewer say nothing."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from fedveil.utils.errors import MalformedMessageError
from fedveil.utils.secure_sum.shamir import PRIME, SHARE_BYTES, combine, field_element, split
from hypothesis import given
from hypothesis import strategies as st
from sympy import GF, isprime
from sympy.polys.matrices import DomainMatrix

VECTORS = json.loads((Path(__file__).parent / "vectors" / "shamir.json").read_text("utf-8"))["cases"]
secrets = st.binary(min_size=32, max_size=32)


def numbered(shares):
    return dict(enumerate(shares, 1))


def test_the_modulus_is_the_least_prime_above_every_secret():
    assert isprime(PRIME)
    assert not any(isprime(number) for number in range(2**256 + 1, PRIME, 2))


@pytest.mark.parametrize("case", VECTORS)
def test_published_vectors(case):
    drawn = bytes.fromhex(case["random"])
    shares = split(bytes.fromhex(case["secret"]), case["threshold"], case["count"], lambda length: drawn[:length])
    assert [share.hex() for share in shares] == case["shares"]
    assert combine(numbered(shares), case["threshold"]).hex() == case["secret"]


@given(secrets, st.integers(1, 12), st.integers(0, 8), st.randoms(use_true_random=False))
def test_any_threshold_of_the_shares_gives_the_secret_back(secret, threshold, more, rng):
    shares = numbered(split(secret, threshold, threshold + more, os.urandom))
    chosen = dict(rng.sample(sorted(shares.items()), threshold))
    assert combine(chosen, threshold) == secret
    assert combine(shares, threshold) == secret


def test_a_polynomial_through_the_shares_by_sympy_has_the_secret_at_zero():
    secret, field = os.urandom(32), GF(PRIME, symmetric=False)
    shares = split(secret, 5, 9, os.urandom)
    points = (2, 3, 6, 7, 9)
    powers = DomainMatrix([[field(x) ** k for k in range(5)] for x in points], (5, 5), field)
    values = DomainMatrix([[field(int.from_bytes(shares[x - 1], "big"))] for x in points], (5, 1), field)
    assert int(powers.lu_solve(values).to_list()[0][0]) == int.from_bytes(secret, "big")


@given(secrets, st.binary(min_size=49, max_size=49))
def test_one_share_too_few_fits_every_secret(secret, drawn):
    """For the share of x = 1 and any other secret there is a polynomial: here it is, with a coefficient of its own."""
    (share, _) = split(secret, 2, 2, lambda _: drawn)
    other = bytes(reversed(secret))
    slope = (int.from_bytes(share, "big") - int.from_bytes(other, "big")) % PRIME
    (same, _) = split(other, 2, 2, lambda _: slope.to_bytes(49, "big"))
    assert same == share


def test_a_changed_share_changes_the_secret():
    secret = os.urandom(32)
    shares = numbered(split(secret, 3, 3, os.urandom))
    changed = (field_element(shares[2]) ^ 1).to_bytes(SHARE_BYTES, "big")
    with contextlib.suppress(ValueError):  # 297 field elements are no 32 bytes
        assert combine({**shares, 2: changed}, 3) != secret


def test_a_value_that_is_no_secret_is_refused():
    above = (2**256).to_bytes(SHARE_BYTES, "big")
    with pytest.raises(ValueError, match="not of one secret"):
        combine({1: above}, 1)


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big"), b"\xff" * 33])
def test_a_share_that_is_no_field_element_is_the_senders_fault(share):
    with pytest.raises(MalformedMessageError):
        combine({1: share}, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: split(bytes(31), 1, 1, os.urandom),
        lambda: split(bytes(32), 0, 1, os.urandom),
        lambda: split(bytes(32), 3, 2, os.urandom),
        lambda: split(bytes(32), 2, 2, lambda _: b"short"),
        lambda: combine({1: bytes(33)}, 2),
        lambda: combine({}, 0),
        lambda: combine({0: bytes(33)}, 1),
    ],
)
def test_our_own_callers_mistakes_are_value_errors(wrong):
    with pytest.raises(ValueError):
        wrong()
