"""A log that was changed is found out; what was counted is on disk, and what is not on disk was not counted."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.utils.audit_chain import AuditChain, SignedHead, read_entries, verify
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import MalformedMessageError, StorageError, SuspectLogError
from fedveil.utils.tensors import canonical_json

NOW = 1_777_636_800.0
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = public_bytes(KEY.public_key())
ABOUT = {"party": "director", "federation": "lungs"}


def opened(folder: Path, key: Ed25519PrivateKey = KEY) -> AuditChain:
    return AuditChain(folder / "audit.jsonl", key, ABOUT, NOW)


def events(folder: Path) -> list[object]:
    return [entry.event["what"] for entry in read_entries(folder / "audit.jsonl")]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with opened(tmp_path) as chain:
        for number in range(4):
            chain.append({"what": "round opened", "round": number, "envoys": ["a", "b"]}, NOW + number)
    return tmp_path / "audit.jsonl"


def test_a_log_says_whose_it_is_and_with_which_key(log):
    found = verify(log, PUBLIC)
    assert found.entries == 5
    assert found.about["party"] == "director"
    assert (found.key, found.hash) == (PUBLIC, list(read_entries(log))[-1].hash)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_any_byte_that_is_changed_is_found(log):
    raw = log.read_bytes()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 + place % 255
        log.write_bytes(changed)
        with pytest.raises(SuspectLogError):
            verify(log, PUBLIC)
    log.write_bytes(raw)
    verify(log, PUBLIC)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:2] + lines[3:],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines[:2], lines[1], *lines[2:]],
        lambda lines: [*lines, lines[-1]],
        lambda _: [],
        lambda lines: [*lines, b"\n"],
        lambda lines: [lines[0].replace(b'"n":0', b'"n": 0'), *lines[1:]],
    ],
)
def test_a_line_taken_out_put_in_moved_or_written_otherwise_is_found(log, change):
    log.write_bytes(b"".join(change(log.read_bytes().splitlines(keepends=True))))
    with pytest.raises(SuspectLogError):
        verify(log, PUBLIC)


def test_a_whole_log_of_another_key_is_not_taken_for_this_one(log, tmp_path):
    log.unlink()
    opened(tmp_path, Ed25519PrivateKey.generate()).close()
    with pytest.raises(match="names the key"):
        verify(log, PUBLIC)


def test_it_goes_on_where_it_ended(log, tmp_path):
    with opened(tmp_path) as chain:
        entry = chain.append({"what": "more"}, NOW)
        assert (entry.number, chain.head.hash) == (5, entry.hash)
    assert verify(log, PUBLIC).entries == 6


def test_a_log_that_another_key_signed_is_not_gone_on_with(log, tmp_path):
    before = log.read_bytes()
    with pytest.raises(SuspectLogError, match="not signed by the key"):
        opened(tmp_path, Ed25519PrivateKey.generate())
    assert log.read_bytes() == before


def test_a_damaged_last_entry_is_never_repaired_in_silence(log, tmp_path):
    raw = bytearray(log.read_bytes())
    raw[-30] ^= 1
    log.write_bytes(raw)
    with pytest.raises(SuspectLogError, match="the last entry"):
        opened(tmp_path)
    assert log.read_bytes() == raw


def test_a_torn_last_line_was_not_counted_and_is_cut_off_with_a_record(log, tmp_path):
    raw = log.read_bytes()
    whole = raw.rindex(b"\n", 0, -1) + 1
    for end in range(whole + 1, len(raw), 37):
        log.write_bytes(raw[:end])
        with pytest.raises(SuspectLogError, match="no end"):
            verify(log, PUBLIC)
        opened(tmp_path).close()
        assert verify(log, PUBLIC).entries == 5
        assert list(read_entries(log))[-1].event["bytes"] == end - whole
        assert log.read_bytes()[:whole] == raw[:whole]


def test_a_log_torn_in_its_very_first_line_begins_anew_and_says_so(log, tmp_path):
    log.write_bytes(log.read_bytes()[:50])
    opened(tmp_path).close()
    assert events(tmp_path) == ["log begun", "torn last line cut off"]
    verify(log, PUBLIC)


def test_after_kill_9_every_entry_that_was_counted_is_there(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        "from fedveil.utils.audit_chain import AuditChain\n"
        "chain = AuditChain(Path(sys.argv[1]), Ed25519PrivateKey.from_private_bytes(b'k' * 32), {}, 0.0)\n"
        "while True:\n"
        "    print(chain.append({'what': 'x', 'filling': 'y' * 5000}, 0.0).number, flush=True)\n"
    )
    log = tmp_path / "audit.jsonl"
    with subprocess.Popen([sys.executable, "-c", script, str(log)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        counted = [int(writer.stdout.readline()) for _ in range(30)]
        os.kill(writer.pid, signal.SIGKILL)
        counted += [int(line) for line in writer.stdout.read().splitlines()]
    opened(tmp_path).close()
    assert verify(log, PUBLIC).entries > counted[-1]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Files can grow to so many bytes and no further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_in_words_and_the_log_is_as_before(log, tmp_path):
    before = log.read_bytes()
    with opened(tmp_path) as chain:
        head = chain.head
        with disk_of(len(before) + 100), pytest.raises(StorageError, match="it does not count"):
            chain.append({"what": "too much"}, NOW)
        assert log.read_bytes() == before
        assert chain.head == head
        chain.append({"what": "room again"}, NOW)
    assert verify(log, PUBLIC).entries == 6


def test_an_entry_that_does_not_reach_the_disk_is_not_counted(log, tmp_path, monkeypatch):
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with opened(tmp_path) as chain:
        head = chain.head
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(StorageError, match="Input/output error"):
            chain.append({"what": "lost"}, NOW)
        monkeypatch.undo()
        assert chain.head == head
        chain.append({"what": "kept"}, NOW)
    assert "lost" not in events(tmp_path)
    assert verify(log, PUBLIC).entries == 6


def test_what_somebody_else_wrote_meanwhile_is_seen_and_not_cut_off(log, tmp_path):
    with opened(tmp_path) as chain:
        with log.open("ab") as other:
            other.write(b"{}\n")
        with pytest.raises(SuspectLogError, match="which another process wrote"):
            chain.append({"what": "mine"}, NOW)
    assert log.read_bytes().endswith(b"{}\n")


def test_two_processes_that_write_one_log_make_one_chain_and_each_learns_what_the_other_wrote(log, tmp_path):
    seen = []
    with AuditChain(log, KEY, ABOUT, NOW, others=lambda entry: seen.append(entry.event["what"])) as first:
        with opened(tmp_path) as second:
            second.append({"what": "approved"}, NOW)
            first.append({"what": "accessed"}, NOW)
            second.append({"what": "rejected"}, NOW)
        first.append({"what": "refused"}, NOW)
        assert (seen, first.head.number) == (["approved", "rejected"], 8)
    assert events(tmp_path)[5:] == ["approved", "accessed", "rejected", "refused"]
    assert verify(log, PUBLIC).entries == 9


def test_processes_that_write_at_the_same_time_lose_no_entry(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        "from fedveil.utils.audit_chain import AuditChain\n"
        "chain = AuditChain(Path(sys.argv[1]), Ed25519PrivateKey.from_private_bytes(b'k' * 32), {}, 0.0)\n"
        "for number in range(40): chain.append({'what': 'x', 'who': sys.argv[2], 'number': number}, 0.0)\n"
    )
    log = tmp_path / "audit.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", script, str(log), who]) for who in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert verify(log, PUBLIC).entries == 121
    said = [entry.event for entry in read_entries(log)][1:]
    for who in "abc":
        assert [event["number"] for event in said if event["who"] == who] == list(range(40))


def test_what_a_killed_process_left_torn_is_cut_off_by_the_other_which_says_so(log, tmp_path):
    with opened(tmp_path) as chain:
        with log.open("ab") as killed:
            killed.write(b'{"event":{"what":"half')
        chain.append({"what": "mine"}, NOW)
    assert events(tmp_path)[-2:] == ["torn last line cut off", "mine"]
    verify(log, PUBLIC)


def test_a_log_that_was_cut_while_it_is_open_is_not_gone_on_with(log, tmp_path):
    with opened(tmp_path) as chain:
        os.truncate(log, log.stat().st_size - 10)
        with pytest.raises(SuspectLogError, match="somebody cut"):
            chain.append({"what": "mine"}, NOW)


def test_a_line_that_could_not_be_taken_back_is_taken_back_once_it_can(log, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with opened(tmp_path) as chain:
        monkeypatch.setattr(os, "fsync", broken)
        monkeypatch.setattr(chain, "_cut", broken)
        with pytest.raises(OSError, match="Input/output"):
            chain.append({"what": "lost"}, NOW)
        monkeypatch.undo()
        assert events(tmp_path)[-1] == "lost"  # the disk held it, but the caller was told that it does not count
        chain.append({"what": "kept"}, NOW)
    assert events(tmp_path)[-2:] == ["round opened", "kept"]
    verify(log, PUBLIC)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: lines[:2] + lines[3:], "entry 2 was taken out, or moved: entry 3 stands in its place"),
        (lambda lines: lines[1:], "entry 0 was taken out"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "entry 1 was taken out, or moved: entry 2"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "entry 2 is not there: entry 1 stands in its place"),
        (lambda lines: [*lines[:3], lines[3].replace(b'"round":2', b'"round":7'), *lines[4:]], "entry 3: was changed"),
    ],
)
def test_what_is_wrong_is_said_with_the_number_of_the_entry(log, change, why):
    log.write_bytes(b"".join(change(log.read_bytes().splitlines(keepends=True))))
    with pytest.raises(SuspectLogError, match=why):
        verify(log, PUBLIC)


def test_an_event_that_is_no_json_or_too_long_is_the_callers_mistake(tmp_path):
    with opened(tmp_path) as chain:
        for event in ({"what": float("nan")}, {"what": "x" * (1 << 20)}):
            with pytest.raises(ValueError, match=r"Out of range|bytes"):
                chain.append(event, NOW)
        assert chain.head.number == 0


def test_a_head_travels_and_is_believed_only_with_its_signature(tmp_path):
    with opened(tmp_path) as chain:
        raw = chain.head.to_bytes()
    assert SignedHead.from_bytes(raw).to_bytes() == raw
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        with pytest.raises(MalformedMessageError):
            SignedHead.from_bytes(bytes(changed))
    with pytest.raises(MalformedMessageError):
        SignedHead.from_bytes(raw[:-1])


def test_a_log_that_was_written_anew_by_its_owner_is_found_by_the_heads_that_others_kept(tmp_path):
    heads = []
    with opened(tmp_path) as chain:
        for number in range(3):
            chain.append({"what": "survivors", "round": number}, NOW)
            heads.append(chain.head)
    log = tmp_path / "audit.jsonl"
    assert verify(log, PUBLIC, iter(heads)).heads == 3
    log.unlink()
    with opened(tmp_path) as chain:
        for number in range(3):
            chain.append({"what": "survivors", "round": number, "changed": number == 2}, NOW)
        fork = chain.head
    verify(log, PUBLIC)  # it agrees with itself
    with pytest.raises(SuspectLogError, match="written anew, or forked"):
        verify(log, PUBLIC, heads)
    with pytest.raises(SuspectLogError, match="two heads"):
        verify(log, PUBLIC, [*heads, fork])


def test_a_log_whose_end_was_cut_is_found_by_a_head_alone(log, tmp_path):
    with opened(tmp_path) as chain:
        head = chain.head
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]))
    verify(log, PUBLIC)  # the log alone does not show it
    with pytest.raises(SuspectLogError, match="cut"):
        verify(log, PUBLIC, [head])


def test_lines_are_canonical_json_that_other_tools_read(log):
    for line in log.read_bytes().splitlines():
        assert canonical_json(json.loads(line)) == line


def test_a_log_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(StorageError, match="no such log"):
        verify(tmp_path / "audit.jsonl")
