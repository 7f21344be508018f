"""The director keeps each site's heads once a round, and asks no site whose log does not go forward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.audit import LOG_FILE, DirectorAudit, verify_log
from fedveil.director.site_heads import SiteHeads
from fedveil.utils.audit_chain import AuditChain, SignedHead, read_entries
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import ProtocolError, StorageError
from fedveil.utils.messages import EnvoyName, RunId, TaskRef
from fedveil.utils.tensors import Digest

NOW = 1_777_636_800.0
SITE = EnvoyName("site-a")
KEY = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
PLAN = Digest("ab" * 32)


def given(path: Path, salt: str = "", key: Ed25519PrivateKey = KEY) -> list[bytes]:
    """What a site's log gave after each of six entries."""
    found = []
    with AuditChain(path, key, {}, NOW) as chain:
        for number in range(6):
            chain.append({"what": "sent", "number": number, "salt": salt}, NOW)
            found.append(chain.head.to_bytes())
    return found


class Desk:
    """A director's log and heads, started anew as often as a test likes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys = folder, {SITE: public_bytes(KEY.public_key())}
        self.rounds = 0
        self.start()

    def start(self) -> None:
        self.audit = DirectorAudit.open(self.folder, "lungs", clock=lambda: NOW)
        self.heads = SiteHeads(self.audit, read_entries(self.folder / LOG_FILE), self.keys.get)

    def restart(self) -> None:
        self.audit.close()
        self.start()

    def end_round(self) -> None:
        self.rounds += 1
        self.audit.closed(TaskRef(RunId("lungs-1"), self.rounds, 1, PLAN), PLAN, None)

    def whats(self) -> list[object]:
        found = [entry.event["what"] for entry in read_entries(self.folder / LOG_FILE)]
        return [what for what in found if what != "round closed"][1:]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    folder = tmp_path / "director"
    folder.mkdir()
    made = Desk(folder)
    yield made
    made.audit.close()


@pytest.fixture
def heads(tmp_path: Path) -> list[bytes]:
    return given(tmp_path / "site.jsonl")


def test_a_head_is_logged_once_a_round_and_only_when_it_changed_also_after_a_restart(desk, heads):
    for head in heads[:3]:  # many heartbeats in one round
        answered = desk.heads.exchange(SITE, head)
    assert SignedHead.from_bytes(answered) == desk.audit.head
    assert desk.whats() == ["site's head"]
    desk.end_round()
    desk.heads.exchange(SITE, heads[2])
    desk.restart()
    desk.heads.exchange(SITE, heads[2])
    desk.end_round()
    desk.heads.exchange(SITE, heads[2])
    assert desk.whats() == ["site's head"] * 2
    desk.end_round()
    desk.heads.exchange(SITE, heads[3])
    assert desk.whats() == ["site's head"] * 3


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (lambda heads, _: heads[1], "went back from entry 4 to 2"),
        (lambda _, tmp: given(tmp / "fork.jsonl", "forked")[3], "two heads for entry 4"),
        (lambda _, tmp: given(tmp / "other.jsonl", key=Ed25519PrivateKey.generate())[4], "not signed by its identity"),
        (lambda _heads, _tmp: b"", "gives no head"),
        (lambda _heads, _tmp: b"short", "of 5 bytes"),
    ],
)
def test_a_site_whose_log_does_not_go_forward_is_not_asked_until_the_operator_says_so(
    desk, heads, tmp_path, second, why
):
    desk.heads.exchange(SITE, heads[3])
    wrong = second(heads, tmp_path)
    if "went back" in why:
        desk.heads.exchange(SITE, wrong)  # the first time it may be a call that was overtaken by the next
        assert desk.heads.suspicions == {}
    with pytest.raises(ProtocolError, match=why):
        desk.heads.exchange(SITE, wrong)
    for _ in range(2):  # an honest head changes nothing, nor does a restart
        with pytest.raises(ProtocolError, match="director audit accept-site site-a"):
            desk.heads.exchange(SITE, heads[5])
        assert why in desk.heads.suspicions[SITE]
        desk.restart()
    command = DirectorAudit.open(desk.folder, "lungs", clock=lambda: NOW)  # while the director runs
    command.takes_anew(SITE, "root")
    command.close()
    desk.heads.exchange(SITE, heads[1])
    assert desk.heads.suspicions == {}
    assert desk.whats() == ["site's head", "site's log is suspect", "site's log taken anew", "site's head"]
    verify_log(desk.folder)


def test_a_call_that_was_overtaken_by_the_next_is_no_log_that_went_back(desk, heads):
    for number in (3, 1, 4, 2, 5):
        desk.heads.exchange(SITE, heads[number])
    assert desk.heads.suspicions == {}


def test_a_site_that_joined_anew_with_another_identity_key_begins_anew(desk, heads, tmp_path):
    desk.heads.exchange(SITE, heads[3])
    key = Ed25519PrivateKey.generate()
    desk.keys[SITE] = public_bytes(key.public_key())
    desk.heads.exchange(SITE, given(tmp_path / "new.jsonl", key=key)[0])
    assert desk.whats() == ["site's head", "site's log taken anew", "site's head"]


def test_a_head_of_somebody_who_never_joined_is_not_believed(desk, heads):
    with pytest.raises(ProtocolError, match="not signed by its identity key"):
        desk.heads.exchange(EnvoyName("site-z"), heads[0])
    desk.heads.exchange(SITE, heads[0])


def test_a_site_that_keeps_no_log_is_heard(desk):
    assert desk.heads.exchange(SITE, b"") == desk.audit.head.to_bytes()


def test_a_full_disk_is_the_directors_own_matter_and_the_head_is_kept_later(desk, heads, monkeypatch):
    def full(*_: object) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(desk.audit, "witnessed", full)
    desk.heads.exchange(SITE, heads[0])
    monkeypatch.undo()
    desk.heads.exchange(SITE, heads[0])
    assert desk.whats() == ["site's head"]
