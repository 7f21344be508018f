"""A model is believed once its bytes, its signature and the signer are right; what broke goes on where it stopped."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.envoy.learner.downloads import LOG_KEY_FILE, SIGNED_CONTEXT, downloaded, known_key
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import (
    ConfigError,
    DigestMismatchError,
    IdentityError,
    MalformedMessageError,
    UnreachableError,
)
from fedveil.utils.tensors import canonical_json, digest_of
from safetensors.numpy import save

MODEL = save({"w": np.arange(600, dtype=np.float32), "count": np.zeros(2, np.int64)})
PIECE = 100


class Director:
    """Answers as the director's file answer does: ranges, an ETag, and what it says of the model, signed."""

    def __init__(self):
        self.key, self.model, self.asked = Ed25519PrivateKey.generate(), MODEL, []
        self.breaks_after, self.changes = None, {}

    @contextlib.contextmanager
    def open(self, method, path, *, params, headers):
        self.asked.append((method, path, dict(params), dict(headers)))
        digest = digest_of(self.model)
        start = 0
        if headers.get("If-Range") == f'"{digest}"':
            start = int(headers["Range"].removeprefix("bytes=").rstrip("-"))
        said = {"federation": "lungs", "task_id": "study-1", "training_round": 3, "sha256": digest}
        told = {
            "ETag": f'"{digest}"',
            "X-Model-Version": "1.2.0",
            "X-Task-Id": "study-1",
            "X-Training-Round": "3",
            "X-Organizations-Contributed": "4",
            "X-Accuracy": "0.875",
            "X-Log-Key": public_bytes(self.key.public_key()).hex(),
            "X-Signature": self.key.sign(SIGNED_CONTEXT + canonical_json(said)).hex(),
        } | self.changes
        headers = {name: value for name, value in told.items() if value is not None}
        yield SimpleNamespace(
            status_code=206 if start else 200, headers=headers, iter_bytes=lambda: self._pieces(start)
        )

    def _pieces(self, start):
        sent = 0
        for at in range(start, len(self.model), PIECE):
            if self.breaks_after is not None and sent >= self.breaks_after:
                self.breaks_after = None
                raise UnreachableError("the line broke")
            yield self.model[at : at + PIECE]
            sent += PIECE


@pytest.fixture
def director():
    return Director()


@pytest.fixture
def fetch(director, tmp_path):
    (tmp_path / "site").mkdir(mode=0o700)
    return lambda version="latest": downloaded(
        director, version, tmp_path / "models", "lungs", known_key(tmp_path / "site")
    )


def test_a_model_comes_with_all_that_the_director_says_of_it(director, fetch):
    found = fetch()
    assert found.path.read_bytes() == MODEL
    assert (found.model_version, found.training_round, found.accuracy) == ("1.2.0", 3, 0.875)
    assert (found.sha256, found.organizations_contributed, found.task_id) == (digest_of(MODEL), 4, "study-1")
    np.testing.assert_array_equal(found.weights["w"], np.arange(600, dtype=np.float32))
    assert set(found.load()) == {"w", "count"}
    assert director.asked[0][2] == {"version": "latest", "format": "safetensors"}
    assert found.path.stat().st_mode & 0o077 == 0


def test_a_download_that_broke_goes_on_where_it_stopped_and_the_bytes_are_the_same(director, fetch):
    director.breaks_after = 1000
    assert fetch().path.read_bytes() == MODEL
    assert [one[3] for one in director.asked] == [
        {},
        {"Range": "bytes=1000-", "If-Range": f'"{digest_of(MODEL)}"'},
    ]


def test_where_another_model_came_meanwhile_it_begins_anew(director, fetch):
    director.breaks_after = 1000
    with contextlib.suppress(UnreachableError):
        director.open_once = fetch()
    director.model = save({"w": np.ones(700, np.float32)})
    assert fetch().path.read_bytes() == director.model


def test_bytes_that_are_not_those_that_were_signed_are_refused_and_gone(director, fetch, tmp_path):
    director.changes = {"ETag": f'"{digest_of(b"other")}"'}
    with pytest.raises(IdentityError, match="signature"):
        fetch()
    director.changes = {}
    good = director.model

    def poisoned(start):
        yield good[start:-1] + b"x"

    director._pieces = poisoned
    with pytest.raises(DigestMismatchError, match="not the one that the director signed"):
        fetch()
    assert not list((tmp_path / "models").glob("*.safetensors"))
    assert not list((tmp_path / "models").glob(".*.part"))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"X-Signature": None}, IdentityError),
        ({"X-Signature": "zz"}, IdentityError),
        ({"X-Signature": "00" * 64}, IdentityError),
        ({"X-Log-Key": None}, IdentityError),
        ({"X-Log-Key": "00" * 3}, IdentityError),
        ({"X-Training-Round": "4"}, IdentityError),
        ({"X-Task-Id": "study-2"}, IdentityError),
        ({"ETag": None}, MalformedMessageError),
        ({"ETag": 'W/"abc"'}, MalformedMessageError),
    ],
)
def test_what_nobody_vouches_for_is_not_kept(director, fetch, tmp_path, changes, error):
    director.changes = changes
    with pytest.raises(error):
        fetch()
    assert not list((tmp_path / "models").glob("*.safetensors"))


def test_another_key_of_the_directors_log_than_the_first_is_refused(director, fetch, tmp_path):
    fetch()
    assert (tmp_path / "site" / LOG_KEY_FILE).stat().st_mode & 0o077 == 0
    director.key = Ed25519PrivateKey.generate()
    with pytest.raises(IdentityError, match="another key"):
        fetch()


def test_a_file_that_was_changed_at_the_site_is_not_given_as_the_directors(director, fetch):
    found = fetch()
    found.path.write_bytes(b"changed")
    with pytest.raises(DigestMismatchError, match="was changed"):
        found.load()
    with pytest.raises(DigestMismatchError, match="was changed"):
        fetch()
    assert fetch().path.read_bytes() == MODEL


@pytest.mark.parametrize("version", ["", "../x", "a b", None, "x" * 81])
def test_a_version_that_is_none_is_refused_before_anybody_is_asked(director, fetch, version):
    with pytest.raises(ConfigError, match="expected latest"):
        fetch(version)
    assert director.asked == []
