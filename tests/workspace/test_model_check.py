"""``fedveil model verify``: a downloaded model and its card, held against each other and a key that is trusted."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.utils.audit_chain import AuditChain
from fedveil.utils.audit_witness import DIRECTOR_HEAD, DIRECTOR_WITNESSED
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import FederationError, MalformedMessageError
from fedveil.utils.model_card import SCHEMA, read_card, sign_card
from fedveil.utils.roster import key_fingerprint
from fedveil.utils.tensors import canonical_json, digest_of
from fedveil.workspace.__main__ import app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

CONTENT = b"weights of a model"
CARD = {
    "schema": SCHEMA,
    "federation": "lungs",
    "name": "pneumonia",
    "version": "1.0.0",
    "file": {"sha256": digest_of(CONTENT), "bytes": len(CONTENT), "format": "safetensors"},
    "withdrawn_datasets": [],
    "metrics": [{"values": {"auc": 0.5}}],
}
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = public_bytes(KEY.public_key())


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model and its card, as they were downloaded."""
    model, card = tmp_path / "model.safetensors", tmp_path / "card.json"
    model.write_bytes(CONTENT)
    card.write_bytes(canonical_json(sign_card(CARD, KEY).document()))
    return model, card


def verify(model: Path, card: Path, *more: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["model", "verify", str(model), "--card", str(card), *map(str, more)])
    return done.exit_code, " ".join(done.output.split())


def director_log(path: Path, key: Ed25519PrivateKey) -> AuditChain:
    return AuditChain(path, key, {"party": "director", "federation": "lungs"}, 1.0, durable=False)


def test_a_model_and_its_card_are_right_and_it_is_said_on_whose_word(files):
    status, said = verify(*files)
    assert status == 0
    assert "pneumonia 1.0.0 of lungs" in said
    assert "compare it, or give it with --key or --log" in said
    for key in (PUBLIC.hex(), key_fingerprint(PUBLIC)):
        status, said = verify(*files, "--key", key)
        assert status == 0, said
        assert "compare it" not in said


def test_another_file_is_found(files):
    files[0].write_bytes(CONTENT + b"x")
    status, said = verify(*files)
    assert status == 1
    assert "is not the file of the card" in said


def test_another_key_than_the_one_that_is_trusted_is_found(files):
    status, said = verify(*files, "--key", "ab" * 32)
    assert status == 1
    assert "signed by another key" in said


def test_a_hospital_s_own_log_says_which_key_its_director_has(files, tmp_path):
    head = director_log(tmp_path / "director.jsonl", KEY)
    site = AuditChain(
        tmp_path / "site.jsonl",
        Ed25519PrivateKey.generate(),
        {"party": "envoy", "name": "north-1", "federation": "lungs"},
        1.0,
        durable=False,
    )
    status, said = verify(*files, "--log", tmp_path / "site.jsonl")
    assert status == 1
    assert "keeps no head" in said
    site.append({"what": DIRECTOR_WITNESSED, DIRECTOR_HEAD: head.head.to_bytes().hex()}, 2.0)
    for log in ("site.jsonl", "director.jsonl"):
        status, said = verify(*files, "--log", tmp_path / log)
        assert status == 0, said
        assert "that is the key of the director's audit log" in said
    other = sign_card(CARD, Ed25519PrivateKey.generate())
    files[1].write_bytes(canonical_json(other.document()))
    for log in ("site.jsonl", "director.jsonl"):
        status, said = verify(*files, "--log", tmp_path / log)
        assert status == 1
        assert "the card is signed by the key" in said
    for chain in (head, site):
        chain.close()


def test_a_card_of_another_federation_is_not_of_this_log(files, tmp_path):
    director_log(tmp_path / "director.jsonl", KEY).close()
    files[1].write_bytes(canonical_json(sign_card(CARD | {"federation": "hearts"}, KEY).document()))
    status, said = verify(*files, "--log", tmp_path / "director.jsonl")
    assert status == 1
    assert "the card is of hearts" in said


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_whatever_is_changed_in_a_card_is_found(data):
    raw = bytearray(canonical_json(sign_card(CARD, KEY).document()))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        found = read_card(bytes(raw))
    except FederationError:
        return
    assert found.card == CARD  # the change was in base64's spare bits at most
    assert (found.key, found.signature) == (PUBLIC, sign_card(CARD, KEY).signature)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"card": 1, "key": "", "signature": ""}',
        json.dumps(sign_card({**CARD, "schema": "another"}, KEY).document()).encode(),
        json.dumps(sign_card(CARD, KEY).document() | {"key": "AAAA"}).encode(),
        json.dumps(sign_card(CARD, KEY).document() | {"signature": "?"}).encode(),
        b" " * (5 << 20),
    ],
)
def test_what_is_no_card_is_refused(wrong):
    with pytest.raises(MalformedMessageError):
        read_card(wrong)
