"""A public key in whatever form people have it; never a secret, and no text of it comes back."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from fedveil.director.hub.encryption_keys import age_text, fingerprint, read_encryption_key
from fedveil.utils.errors import MalformedMessageError
from hypothesis import assume, given
from hypothesis import strategies as st

PRIVATE = X25519PrivateKey.from_private_bytes(bytes(range(32)))  # fixed: it is in names of tests
KEY = PRIVATE.public_key().public_bytes_raw()
PEM = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
SECRET_PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
OTHER_PEM = (
    Ed25519PrivateKey.from_private_bytes(bytes(32))
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        "0x" + KEY.hex().upper(),
        base64.b64encode(KEY).decode(),
        PEM,
        age_text(KEY),
        f" {age_text(KEY).upper()}\n",
    ],
)
def test_a_key_is_read_in_every_form(text):
    assert read_encryption_key(text) == KEY


def test_a_recipient_that_age_itself_made_is_read():
    # From the README of FiloSottile/age.
    text = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    assert age_text(read_encryption_key(text)) == text


@given(st.binary(min_size=32, max_size=32))
def test_what_is_written_is_read(raw):
    assume(raw[1:] != bytes(31))  # a point of small order, once in a while
    assert read_encryption_key(age_text(raw)) == raw


@given(st.integers(4, 61), st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
def test_one_wrong_letter_is_noticed(place, letter):
    text = age_text(KEY)
    assume(text[place] != letter)
    with pytest.raises(MalformedMessageError):
        read_encryption_key(text[:place] + letter + text[place + 1 :])


@pytest.mark.parametrize(
    "secret",
    [
        SECRET_PEM,
        "AGE-SECRET-KEY-1QQPZRY9X8GF2TVDW0S3JN54KHCE6MUA7LQQPZRY9X8GF2TVDW0S3JN5",
        "sk_live_51H8abcdefghijklmnop",
        "fv_0123456789abcdef_" + "A" * 43,
    ],
)
def test_a_secret_is_refused_and_not_repeated(secret):
    with pytest.raises(MalformedMessageError, match="looks like a secret") as caught:
        read_encryption_key(secret)
    assert secret[20:40] not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "hunter2", KEY.hex()[:-2], KEY.hex() + "00", OTHER_PEM.decode(), "x" * 2000, "age1" + "q" * 58, "é" * 44],
)
def test_what_is_no_key_is_refused_and_not_repeated(text):
    with pytest.raises(MalformedMessageError) as caught:
        read_encryption_key(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("point", [bytes(32), bytes([1]) + bytes(31)])
def test_a_point_of_small_order_is_refused(point):
    with pytest.raises(MalformedMessageError, match="small order"):
        read_encryption_key(point.hex())


def test_a_fingerprint_can_be_read_out():
    assert fingerprint(bytes(32)).startswith("6668 7aad f862 bd77")
    assert len(fingerprint(KEY).split()) == 16
