"""A log is checked from its file alone: whatever was changed is found and named, and a fork between the sides too."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.audit import LOG_FILE as DIRECTORS
from fedveil.director.audit import DirectorAudit
from fedveil.envoy.audit import LOG_FILE as SITES
from fedveil.envoy.audit import SiteAudit
from fedveil.utils.audit_chain import AuditChain, verify
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import SuspectLogError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import EnvoyName, RunId, TaskRef
from fedveil.utils.roster import key_fingerprint
from fedveil.utils.tensors import Digest
from fedveil.workspace.__main__ import app
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

NOW = 1_777_636_800.0
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name[-1:].encode() * 32) for name in ("site-a", "site-b")}
ENTRIES = 40
NEWLINE = b"\n"


def checked(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["audit", "verify", *map(str, words)])
    assert done.exit_code == status, done.output
    return done.output.replace("\n", " ")


class Sides:
    """A director and two sites that keep each other's heads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.director = DirectorAudit.open(self.made("director"), "lungs", clock=lambda: NOW)
        self.sites = {
            name: SiteAudit.open(self.made(name), PeerId("lungs", Role.ENVOY, name), key, clock=lambda: NOW)
            for name, key in KEYS.items()
        }
        self.rounds = 0

    def made(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    def play(self, rounds: int) -> Sides:
        for _ in range(rounds):
            self.rounds += 1
            ref = TaskRef(RunId("lungs-1"), self.rounds, 1, Digest("ab" * 32))
            self.director.failed(ref, "a round")
            for name, site in self.sites.items():
                site.sent(ref, "plain", Digest("cd" * 32), 12)
                site.witnessed(self.director.head_bytes)
                self.director.witnessed(EnvoyName(name), site.head)
        return self

    def close(self) -> None:
        self.director.close()
        for site in self.sites.values():
            site.close()

    @property
    def log(self) -> Path:
        return self.folder / "director" / DIRECTORS

    def site_log(self, name: str) -> Path:
        return self.folder / name / SITES


@pytest.fixture
def sides(tmp_path: Path):
    made = Sides(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A log of some entries, and its bytes."""
    log = tmp_path_factory.mktemp("log") / "audit.jsonl"
    with AuditChain(log, KEYS["site-a"], {"party": "envoy", "name": "site-a", "federation": "lungs"}, NOW) as chain:
        for number in range(ENTRIES - 1):
            chain.append({"what": "sent", "round": number, "kind": "plain", "who": ["ä", "b"]}, NOW + number)
    return log, log.read_bytes()


# a log alone


@given(place=st.integers(0, 1 << 30), change=st.integers(1, 255))
@example(place=0, change=1)
@example(place=-1, change=1)
@settings(max_examples=300, deadline=None)
def test_any_byte_that_is_changed_anywhere_is_found(whole, place, change):
    log, raw = whole
    changed = bytearray(raw)
    changed[place % len(raw)] ^= change
    log.write_bytes(changed)
    with pytest.raises(SuspectLogError):
        verify(log)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_entries_that_are_taken_out_put_in_or_moved_are_found(whole, data):
    log, raw = whole
    lines = raw.splitlines(keepends=True)
    end = len(lines) - 1  # entries at the very end are found by a head that somebody kept, and by nothing else
    first, second = data.draw(st.integers(0, end)), data.draw(st.integers(0, end))
    match data.draw(st.sampled_from(["take out", "put in", "swap", "cut in the middle of a line"])):
        case "take out":
            del lines[first % end]
        case "put in":
            lines.insert(first, lines[second])
        case "swap":
            second = second if first != second else (first + 1) % len(lines)
            lines[first], lines[second] = lines[second], lines[first]
        case "cut in the middle of a line":
            lines[-1] = lines[-1][: 1 + data.draw(st.integers(0, len(lines[-1]) - 2))]
    log.write_bytes(b"".join(lines))
    with pytest.raises(SuspectLogError, match=r"entry \d+"):
        verify(log)


def test_ten_thousand_entries_are_checked_in_three_seconds_of_one_core_and_any_change_is_found(tmp_path):
    log, rng = tmp_path / "audit.jsonl", random.Random(6)
    with AuditChain(log, KEYS["site-a"], {"party": "envoy"}, NOW, durable=False) as chain:
        for number in range(9_999):
            event = {"what": "round opened", "round": number, "plan": "ab" * 32, "envoys": ["site-a", "site-b"]}
            chain.append(event, NOW + number)
        head = chain.head
    before = time.process_time()
    assert verify(log, heads=[head]).entries == 10_000
    assert time.process_time() - before < 3.0
    raw = log.read_bytes()
    for _ in range(3):
        changed, place = bytearray(raw), rng.randrange(len(raw))
        changed[place] ^= rng.randrange(1, 256)
        log.write_bytes(changed)
        with pytest.raises(SuspectLogError, match=f"entry {raw.count(NEWLINE, 0, place)}:"):
            verify(log)


def test_what_is_said_of_a_whole_log(sides):
    sides.play(2)
    said = checked(sides.log)
    assert f"{sides.log}: the log of the director of lungs; 7 entries, from 2026-05-01T" in said
    assert "whole" in said
    assert key_fingerprint(verify(sides.log).key) in said
    assert "4 heads of other logs in it, none that goes back" in said
    assert "compare it, or give it with --key" in said
    assert "compared with nobody else's word" in said
    assert "the log of site-a of lungs; 5 entries" in checked(sides.site_log("site-a"))


def test_a_copy_is_checked_as_well_and_nothing_is_written(sides, tmp_path):
    sides.play(1)
    copy = tmp_path / "copy of a log"
    copy.write_bytes(sides.log.read_bytes())
    copy.chmod(0o400)
    assert "whole" in checked(copy)
    assert "whole" in checked(sides.log)


@pytest.mark.parametrize("form", ["hex", "fingerprint", "pem", "private"])
def test_the_key_is_given_as_people_have_it(sides, tmp_path, form):
    key = KEYS["site-a"]
    public = public_bytes(key.public_key())
    pem = tmp_path / "key.pem"
    encoding, public_format = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    pem.write_bytes(key.public_key().public_bytes(encoding, public_format))
    text = {"hex": public.hex(), "fingerprint": key_fingerprint(public), "pem": pem, "private": pem}[form]
    log = sides.site_log("site-a")
    if form == "private":
        pem.write_bytes(generate_private_key(SECP256R1()).public_key().public_bytes(encoding, public_format))
        assert "no Ed25519 key" in checked(log, "--key", text, status=1)
    else:
        assert "compare it" not in checked(log, "--key", text)
        assert "another was expected" in checked(sides.site_log("site-b"), "--key", text, status=1)


def test_a_key_that_is_none_is_said_to_be_none(sides):
    assert "64 hexadecimal digits" in checked(sides.log, "--key", "nowhere.pem", status=1)


# two sides


def test_logs_of_both_sides_that_belong_together_agree(sides):
    sides.play(3)
    for first, second in ((sides.log, sides.site_log("site-a")), (sides.site_log("site-b"), sides.log)):
        said = checked(first, "--against", second)
        assert said.count("holds all 3 heads of it") == 2


def test_a_director_that_wrote_its_log_anew_is_found_by_a_sites(sides):
    sides.play(2)
    kept = sides.log.read_bytes().splitlines(keepends=True)
    sides.play(1)
    sides.close()
    sides.log.write_bytes(b"".join(kept))
    with DirectorAudit.open(sides.folder / "director", "lungs", clock=lambda: NOW)._chain as chain:
        for _ in range(5):
            chain.append({"what": "nothing happened"}, NOW)
    assert "whole" in checked(sides.log)  # it agrees with itself
    said = checked(sides.log, "--against", sides.site_log("site-a"), status=1)
    assert "written anew, or forked" in said
    assert "entry 7" in said


def test_a_site_that_wrote_its_log_anew_is_found_by_the_directors(sides):
    sides.play(2)
    kept = sides.site_log("site-a").read_bytes()
    sides.play(1)
    sides.close()
    sides.site_log("site-a").write_bytes(kept)
    with AuditChain(sides.site_log("site-a"), KEYS["site-a"], {}, NOW) as chain:
        for _ in range(3):
            chain.append({"what": "sent"}, NOW)
    said = checked(sides.log, "--against", sides.site_log("site-a"), status=1)
    assert "entry 6 is not the one whose head was given out" in said


def test_a_log_whose_end_was_cut_off_is_found_by_the_other_side(sides):
    sides.play(2)
    lines = sides.log.read_bytes().splitlines(keepends=True)
    sides.log.write_bytes(b"".join(lines[:-3]))
    assert "its end was cut off" in checked(sides.site_log("site-a"), "--against", sides.log, status=1)


def test_heads_that_a_site_printed_are_held_against_the_directors_log(sides, tmp_path):
    sides.play(2)
    file = tmp_path / "heads"
    file.write_bytes(sides.director.head_bytes.hex().encode() + b"\n")
    assert "holds all 1 heads that were given" in checked(sides.log, "--heads", file)
    lines = sides.log.read_bytes().splitlines(keepends=True)
    sides.log.write_bytes(b"".join(lines[:-1]))
    assert "cut off" in checked(sides.log, "--heads", file, status=1)


def test_two_copies_of_one_log_are_told_from_a_fork(sides, tmp_path):
    sides.play(1)
    copy, raw = tmp_path / "copy", sides.log.read_bytes()
    copy.write_bytes(raw)
    sides.play(1)
    assert "are one log, 4 and 7 entries" in checked(copy, "--against", sides.log)
    sides.close()
    sides.log.write_bytes(raw)
    with DirectorAudit.open(sides.folder / "director", "lungs", clock=lambda: NOW)._chain as chain:
        chain.append({"what": "one way"}, NOW)
    (tmp_path / "x").mkdir()
    other = tmp_path / "x" / DIRECTORS
    other.write_bytes(raw)
    (tmp_path / "x" / "audit.key.pem").write_bytes((sides.folder / "director" / "audit.key.pem").read_bytes())
    (tmp_path / "x" / "audit.key.pem").chmod(0o600)
    with DirectorAudit.open(tmp_path / "x", "lungs", clock=lambda: NOW)._chain as chain:
        chain.append({"what": "another way"}, NOW)
    assert "different entries 4" in checked(sides.log, "--against", other, status=1)


def test_logs_that_have_nothing_to_do_with_each_other_are_not_compared(sides, tmp_path):
    sides.play(1)
    sites = [sides.site_log(name) for name in KEYS]
    assert "both logs of sites" in checked(sites[0], "--against", sites[1], status=1)
    (tmp_path / "other").mkdir()
    DirectorAudit.open(tmp_path / "other", "hearts").close()
    assert "of lungs" in checked(sites[0], "--against", tmp_path / "other" / DIRECTORS, status=1)


def test_what_was_seen_before_a_log_was_taken_anew_is_set_aside_and_counted(sides):
    sides.play(2)
    sides.sites["site-a"].take_anew()
    said = checked(sides.site_log("site-a"), "--against", sides.log)
    assert "and 2 of logs that were then taken anew" in said
    assert "keeps no head of the director of lungs: nothing to compare" in said


def test_what_one_side_found_wrong_already_is_told(sides):
    sides.play(1)
    with pytest.raises(SuspectLogError):
        sides.sites["site-a"].witnessed(b"")
    assert "found another log suspect: entry 3: the director gives no head" in checked(sides.site_log("site-a"))


def test_a_file_that_is_no_log_or_is_missing_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"hello\n")
    assert "is no entry of an audit log" in checked(tmp_path / "x", status=1)
    assert "there is no such log" in checked(tmp_path / "y", status=1)


def test_control_characters_of_a_hostile_log_do_not_reach_the_terminal(tmp_path):
    log = tmp_path / "audit.jsonl"
    AuditChain(log, KEYS["site-a"], {"party": "envoy", "name": "\x1b[31mx", "federation": "lungs"}, NOW).close()
    assert "\x1b" not in checked(log)
