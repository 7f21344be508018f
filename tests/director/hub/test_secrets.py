"""Codes are good once, guesses get slow, and keys are kept as what cannot be turned back into them."""

import os

import pytest
from fedveil.director.hub import api_keys
from fedveil.director.hub.api_keys import ApiKey
from fedveil.director.hub.lockout import FREE_FAILURES, MOST_WAIT_SECONDS, Failures
from fedveil.director.hub.one_time_codes import accepted_step, code_at, make_secret, secret_text
from hypothesis import given
from hypothesis import strategies as st

RFC_6238 = b"12345678901234567890"


@pytest.mark.parametrize(
    ("now", "code"), [(59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924")]
)
def test_codes_are_those_of_rfc_6238(now, code):
    assert code_at(RFC_6238, now) == code
    assert accepted_step(RFC_6238, code, now, -1) == now // 30


@given(st.integers(60, 1 << 33), st.integers(-200, 200))
def test_a_code_is_good_in_its_own_step_and_its_neighbours_and_never_twice(now, late):
    code = code_at(RFC_6238, now)
    step = accepted_step(RFC_6238, code, max(0, now + late), -1)
    if abs((now + late) // 30 - now // 30) <= 1:
        assert step is not None
        assert accepted_step(RFC_6238, code, now + late, step) is None
    else:  # by chance another step has the same six digits
        assert step is None or code_at(RFC_6238, step * 30) == code


@pytest.mark.parametrize("code", ["", "28708", "2870822", "28708a", "٢٨٧٠٨٢", "-87082"])
def test_what_is_no_code_is_refused(code):
    assert accepted_step(RFC_6238, code, 59, -1) is None


def test_the_secret_can_be_typed():
    assert secret_text(RFC_6238) == "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    assert len(make_secret(os.urandom)) == 20


def test_people_may_mistype_and_who_guesses_for_a_year_has_made_few_guesses():
    now, guesses, failures = 0.0, 0, Failures()
    for _ in range(FREE_FAILURES):
        failures = failures.failed(now)
        assert failures.wait(now) == 0
    while now < 365 * 86400:
        now += failures.wait(now)
        failures, guesses = failures.failed(now), guesses + 1
    assert guesses < 10_000


@given(st.integers(0, 10_000), st.floats(0, 1e10), st.floats(0, 1e10))
def test_nobody_is_locked_out_for_longer_than_an_hour_whatever_the_clock_does(count, last, now):
    assert 0 <= Failures(count, last).wait(now) <= MOST_WAIT_SECONDS


def test_a_key_opens_what_it_was_made_for_and_nothing_else():
    one, other = api_keys.make(os.urandom), api_keys.make(os.urandom)
    kept = ApiKey(one.id, "anna", "notebook", one.sha256, frozenset(), 0.0, 100.0)
    assert api_keys.presented(api_keys.text_of(one)) == one
    assert one.opens(kept)
    assert not other.opens(kept)
    assert not api_keys.Presented(one.id, other.secret).opens(kept)
    assert (kept.is_good(99.0), kept.is_good(100.0)) == (True, False)
    for shown in (repr(one), repr(kept)):
        assert one.secret not in shown
        assert one.sha256 not in shown


@given(st.text())
def test_what_is_no_key_is_no_key(text):
    assert api_keys.presented(text) is None
