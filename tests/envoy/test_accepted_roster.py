"""A site sums only with those that its data manager accepted by digest; nothing is accepted by default."""

from __future__ import annotations

import json
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.envoy.accepted_roster import (
    _CONTEXT,
    OFFERED_FILE,
    ROSTER_FILE,
    accept_roster,
    accepted_roster,
    load_roster,
    offer_roster,
    offered_roster,
)
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import IdentityError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import EnvoyName
from fedveil.utils.roster import Roster, RosterEntry, grouped

ME = PeerId("lungs", Role.ENVOY, "a")


def key(number: int) -> bytes:
    return public_bytes(Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big")).public_key())


def roster(names: str = "abc", federation: str = "lungs") -> Roster:
    entries = (RosterEntry(EnvoyName(name), f"Hospital {name}", key(ord(name))) for name in names)
    return Roster(federation, tuple(entries))


KEY = key(ord("a"))
SECRET = Ed25519PrivateKey.from_private_bytes(ord("a").to_bytes(32, "big"))


def accept_offered(folder, digest, peer, secret):
    return accept_roster(folder, offered_roster(folder, digest), peer, secret)


def test_a_site_that_accepted_nothing_sums_with_nobody_and_is_told_what_to_do(tmp_path):
    assert accepted_roster(tmp_path, KEY) is None
    with pytest.raises(IdentityError, match=r"envoy roster fetch.*envoy roster accept DIGEST"):
        load_roster(tmp_path, ME, KEY)


def test_an_offer_is_not_an_acceptance(tmp_path):
    offer_roster(tmp_path, roster(), ME, KEY)
    with pytest.raises(IdentityError, match="accepted no roster"):
        load_roster(tmp_path, ME, KEY)


def test_exactly_the_digest_that_was_shown_is_accepted(tmp_path):
    offer_roster(tmp_path, roster(), ME, KEY)
    accept_offered(tmp_path, grouped(roster().digest), ME, SECRET)
    assert load_roster(tmp_path, ME, KEY) == roster()


@pytest.mark.parametrize("digest", ["", roster().digest[:12], roster("ab").digest, "yes"])
def test_any_other_digest_changes_nothing(tmp_path, digest):
    accept_roster(tmp_path, roster("ac"), ME, SECRET)
    offer_roster(tmp_path, roster(), ME, KEY)
    with pytest.raises(IdentityError, match="nothing was accepted"):
        accept_offered(tmp_path, digest, ME, SECRET)
    assert load_roster(tmp_path, ME, KEY) == roster("ac")


def test_a_director_that_offers_another_roster_in_between_is_not_accepted_by_the_old_digest(tmp_path):
    offer_roster(tmp_path, roster("abc"), ME, KEY)
    offer_roster(tmp_path, roster("abx"), ME, KEY)
    with pytest.raises(IdentityError, match="not " + roster("abc").digest):
        accept_offered(tmp_path, roster("abc").digest, ME, SECRET)


def test_nothing_can_be_accepted_that_was_not_offered(tmp_path):
    with pytest.raises(IdentityError, match="no roster was offered yet"):
        accept_offered(tmp_path, roster().digest, ME, SECRET)


@pytest.mark.parametrize(
    ("offered", "why"),
    [
        (roster("bc"), "does not name a"),
        (roster(federation="hearts"), "a roster of hearts, expected one of lungs"),
        (Roster("lungs", (RosterEntry(EnvoyName("a"), "Hospital a", key(7)),)), "not this site's"),
    ],
)
def test_a_roster_without_this_very_site_is_neither_kept_nor_accepted_nor_loaded(tmp_path, offered, why):
    for act, own in ((offer_roster, KEY), (accept_roster, SECRET)):
        with pytest.raises(IdentityError, match=why):
            act(tmp_path, offered, ME, own)
    assert not list(tmp_path.iterdir())
    content = offered.to_json()
    signature = SECRET.sign(_CONTEXT + content).hex()
    (tmp_path / ROSTER_FILE).touch(0o600)
    (tmp_path / ROSTER_FILE).write_text(json.dumps({"roster": content.decode(), "signature": signature}), "utf-8")
    with pytest.raises(IdentityError, match=why):
        load_roster(tmp_path, ME, KEY)


def test_both_files_are_for_their_owner_alone_and_refused_when_they_are_not(tmp_path):
    offer_roster(tmp_path, roster(), ME, KEY)
    accept_roster(tmp_path, roster(), ME, SECRET)
    for name in (ROSTER_FILE, OFFERED_FILE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    (tmp_path / ROSTER_FILE).chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_roster(tmp_path, ME, KEY)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    accept_roster(tmp_path, roster(), ME, SECRET)
    (tmp_path / ROSTER_FILE).write_bytes(damage)
    with pytest.raises(IdentityError, match=r"roster\.json: was not signed .* accept one again: `envoy roster fetch`"):
        load_roster(tmp_path, ME, KEY)


def test_a_roster_that_this_site_did_not_sign_is_none(tmp_path):
    accept_roster(tmp_path, roster("ab"), ME, SECRET)
    file = tmp_path / ROSTER_FILE
    whole = json.loads(file.read_text("utf-8"))
    for forged in (
        whole | {"roster": roster("abc").to_json().decode()},
        whole | {"signature": "00" * 64},
        whole | {"signature": "no"},
        {"roster": whole["roster"]},
        json.loads(roster("ab").to_json()),
        [],
    ):
        file.write_text(json.dumps(forged), "utf-8")
        with pytest.raises(IdentityError, match="not signed by this site's identity key"):
            load_roster(tmp_path, ME, KEY)
    file.write_text(json.dumps(whole), "utf-8")
    assert load_roster(tmp_path, ME, KEY) == roster("ab")
