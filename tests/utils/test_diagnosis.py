"""What a doctor says: by limits that both rooms share, and never a failure without its fix."""

import json

import pytest
from fedveil.utils.certificates import CLOCK_SKEW_SECONDS, DAY_SECONDS, issue_client, make_key, make_root
from fedveil.utils.diagnosis import (
    SKEW_TO_NAME_SECONDS,
    Status,
    failed,
    in_json,
    in_lines,
    is_well,
    judge_certificate,
    judge_clock,
    judge_space,
    passed,
    warned,
)
from fedveil.utils.identity import PeerId, Role
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_800_000_000.0
ROOT = make_root("lungs", NOW)
BEGIN, END = ROOT.certificate.not_valid_before_utc.timestamp(), ROOT.certificate.not_valid_after_utc.timestamp()


@given(st.floats(-1e9, 1e9))
def test_a_clock_is_judged_by_how_far_it_is_off_in_either_direction(ahead):
    found = judge_clock(ahead, "the director's")
    assert found.status is judge_clock(-ahead, "the director's").status
    assert (found.status is Status.FAIL) is (abs(ahead) > CLOCK_SKEW_SECONDS)
    assert (found.status is Status.PASS) is (abs(ahead) <= SKEW_TO_NAME_SECONDS)
    assert bool(found.fix) is (found.status is not Status.PASS)
    assert found.status is Status.PASS or ("ahead of" in found.what) is (ahead > 0)


@given(st.floats(BEGIN - 1e9, END + 1e9))
def test_a_certificate_fails_before_it_begins_and_after_it_ends_and_never_between(now):
    found = judge_certificate(ROOT.certificate, "the root", now, "ask")
    assert (found.status is Status.FAIL) is not (BEGIN <= now <= END)
    assert bool(found.fix) is (found.status is not Status.PASS)


def test_a_certificate_is_named_in_its_last_month_and_one_of_seven_days_in_its_last_day():
    assert judge_certificate(ROOT.certificate, "the root", END - 31 * DAY_SECONDS, "").status is Status.PASS
    assert judge_certificate(ROOT.certificate, "the root", END - 29 * DAY_SECONDS, "ask").status is Status.WARN
    peer = PeerId("lungs", Role.ENVOY, "site-a")
    leaf = issue_client(ROOT, make_key().public_key(), peer, 7 * DAY_SECONDS, NOW)
    end = leaf.not_valid_after_utc.timestamp()
    assert judge_certificate(leaf, "the leaf", end - 2 * DAY_SECONDS, "").status is Status.PASS
    assert judge_certificate(leaf, "the leaf", end - DAY_SECONDS, "ask").status is Status.WARN


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 45), st.integers(1, 100))
def test_a_disk_fails_where_a_round_would_not_fit(free, model, copies):
    found = judge_space(free, model, copies, "/srv/site")
    if free < copies * model:
        assert found.status is Status.FAIL
    if found.status is Status.PASS:
        assert free >= 3 * copies * model


@pytest.mark.parametrize("words", [("port", "closed", "open it")])
def test_one_failure_is_a_failure_and_a_warning_is_none(words):
    assert is_well([])
    assert is_well([passed("disk", "room"), warned(*words)])
    assert not is_well([passed("disk", "room"), failed(*words)])


def test_lines_and_json_say_the_same():
    found = [failed("port", "closed", "open it"), warned("clock", "off", "set it"), passed("disk", "room")]
    lines = list(in_lines(found))
    assert lines[-1] == "1 of 3 checks failed, 1 to look at"
    for row in json.loads(in_json(found)):
        assert any(row["what"] in line for line in lines)
        assert not row["fix"] or any(row["fix"] in line for line in lines)
