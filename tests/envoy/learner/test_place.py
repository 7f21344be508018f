"""Where a learner belongs is found once and kept; a folder is one organization's, one site's, and one federation's."""

import json
import stat
import time

import pytest
from fedveil import FederatedLearner
from fedveil.envoy.learner.place import LEARNER_FILE, ROOT_FILE, place_of
from fedveil.envoy.learner.submissions import SUBMISSIONS_FILE, SubmissionReceipt, Submissions
from fedveil.utils.certificates import certificate_pem, make_root
from fedveil.utils.errors import ConfigError, DuplicateUpdateError, IdentityError, StorageError
from fedveil.utils.messages import RunId, TaskRef
from fedveil.utils.tensors import digest_of

URL = "https://127.0.0.1:8443"
KEY = "fv_" + "k" * 40
PLAN = digest_of(b"plan")
REF = TaskRef(RunId("study-1"), 2, 1, PLAN)


@pytest.fixture(scope="module")
def root():
    return certificate_pem(make_root("lungs", time.time()).certificate)


def test_what_was_said_once_need_not_be_said_again(tmp_path, root):
    first = place_of("1f0c", url=URL + "/", folder=tmp_path / "a", name="north", root=root, environment={})
    again = place_of("1f0c", folder=tmp_path / "a", environment={})
    assert first == again
    assert (again.url, again.name) == (URL, "north")
    for file in (LEARNER_FILE, ROOT_FILE):
        assert stat.S_IMODE((tmp_path / "a" / file).stat().st_mode) == 0o600


def test_an_argument_goes_before_the_environment_and_that_before_the_folder(tmp_path, root):
    (tmp_path / "root.pem").write_bytes(root)
    told = {"FEDVEIL_URL": "https://told.example", "FEDVEIL_ROOT": str(tmp_path / "root.pem")}
    assert place_of("o1", folder=tmp_path / "a", environment=told).url == "https://told.example"
    assert place_of("o1", url=URL, folder=tmp_path / "a", environment=told).url == URL
    assert place_of("o1", folder=tmp_path / "a", environment={}).url == URL


def test_by_default_each_organization_has_a_folder_of_its_own_under_the_users_home(tmp_path, root, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    places = [place_of(one, url=URL, root=root, environment={}) for one in ("A_b", "c")]
    assert [one.folder.relative_to(tmp_path).as_posix() for one in places] == [
        ".fedveil/learner-A_b",
        ".fedveil/learner-c",
    ]
    assert [one.name for one in places] == ["learner-a-b", "learner-c"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"organization_id": "../x"}, ConfigError, "organization_id"),
        ({"organization_id": None}, ConfigError, "organization_id"),
        ({"organization_id": "other"}, ConfigError, "belongs to organization o1"),
        ({"name": "else"}, ConfigError, "belongs to site north"),
        ({"url": "http://127.0.0.1:1"}, ConfigError, "expected https"),
        ({"url": "https://u:p@h"}, ConfigError, "nothing more"),
        ({"url": "https://h/path"}, ConfigError, "nothing more"),
        ({"url": "https://h:99999"}, ConfigError, "expected https"),
        ({"root": b"no certificate"}, IdentityError, "the root"),
        ({"root": "/nowhere/root.pem"}, ConfigError, "cannot be read"),
        ({"root": "other"}, IdentityError, "another root certificate"),
    ],
)
def test_what_contradicts_the_folder_or_cannot_be_is_refused(tmp_path, root, changes, error, message):
    place_of("o1", url=URL, folder=tmp_path / "a", name="north", root=root, environment={})
    if changes.get("root") == "other":
        changes = {"root": certificate_pem(make_root("hearts", time.time()).certificate)}
    given = {"organization_id": "o1", "folder": tmp_path / "a"} | changes
    with pytest.raises(error, match=message):
        place_of(given.pop("organization_id"), environment={}, **given)
    assert place_of("o1", folder=tmp_path / "a", environment={}).url == URL


def test_without_an_address_or_somebody_to_believe_there_is_no_learner(tmp_path, root):
    with pytest.raises(ConfigError, match="FEDVEIL_URL"):
        place_of("o1", folder=tmp_path / "a", root=root, environment={})
    with pytest.raises(ConfigError, match="whom to believe"):
        place_of("o1", url=URL, folder=tmp_path / "b", environment={})
    place_of("o1", url=URL, folder=tmp_path / "c", root=root, environment={})
    (tmp_path / "c" / LEARNER_FILE).write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        place_of("o1", folder=tmp_path / "c", environment={})


@pytest.mark.parametrize("key", ["", "short", "with a space in it", "k" * 600, None, "line\nbreak-12345"])
def test_a_key_that_is_none_is_refused_and_not_repeated(tmp_path, root, key):
    with pytest.raises(ConfigError) as refused:
        FederatedLearner("o1", key, url=URL, folder=tmp_path / "a", root=root)
    assert str(key) not in str(refused.value) or not key


def test_nothing_says_the_key_and_nothing_is_sent_before_something_is_asked_for(tmp_path, root):
    with FederatedLearner("o1", KEY, url=URL, folder=tmp_path / "a", name="north", root=root) as learner:
        assert repr(learner) == "FederatedLearner('o1', name='north')"
        assert KEY not in repr(vars(learner))
    assert not any(KEY in path.read_text("utf-8", "replace") for path in (tmp_path / "a").iterdir() if path.is_file())


def test_one_answer_a_round_is_remembered_over_processes(tmp_path):
    one, other = digest_of(b"one"), digest_of(b"other")
    kept = Submissions(tmp_path)
    assert kept.check(REF, one) is None
    receipt = kept.keep(SubmissionReceipt(REF.run, REF.round, REF.attempt, PLAN, one))
    done = kept.keep(receipt.of(TaskRef(REF.run, 2, 3, PLAN), other, 24, 5.0))
    again = Submissions(tmp_path)
    assert again.check(REF, one) == done == again.with_content(one, None) == again.latest(2)
    assert (done.attempt, done.length, done.submitted) == (3, 24, one)
    with pytest.raises(DuplicateUpdateError, match="a round has one answer"):
        again.check(TaskRef(REF.run, 2, 9, PLAN), other)
    assert again.check(TaskRef(REF.run, 3, 1, PLAN), other) is None
    again.forget(done)
    assert Submissions(tmp_path).check(REF, other) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 2, "submissions": []}', '{"version": 1, "submissions": [{}]}']
)
def test_a_memory_that_was_damaged_is_no_empty_one(tmp_path, text):
    (tmp_path / SUBMISSIONS_FILE).write_text(text)
    (tmp_path / SUBMISSIONS_FILE).chmod(0o600)
    with pytest.raises(StorageError):
        Submissions(tmp_path)


def test_the_folders_memory_holds_no_key(tmp_path, root):
    place_of("o1", url=URL, folder=tmp_path / "a", root=root, environment={})
    assert set(json.loads((tmp_path / "a" / LEARNER_FILE).read_text())) == {"version", "organization_id", "name", "url"}
