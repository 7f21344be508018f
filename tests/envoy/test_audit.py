"""A site logs what it consented to before the consent leaves, and refuses a director whose log goes back or forks."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.envoy.audit import LOG_FILE, SiteAudit, heads_in, verify_log
from fedveil.utils.audit_chain import AuditChain, read_entries, verify
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import SumRefusedError, SuspectLogError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.tensors import Digest

NOW = 1_777_636_800.0
ME = PeerId("lungs", Role.ENVOY, "a")
KEY = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
PUBLIC = public_bytes(KEY.public_key())
DIRECTORS = Ed25519PrivateKey.from_private_bytes(b"d" * 32)
SURVIVORS = (EnvoyName("b"), EnvoyName("a"))
TRANSCRIPT = bytes(range(32))


def ref(number: int) -> TaskRef:
    return TaskRef(RunId("lungs-1"), number, 1, Digest("ab" * 32))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def heads(tmp_path: Path) -> list[bytes]:
    """What an honest director gave after each of five entries."""
    return given(tmp_path / "director.jsonl")


def given(path: Path, salt: str = "", key: Ed25519PrivateKey = DIRECTORS) -> list[bytes]:
    found = []
    with AuditChain(path, key, {}, NOW) as chain:
        for number in range(5):
            chain.append({"what": "survivors", "round": number, "salt": salt}, NOW)
            found.append(chain.head.to_bytes())
    return found


def opened(folder: Path) -> SiteAudit:
    return SiteAudit.open(folder, ME, KEY, clock=lambda: NOW)


def consent(folder: Path, number: int, head: bytes) -> None:
    audit = opened(folder)
    try:
        audit.consented(ref(number), TRANSCRIPT, SURVIVORS, head)
    finally:
        audit.close()


def whats(folder: Path) -> list[object]:
    return [entry.event["what"] for entry in read_entries(folder / LOG_FILE)]


def test_each_consent_is_kept_with_round_survivors_and_the_directors_head(site, heads):
    audit = opened(site)
    audit.consented(ref(1), TRANSCRIPT, SURVIVORS, heads[0])
    audit.unmasked(ref(1), TRANSCRIPT)
    audit.close()
    begun, consented, unmasked = read_entries(site / LOG_FILE)
    assert begun.event["name"] == "a"
    assert consented.event["survivors"] == ["a", "b"]
    assert consented.event["transcript"] == unmasked.event["transcript"] == TRANSCRIPT.hex()
    assert consented.event["director_head"] == heads[0].hex()
    found, count = verify_log(site, PUBLIC)
    assert (found.entries, count) == (3, 1)


def test_the_same_consent_again_is_logged_once_also_after_a_restart(site, heads):
    for _ in range(2):
        consent(site, 1, heads[0])
    assert whats(site) == ["log begun", "consented"]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (lambda heads, _: heads[1], "went back"),
        (lambda _, tmp: given(tmp / "fork.jsonl", "forked")[2], "two heads for entry 3"),
        (lambda _, tmp: given(tmp / "other.jsonl", key=Ed25519PrivateKey.generate())[3], "another key"),
        (lambda _heads, _tmp: b"", "no head of its audit log any more"),
        (lambda heads, _: heads[3][:-1] + bytes([heads[3][-1] ^ 1]), "did not sign"),
        (lambda _heads, _tmp: b"short", "of 5 bytes"),
    ],
)
def test_a_director_whose_log_does_not_go_forward_gets_no_consent_also_after_a_restart(
    site, heads, tmp_path, second, why
):
    consent(site, 1, heads[2])
    with pytest.raises(SumRefusedError, match=why):
        consent(site, 2, second(heads, tmp_path))
    assert whats(site)[-1] == "director's log is suspect"
    consent(site, 2, heads[3])  # the honest one is still taken
    verify_log(site, PUBLIC)


def test_a_director_that_keeps_no_log_is_consented_to_and_it_shows(site):
    consent(site, 1, b"")
    assert list(heads_in(site)) == []
    assert verify_log(site, PUBLIC)[1] == 0


def test_a_director_from_a_backup_is_taken_only_when_somebody_says_so_and_that_is_logged(site, heads):
    consent(site, 1, heads[4])
    with pytest.raises(SumRefusedError, match="envoy audit accept-director"):
        consent(site, 2, heads[0])
    audit = opened(site)
    audit.take_anew()
    audit.close()
    consent(site, 2, heads[0])
    assert whats(site)[-2:] == ["director's log taken anew", "consented"]
    verify_log(site, PUBLIC)


def test_the_heads_that_a_site_kept_find_a_director_that_told_sites_apart(site, heads, tmp_path):
    for number, head in enumerate(given(tmp_path / "fork.jsonl", "for this site alone"), 1):
        consent(site, number, head)
    verify_log(site, PUBLIC)  # nothing that this site could see
    verify(tmp_path / "director.jsonl", None)
    with pytest.raises(match="forked"):
        verify(tmp_path / "director.jsonl", None, heads_in(site))
    assert len(heads) == 5


def test_a_changed_log_of_a_site_is_found(site, heads):
    consent(site, 1, heads[0])
    log = site / LOG_FILE
    log.write_bytes(log.read_bytes().replace(b'["a","b"]', b'["a","c"]'))
    with pytest.raises(SuspectLogError, match="entry 1"):
        verify_log(site, PUBLIC)


def test_heads_that_come_with_heartbeats_are_logged_when_due_and_only_where_they_changed(site, heads):
    audit = opened(site)
    audit.witnessed(heads[0])
    audit.witnessed(heads[0])
    audit.witnessed(heads[1], is_due=False)
    audit.witnessed(heads[2])
    audit.close()
    assert whats(site) == ["log begun", "director's head", "director's head"]
    assert [head.number for head in heads_in(site)] == [1, 3]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (lambda heads, _: heads[1], "went back"),
        (lambda _, tmp: given(tmp / "fork.jsonl", "forked")[2], "two heads for entry 3"),
        (lambda _, tmp: given(tmp / "other.jsonl", key=Ed25519PrivateKey.generate())[3], "another key"),
        (lambda _heads, _tmp: b"", "no head of its audit log any more"),
        (lambda _heads, _tmp: b"short", "of 5 bytes"),
    ],
)
@pytest.mark.parametrize("is_due", [True, False])
def test_a_site_stays_away_from_a_director_whose_log_does_not_go_forward_until_somebody_takes_it_anew(
    site, heads, tmp_path, second, why, is_due
):
    audit = opened(site)
    audit.witnessed(heads[2])
    with pytest.raises(SuspectLogError, match=why):
        audit.witnessed(second(heads, tmp_path), is_due=is_due)
    for _ in range(2):  # it stays suspect, is logged once, and gets no consents either: also after a restart
        with pytest.raises(SuspectLogError, match="envoy audit accept-director"):
            audit.witnessed(heads[4])
        with pytest.raises(SumRefusedError, match="envoy audit accept-director"):
            audit.consented(ref(2), TRANSCRIPT, SURVIVORS, heads[4])
        audit.close()
        audit = opened(site)
    assert why in audit.suspicion
    command = opened(site)  # while the envoy runs
    command.take_anew()
    command.close()
    audit.refresh()
    assert audit.suspicion == ""
    audit.witnessed(heads[0])
    audit.close()
    assert whats(site)[1:] == [
        "director's head",
        "director's log is suspect",
        "director's log taken anew",
        "director's head",
    ]
    assert verify_log(site, PUBLIC)[1] == 1


def test_a_head_that_is_pushed_in_a_sum_may_be_older_than_the_last_heartbeats_but_never_another(site, heads, tmp_path):
    audit = opened(site)
    audit.witnessed(heads[3])
    audit.consented(ref(1), TRANSCRIPT, SURVIVORS, heads[1])
    with pytest.raises(SumRefusedError, match="forked"):
        audit.consented(ref(2), TRANSCRIPT, SURVIVORS, given(tmp_path / "fork.jsonl", "x")[3])
    with pytest.raises(SumRefusedError, match="went back"):
        audit.consented(ref(2), TRANSCRIPT, SURVIVORS, heads[0])
    audit.close()
    assert verify_log(site, PUBLIC)[1] == 2


def test_each_event_of_a_site_says_what_when_and_by_whom_and_is_read_by_the_same_names(site):
    audit, digest = opened(site), Digest("cd" * 32)
    operator = PeerId("lungs", Role.OPERATOR, "ops")
    audit.offered(ref(1).run, digest, ref(1).plan, operator)
    audit.approved(digest, ref(1).plan, {"rounds": 3, "datasets": ["xrays"]}, "maria")
    audit.rejected(digest, "maria", "not\nours " + "x" * 2000)
    audit.expired(digest)
    audit.accessed(ref(1), TaskKind.TRAIN, "xrays", 120, proposal=digest, purpose="screening", legal_basis="permit 7")
    audit.sent(ref(1), "masked", digest, 4000)
    audit.refused(ref(1), "PlanError", "a sentence")
    audit.vetoed("lungs-1/1", "maria", "stop", digest)
    audit.stopped("maria", "")
    audit.accepted_roster(digest, ["site-a", "site-b"], "maria")
    audit.renewed("ab" * 32, NOW)
    audit.spent(ref(1), "xrays", 4, "ef" * 32)
    audit.over_budget(ref(1), "xrays", "BudgetExhaustedError", "ef" * 32)
    audit.close()
    events = [dict(entry.event) for entry in read_entries(site / LOG_FILE)][1:]
    assert [event["what"] for event in events] == [
        *("offered", "approved", "rejected", "expired", "data accessed", "sent", "refused", "vetoed", "stopped"),
        *("roster accepted", "renewed", "budget spent", "budget refused"),
    ]
    place = {"run": "lungs-1", "round": 1, "attempt": 1, "plan": "ab" * 32}
    assert events[0]["proposed_by"] == "spiffe://lungs/operator/ops"
    assert events[1]["limits"] == {"rounds": 3, "datasets": ["xrays"]}
    assert events[2]["reason"].startswith("not ours x")
    assert len(events[2]["reason"]) == 1000
    why = {"proposal": digest, "purpose": "screening", "legal_basis": "permit 7"}
    accessed = {"what": "data accessed", "kind": "train", "dataset": "xrays", "records": 120}
    assert events[4] == place | accessed | why
    assert events[5] == place | {"what": "sent", "kind": "masked", "digest": digest, "bytes": 4000}
    verify_log(site, PUBLIC)


def test_envoy_toml_is_known_by_its_last_digest_also_after_a_restart(site):
    audit = opened(site)
    assert audit.policy_digest == ""
    audit.policy(Digest("cd" * 32), audit.policy_digest)
    assert audit.policy_digest == "cd" * 32
    audit.close()
    audit = opened(site)
    assert audit.policy_digest == "cd" * 32
    audit.close()
