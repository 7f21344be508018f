"""What a researcher signs is read back as it was, and by whom: any changed byte, other signer or gap is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.utils.certificates import certificate_pem, issue_identity, make_issuer, make_root
from fedveil.utils.errors import FederationError, IdentityError, MalformedMessageError, NotAuthorizedError
from fedveil.utils.identity import PeerId, Role, when
from fedveil.utils.messages import AskedProtection, EnvoyName, RunId
from fedveil.utils.proposal import (
    LATEST,
    Output,
    Patch,
    Proposal,
    Step,
    check_patches,
    read_patch,
    read_proposal,
    settings_after,
    sign,
)
from fedveil.utils.tensors import Digest, canonical_json
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_700_000_000.0
ROOT = make_root("lungs", NOW)
ISSUER = make_issuer(ROOT, "lungs", NOW)
ALICE = PeerId("lungs", Role.OPERATOR, "alice")
KEY = Ed25519PrivateKey.generate()
DIGESTS = [Digest(f"{number:064x}") for number in range(4)]


def chain_of(peer: PeerId, key: Ed25519PrivateKey = KEY) -> bytes:
    return certificate_pem(issue_identity(ISSUER, key.public_key(), peer, NOW), ISSUER.certificate)


PROPOSAL = Proposal(
    federation="lungs",
    study="pneumonia",
    plan=DIGESTS[0],
    settings=DIGESTS[1],
    purpose="detect pneumonia",
    legal_basis="permit 12",
    max_rounds=10,
    is_secure=True,
    aggregator="director",
    codec=None,
    asked=AskedProtection(1.5, 0.5),
    sites=(EnvoyName("site-a"), EnvoyName("site-b")),
    outputs=(Output.MODEL, Output.METRICS),
    proposed_by=ALICE,
    proposed_at=NOW,
    expires_at=NOW + 1000,
)
PATCH = Patch(
    run=RunId("pneumonia-1"),
    proposal=PROPOSAL.digest,
    number=1,
    step=Step.SET,
    settings={"learning_rate": 0.01, "local_epochs": 2},
    sites=(EnvoyName("site-a"),),
    stop={"patience": 3},
    to_round=None,
    reason="it diverged",
    signed_by=ALICE,
    signed_at=NOW,
)


def test_what_was_signed_is_read_back():
    signed = sign(PROPOSAL, KEY, chain_of(ALICE))
    read = read_proposal(signed, ROOT.certificate, NOW + 1)
    assert read == PROPOSAL
    assert read.digest == PROPOSAL.digest
    assert read_patch(sign(PATCH, KEY, chain_of(ALICE)), ROOT.certificate, "lungs", NOW + 1) == PATCH


@given(st.data())
def test_any_changed_byte_is_found(data):
    signed = sign(PROPOSAL, KEY, chain_of(ALICE))
    at = data.draw(st.integers(0, len(signed.content) + len(signed.signature) - 1))
    flip = data.draw(st.integers(1, 255))
    whole = bytearray(signed.content + signed.signature)
    whole[at] ^= flip
    content, signature = bytes(whole[: len(signed.content)]), bytes(whole[len(signed.content) :])
    with pytest.raises(FederationError):
        read_proposal(replace(signed, content=content, signature=signature), ROOT.certificate, NOW)


@pytest.mark.parametrize(
    ("field", "value"),
    [("purpose", "find names"), ("max_rounds", 11), ("expires_at", NOW + 2000), ("is_secure", False)],
)
def test_any_change_asks_for_another_approval(field, value):
    assert replace(PROPOSAL, **{field: value}).digest != PROPOSAL.digest


@pytest.mark.parametrize(
    ("peer", "refusal"),
    [
        (PeerId("lungs", Role.ENVOY, "alice"), NotAuthorizedError),
        (PeerId("lungs", Role.OPERATOR, "bob"), IdentityError),
    ],
)
def test_nobody_signs_as_another(peer, refusal):
    text = replace(PROPOSAL, proposed_by=peer) if refusal is NotAuthorizedError else PROPOSAL
    with pytest.raises(refusal):
        read_proposal(sign(text, KEY, chain_of(peer)), ROOT.certificate, NOW)


def test_a_signer_of_another_federation_is_refused():
    other = make_root("lungs", NOW)
    with pytest.raises(IdentityError, match="not issued by this federation"):
        read_proposal(sign(PROPOSAL, KEY, chain_of(ALICE)), other.certificate, NOW)


def test_an_expired_signer_is_refused():
    with pytest.raises(IdentityError, match="expired"):
        read_proposal(sign(PROPOSAL, KEY, chain_of(ALICE)), ROOT.certificate, NOW + 3e8)


def test_a_proposal_is_no_patch():
    signed = sign(PROPOSAL, KEY, chain_of(ALICE))
    with pytest.raises(MalformedMessageError, match="another schema"):
        read_patch(signed, ROOT.certificate, "lungs", NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"max_rounds": True},
        {"more": 1},
        {"sites": ["site-b", "site-a"]},
        {"outputs": ["gradients"]},
        {"plan": "x"},
        {"purpose": "two\nlines"},
        {"proposed_by": "spiffe://lungs/operator"},
        {"expires_at": 0},
        {"aggregator": "somebody"},
        {"asked": {"max_norm": -1, "noise_multiplier": 0}},
        {"asked": 3},
        {"expires_at": 1e300},
        {"expires_at": 10**400},
        {"proposed_at": -1},
        {"sum_noise": -1},
        {"sum_noise": 1.0, "is_secure": False},
    ],
)
def test_what_is_no_proposal_is_malformed(change):
    raw = canonical_json(json.loads(PROPOSAL.to_json()) | change)
    with pytest.raises(MalformedMessageError):
        read_proposal(replace(sign(PROPOSAL, KEY, chain_of(ALICE)), content=raw), ROOT.certificate, NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"data": 1}},
        {"settings": {"learning_rate": 0}},
        {"settings": {"local_epochs": 1.5}},
        {"stop": {"max_rounds": -1}},
        {"sites": ()},
        {"number": 0},
        {"to_round": 3},
        {"step": Step.PAUSE},
        {"reason": "two\nlines"},
        {"signed_at": 1e300},
    ],
)
def test_what_is_no_patch_cannot_be_made(change):
    with pytest.raises(MalformedMessageError):
        replace(PATCH, **change)


def test_a_patch_with_a_number_beyond_all_floats_is_malformed():
    raw = canonical_json(json.loads(PATCH.to_json()) | {"settings": {"learning_rate": 10**400}})
    with pytest.raises(MalformedMessageError, match="not a patch"):
        read_patch(replace(sign(PATCH, KEY, chain_of(ALICE)), content=raw), ROOT.certificate, "lungs", NOW)


def test_every_time_that_a_proposal_may_name_can_be_shown():
    assert when(replace(PROPOSAL, expires_at=LATEST).expires_at).startswith("9892-")


def test_patches_come_whole_and_in_order():
    second = replace(PATCH, number=2, settings={"learning_rate": 0.5}, sites=None, stop={})
    check_patches((PATCH, second), PATCH.run, PATCH.proposal)
    assert settings_after((PATCH, second)) == {"learning_rate": 0.5, "local_epochs": 2}
    assert isinstance(settings_after((PATCH,))["local_epochs"], int)
    for wrong in ((second,), (second, PATCH), (PATCH, PATCH), (replace(PATCH, run=RunId("other-1")),)):
        with pytest.raises(MalformedMessageError):
            check_patches(wrong, PATCH.run, PATCH.proposal)
