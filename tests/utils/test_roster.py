"""A roster is what a site accepted: one key a name, one name a key, and no change that nobody sees."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import FederationError, IdentityError, MalformedMessageError
from fedveil.utils.messages import EnvoyName
from fedveil.utils.roster import Roster, RosterEntry, check_identity_key, difference, key_fingerprint
from hypothesis import given
from hypothesis import strategies as st

PRIME = 2**255 - 19


def key(number: int) -> bytes:
    return public_bytes(Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big")).public_key())


def entry(name: str, organization: str = "", number: int | None = None) -> RosterEntry:
    return RosterEntry(EnvoyName(name), organization or f"Hospital {name}", key(number or ord(name[0])))


ABC = Roster("lungs", (entry("a"), entry("b"), entry("c")))


def test_the_same_envoys_in_another_order_are_the_same_roster():
    turned = Roster("lungs", (entry("c"), entry("a"), entry("b")))
    assert turned == ABC
    assert turned.digest == ABC.digest
    assert turned.names == ("a", "b", "c")


def test_what_is_written_reads_back_byte_for_byte():
    assert Roster.from_json(ABC.to_json()) == ABC
    assert Roster.from_json(ABC.to_json()).to_json() == ABC.to_json()


@pytest.mark.parametrize(
    "other",
    [
        Roster("hearts", ABC.entries),
        Roster("lungs", ABC.entries[:2]),
        Roster("lungs", (*ABC.entries[:2], entry("c", "Hospital X"))),
        Roster("lungs", (*ABC.entries[:2], entry("c", number=9))),
    ],
)
def test_any_change_changes_the_digest(other):
    assert other.digest != ABC.digest


def test_an_organization_counts_once_however_it_is_spelled():
    spellings = ("Clinic One", "clinic  ONE ", "Clinic-One.", "\uff23linic One", "Clinic Two")
    roster = Roster("lungs", tuple(map(entry, "abcde", spellings)))
    assert sorted(roster.organizations("abcde").values()) == [1, 4]
    assert roster.organizations(["e", "e"]) == {"clinictwo": 1}


def test_an_organization_in_letters_that_only_look_the_same_is_marked_before_it_is_accepted():
    latin, cyrillic = entry("a", "Clinic A"), entry("b", "Clinic \u0410")
    lines = difference(None, Roster("lungs", (latin, cyrillic, entry("c", "Universit\u00e4tsklinik"))))
    assert ["letters: CYRILLIC, LATIN" in line for line in lines] == [False, True, False]
    assert "!!" not in lines[2]


def test_an_organization_cannot_pass_for_a_fingerprint():
    line = difference(None, Roster("lungs", (entry("a", "Clinic A)  key 3f2a 90bc (ok"),)))[0]
    assert line.startswith("+ a ('Clinic A)  key 3f2a 90bc (ok')\n     key ")


def test_a_name_that_nobody_accepted_is_an_error_and_never_silently_left_out():
    with pytest.raises(IdentityError, match="sybil is not in the roster"):
        ABC.organizations(["a", "sybil"])
    with pytest.raises(IdentityError, match="envoy roster fetch"):
        ABC.entry("sybil")
    assert "a" in ABC
    assert "sybil" not in ABC


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ((entry("a"), entry("a", number=7)), "a twice"),
        ((entry("a"), entry("b", number=ord("a"))), "one key for a and for b"),
    ],
)
def test_a_name_or_a_key_twice_is_refused(entries, why):
    with pytest.raises(IdentityError, match=why):
        Roster("lungs", entries)


@pytest.mark.parametrize("name", ["", "A", "a/b", "a b", "-a", "a" * 64])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(IdentityError):
        RosterEntry(EnvoyName(name), "Hospital", key(1))


@pytest.mark.parametrize("organization", ["", "  ", "a\nb", "x" * 201, "a\x1b[31m"])
def test_what_is_no_organization_is_refused(organization):
    with pytest.raises(IdentityError, match="organization"):
        RosterEntry(EnvoyName("a"), organization, key(1))


def _points_of_small_order() -> list[bytes]:
    """The encodings of the eight points of small order (the list of libsodium's ``ge25519_has_small_order``)."""
    order_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    ys = [0, 1, PRIME - 1, order_8, PRIME - order_8]
    return [(y | sign << 255).to_bytes(32, "little") for y in ys for sign in (0, 1)]


@pytest.mark.parametrize("bad", _points_of_small_order(), ids=lambda raw: raw.hex()[:8])
def test_points_of_small_order_are_no_keys(bad):
    with pytest.raises(IdentityError, match=r"small order|not a point"):
        check_identity_key("a", bad)


@pytest.mark.parametrize(
    "bad", [b"", bytes(31), bytes(33), PRIME.to_bytes(32, "little"), (2).to_bytes(32, "little"), b"\xff" * 32]
)
def test_bytes_that_are_no_point_are_no_keys(bad):
    with pytest.raises(IdentityError):
        check_identity_key("a", bad)


@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_is_made_is_taken(secret):
    made = public_bytes(Ed25519PrivateKey.from_private_bytes(secret).public_key())
    assert check_identity_key("a", made) == made


@given(st.binary(max_size=200))
def test_garbage_is_refused_in_words(raw):
    with pytest.raises(FederationError):
        Roster.from_json(raw)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d | {"format": "fedveil-roster/2"},
        lambda d: d | {"more": 1},
        lambda d: d | {"federation": 3},
        lambda d: d | {"entries": d["entries"][::-1]},
        lambda d: d | {"entries": [["a", "A"]]},
        lambda d: d | {"entries": [["a", 3, "00" * 32]]},
        lambda d: d | {"entries": 3},
        lambda d: d | {"entries": [[None, "A", key(1).hex()]]},
        lambda d: [d],
    ],
)
def test_a_document_that_is_no_roster_is_refused(change):
    raw = json.dumps(change(json.loads(ABC.to_json())), sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(FederationError):
        Roster.from_json(raw)


def test_the_same_roster_with_spaces_is_refused_since_its_bytes_are_hashed():
    with pytest.raises(MalformedMessageError, match="one order"):
        Roster.from_json(json.dumps(json.loads(ABC.to_json()), indent=1).encode())


def test_a_changed_key_stands_first_and_shows_both_fingerprints():
    new = Roster("lungs", (entry("a", number=99), entry("b", "Other"), entry("d")))
    lines = difference(ABC, new)
    assert lines[0].startswith("!! KEY CHANGED  a")
    assert key_fingerprint(key(ord("a"))) in lines[0]
    assert key_fingerprint(key(99)) in lines[0]
    assert lines[1] == "!! ORGANIZATION CHANGED  b: was 'Hospital b', now 'Other'"
    assert lines[2].startswith("+ d ('Hospital d')")
    assert key_fingerprint(key(ord("d"))) in lines[2]
    assert lines[3:] == ("- c ('Hospital c')",)


def test_nothing_accepted_yet_shows_every_envoy_as_new():
    assert [line[:3] for line in difference(None, ABC)] == ["+ a", "+ b", "+ c"]
    assert difference(ABC, ABC) == ()


def test_another_federation_is_said_before_everything_else():
    assert difference(ABC, Roster("hearts", ABC.entries))[0].startswith("!! ANOTHER FEDERATION")
