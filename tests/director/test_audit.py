"""The director's log says what it did, by names and digests alone, and each head that it gave out binds it."""

from __future__ import annotations

import stat

import pytest
from fedveil.director.audit import KEY_FILE, LOG_FILE, DirectorAudit, read_heads, verify_log
from fedveil.director.records import SumRecord
from fedveil.utils.audit_chain import SignedHead, read_entries
from fedveil.utils.errors import MalformedMessageError, StorageError, SuspectLogError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.tensors import Digest

NOW = 1_777_636_800.0
PLAN, MODEL = Digest("ab" * 32), Digest("cd" * 32)
RUN = RunId("lungs-1")
REF = TaskRef(RUN, 1, 2, PLAN)
SITES = (EnvoyName("c"), EnvoyName("a"), EnvoyName("b"))


def opened(folder):
    return DirectorAudit.open(folder, "lungs", clock=lambda: NOW)


def one_round(audit: DirectorAudit) -> SignedHead:
    audit.run_submitted(RUN, PLAN, MODEL)
    audit.round_opened(REF, TaskKind.TRAIN, MODEL, SITES)
    audit.cohort(REF, bytes(32), SITES, 3)
    head = audit.survivors(REF, bytes(32), SITES)
    audit.closed(REF, MODEL, SumRecord(SITES, 4, 3, 300, Digest("00" * 32), (0,), (8.0,)))
    audit.failed(REF, "too few answers")
    audit.expelled(RUN, EnvoyName("c"), "a share that is not the one it committed to")
    return head


def test_a_round_leaves_what_was_done_in_order(tmp_path):
    audit = opened(tmp_path)
    head = one_round(audit)
    audit.close()
    entries = list(read_entries(tmp_path / LOG_FILE))
    assert [entry.event["what"] for entry in entries] == [
        "log begun",
        "run submitted",
        "round opened",
        "cohort closed",
        "survivors",
        "round closed",
        "round failed",
        "expelled",
    ]
    assert entries[0].event["federation"] == "lungs"
    assert entries[4].event["envoys"] == ["a", "b", "c"]
    assert (head.number, head.hash) == (4, entries[4].hash)
    assert (entries[5].event["total_weight"], entries[5].event["survivors"]) == (300, ["a", "b", "c"])
    assert verify_log(tmp_path, [head]).heads == 1


def test_the_head_that_goes_to_sites_holds_the_survivors_it_goes_with(tmp_path):
    audit = opened(tmp_path)
    before = audit.head
    assert audit.survivors(REF, bytes(32), SITES).number == before.number + 1
    audit.close()


def test_the_key_is_made_once_and_is_for_its_owner_alone(tmp_path):
    for _ in range(2):
        audit = opened(tmp_path)
        one_round(audit)
        audit.close()
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert verify_log(tmp_path).entries == 15


def test_a_log_that_lost_its_key_is_not_gone_on_with(tmp_path):
    opened(tmp_path).close()
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(match="not signed by the key"):
        opened(tmp_path)


def test_a_director_that_was_set_up_anew_in_silence_is_found_by_what_sites_kept(tmp_path):
    audit = opened(tmp_path)
    head = one_round(audit)
    audit.close()
    file = tmp_path / "heads"
    file.write_text(head.to_bytes().hex() + "\n", "ascii")
    assert verify_log(tmp_path, read_heads(file)).heads == 1
    (tmp_path / LOG_FILE).unlink()
    audit = opened(tmp_path)
    audit.run_submitted(RUN, PLAN, MODEL)
    audit.close()
    with pytest.raises(SuspectLogError, match="cut"):
        verify_log(tmp_path, read_heads(file))


@pytest.mark.parametrize("text", ["zz", "ab" * 136, "ab"])
def test_a_file_that_holds_no_heads_is_named(tmp_path, text):
    (tmp_path / "heads").write_text(text, "ascii")
    with pytest.raises(MalformedMessageError, match=r"heads: head 1:"):
        read_heads(tmp_path / "heads")
    with pytest.raises(StorageError):
        read_heads(tmp_path / "nowhere")


def test_what_members_operators_and_sites_did_is_logged_by_the_same_names(tmp_path):
    audit = opened(tmp_path)
    operator = PeerId("lungs", Role.OPERATOR, "ops")
    audit.enrolled("a", "envoy", "St. Anna", "ab" * 32, bytes(32))
    audit.renewed("a", "envoy", "cd" * 32, NOW)
    audit.revoked("a", "left " + "x" * 2000, "root")
    audit.proposed(RUN, MODEL, PLAN, operator)
    audit.patched(RUN, 1, "set", MODEL, operator)
    audit.rolled_back(RUN, 3, MODEL)
    audit.operator(str(operator), "accept site", {"name": "a"})
    audit.witnessed(EnvoyName("a"), audit.head)
    audit.suspects(EnvoyName("a"), "it went back", b"12")
    audit.takes_anew(EnvoyName("a"), "root")
    audit.close()
    events = [dict(entry.event) for entry in read_entries(tmp_path / LOG_FILE)][1:]
    assert [event["what"] for event in events] == [
        *("enrolled", "renewed", "revoked", "proposed", "patched", "rolled back", "operator"),
        *("site's head", "site's log is suspect", "site's log taken anew"),
    ]
    assert events[0]["identity_key"] == "00" * 32
    assert events[3] == {"what": "proposed", "run": RUN, "proposal": MODEL, "plan": PLAN, "proposed_by": str(operator)}
    assert events[6] == {"what": "operator", "by": str(operator), "action": "accept site", "name": "a"}
    assert len(events[2]["reason"]) == 1000
    verify_log(tmp_path)


def test_a_command_may_log_beside_a_running_director_which_learns_of_it(tmp_path):
    running = opened(tmp_path)
    command = opened(tmp_path)
    command.revoked("a", "left", "root")
    command.close()
    running.refresh()
    assert running.learned.get_nowait().event["what"] == "revoked"
    running.run_submitted(RUN, PLAN, MODEL)
    running.close()
    assert verify_log(tmp_path).entries == 3
