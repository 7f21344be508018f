"""Threads on plans and tasks, and the reviews that a collaboration asks for before a task of a plan starts."""

from __future__ import annotations

import threading

import pytest
from fedveil.director.hub import remarks
from fedveil.director.hub.lasting_files import LastingFiles
from fedveil.director.hub.remarks import Opinion, Remark, Subject, Verdict
from fedveil.director.hub.roles import PRESETS
from fedveil.director.hub.rules import Rule
from fedveil.director.hub.tables import USERS
from fedveil.director.records import RunState
from fedveil.director.retention import Retention
from fedveil.director.revocations import Revocations
from fedveil.utils.audit_chain import read_entries
from fedveil.utils.errors import ProtocolError, UnknownEntityError
from fedveil.utils.tensors import digest_of


@pytest.fixture
def plan(study):
    """A researcher's, that the collaboration may see before a task of it begins."""
    anna, bundle = study.researcher("anna"), study.plan()
    study.bring(anna, bundle)
    path = f"/api/v1/plans/{bundle.manifest.digest}"
    assert anna.put(f"{path}/collaborations/{study.collaboration.id}").status_code == 204
    return anna, path


def reviewer(study, name, organization):
    study.world.user(name, study.organizations[organization], "reviewer")
    return study.world.signed_in(name)


def ask_for_reviews(study, number):
    one = study.hub.collaborations.get(study.collaboration.id)
    study.hub.collaborations.change(one.id, one.version, lambda _: None, reviews_needed=number)


def verdict(who, path, said):
    answer = who.post(f"{path}/remarks", json={"text": "Read it.", "verdict": said})
    assert answer.status_code == 201, answer.text


def said_of(who, path, **params):
    answer = who.get(f"{path}/remarks", params=params)
    assert answer.status_code == 200, answer.text
    return [one["text"] for one in answer.json()["items"]]


def by_key(study, name, *rules):
    """A user's client by an API key for these rules."""
    user, now = study.hub.users.first(USERS.c.name == name), study.world.clock()
    client = study.world.anonymous()
    parsed = frozenset(map(Rule.parse, rules))
    _, key = study.hub.sign_in.make_key(user, "a test's", parsed, now, now + 1e6)
    client.headers["Authorization"] = f"Bearer {key}"
    return client


def test_a_thread_goes_on_in_order_and_its_words_stand_in_the_audit_log_by_their_sha256(
    study, plan, problem_of, tmp_path
):
    anna, path = plan
    rita = reviewer(study, "rita", "south")
    texts = ["Why so many epochs?", "Two are enough.\nI will change it.", "Thank you: é, 中."]
    for number, (who, text) in enumerate(zip((rita, anna, rita), texts, strict=True)):
        answers = {"answers": number - 1} if number else {}
        said = who.post(f"{path}/remarks", json={"text": text} | answers)
        assert said.status_code == 201, said.text
        assert said.json()["number"] == number
    first = anna.get(f"{path}/remarks", params={"limit": 2}).json()
    assert [(one["author"], one["text"], one["answers"]) for one in first["items"]] == [
        ("rita", texts[0], None),
        ("anna", texts[1], 0),
    ]
    rest = anna.get(f"{path}/remarks", params={"limit": 2, "after": first["next"]}).json()
    assert [one["text"] for one in rest["items"]] == texts[2:]
    assert rest["next"] is None
    kept = study.hub.remarks.thread(Subject.PLAN, path.rsplit("/", 1)[1])
    assert [one.text for one in kept] == texts
    log = (tmp_path / "director" / "audit.jsonl").read_text("utf-8")
    assert all(digest_of(text.encode("utf-8")) in log for text in texts)
    assert "epochs" not in log
    problem_of(anna.post(f"{path}/remarks", json={"text": "?", "answers": 3}), 404)
    problem_of(anna.get(f"{path}/remarks", params={"after": "bm8"}), 422)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": ""},
        {"text": " \n"},
        {"text": "a\0b"},
        {"text": "x" * 4001},
        {"text": "a", "answers": -1},
        {"text": "a", "verdict": "maybe"},
        {"text": "a", "more": 1},
        {"text": 3},
    ],
)
def test_what_is_no_remark_is_refused(plan, body, problem_of):
    anna, path = plan
    problem_of(anna.post(f"{path}/remarks", json=body), 422)
    assert anna.get(f"{path}/remarks").json()["items"] == []


def test_of_a_task_all_of_its_collaboration_speak_and_strangers_do_not_see_it(study, problem_of):
    anna = study.researcher("anna")
    path = f"/api/v1/tasks/{study.submit(anna, 'anna')['task_id']}/remarks"
    study.world.user("manager", study.organizations["south"], "data-manager")
    manager = study.world.signed_in("manager")
    assert manager.post(path, json={"text": "Our scanner was replaced in May."}).status_code == 201
    assert anna.get(path).json()["items"][0]["author"] == "manager"
    problem_of(anna.post(path, json={"text": "a", "verdict": "approved"}), 422)  # of plans alone
    study.world.user("otto", study.world.organization("East Hospital"), "researcher")
    otto = study.world.signed_in("otto")
    problem_of(otto.get(path), 404)
    problem_of(otto.post(path, json={"text": "?"}), 404)
    study.world.user("olga", study.organizations["south"], "auditor")
    olga = study.world.signed_in("olga")
    assert olga.get(path).status_code == 200
    problem_of(olga.post(path, json={"text": "?"}), 403)


def test_no_task_starts_before_reviewers_of_as_many_organizations_approved_the_plan_as_are_asked_for(
    study, plan, problem_of
):
    anna, path = plan
    ask_for_reviews(study, 2)

    def submitted():
        return anna.post("/api/v1/tasks", json=study.body("anna", study.plan()))

    assert "0 approved this one" in problem_of(submitted(), 403)["detail"]
    rita, rolf, nora = (reviewer(study, *one) for one in (("rita", "south"), ("rolf", "south"), ("nora", "north")))
    verdict(rita, path, "approved")
    verdict(rolf, path, "approved")
    assert "1 approved this one" in problem_of(submitted(), 403)["detail"]
    verdict(nora, path, "rejected")
    north = study.organizations["north"].id
    assert f"a reviewer of {north} rejects the plan" in problem_of(submitted(), 403)["detail"]
    verdict(nora, path, "approved")
    assert submitted().status_code == 201


def test_who_brought_a_plan_does_not_review_it_and_who_is_no_reviewer_gives_no_verdict(study, plan, problem_of):
    anna, path = plan
    refused = anna.post(f"{path}/remarks", json={"text": "Fine.", "verdict": "approved"})
    assert "you brought this plan" in problem_of(refused, 403)["detail"]
    study.world.user("manager", study.organizations["south"], "data-manager")
    answer = study.world.signed_in("manager").post(f"{path}/remarks", json={"text": "Fine.", "verdict": "approved"})
    problem_of(answer, 403)
    study.world.user("rex", study.organizations["south"], "reviewer", "researcher")
    rex = study.world.signed_in("rex")
    problem_of(rex.put(f"{path}/collaborations/{study.collaboration.id}"), 403)  # it is not rex's to show


def test_a_verdict_that_is_taken_back_in_mid_run_ends_the_task(study, plan):
    anna, path = plan
    ask_for_reviews(study, 1)
    rita = reviewer(study, "rita", "south")
    assert rita.post(f"{path}/remarks", json={"text": "Good.", "verdict": "approved"}).status_code == 201
    task = anna.post("/api/v1/tasks", json=study.body("anna", study.plan())).json()
    study.there("north-1", "south-1")
    study.until(task, lambda record: record.state is RunState.RUNNING)
    assert rita.post(f"{path}/remarks", json={"text": "It leaks.", "verdict": "rejected"}).status_code == 201
    ended = study.until(task, lambda record: record.state.is_over)
    assert "rejects the plan" in ended.reason


def no_reviewer_any_more(study, user):
    study.hub.roles.give(user.id, ["researcher"])


def disabled(study, user):
    study.hub.users.change(user.id, user.version, lambda _: None, disabled_at=study.world.clock())


def revoked(study, user):
    study.joined(user.name, "operator")
    Revocations(study.hub.engine).revoke(user.name, "left", study.world.clock())


def an_author(study, user):
    client = study.world.signed_in(user.name)
    study.hub.roles.give(user.id, ["reviewer", "researcher"])
    study.bring(client, study.plan())


@pytest.mark.parametrize("becomes", [no_reviewer_any_more, disabled, revoked, an_author])
@pytest.mark.parametrize("said", ["approved", "rejected"])
def test_the_verdict_of_who_is_no_reviewer_of_the_plan_any_more_does_not_count(study, plan, problem_of, becomes, said):
    anna, path = plan
    ask_for_reviews(study, 1)
    rita, nora = reviewer(study, "rita", "south"), reviewer(study, "nora", "north")
    if said == "rejected":
        verdict(nora, path, "approved")
    verdict(rita, path, said)
    becomes(study, study.hub.users.first(USERS.c.name == "rita"))
    answer = anna.post("/api/v1/tasks", json=study.body("anna", study.plan()))
    if said == "approved":
        assert "0 approved this one" in problem_of(answer, 403)["detail"]
    else:
        assert answer.status_code == 201, answer.text


def test_a_task_ends_once_its_reviewer_is_none_any_more(study, plan):
    anna, path = plan
    ask_for_reviews(study, 1)
    verdict(reviewer(study, "rita", "south"), path, "approved")
    task = anna.post("/api/v1/tasks", json=study.body("anna", study.plan())).json()
    study.there("north-1", "south-1")
    study.until(task, lambda record: record.state is RunState.RUNNING)
    disabled(study, study.hub.users.first(USERS.c.name == "rita"))
    ended = study.until(task, lambda record: record.state.is_over)
    assert "0 approved this one" in ended.reason


def test_who_starts_a_task_does_not_review_its_plan(study, plan, problem_of):
    _, path = plan
    ask_for_reviews(study, 1)
    carl = study.researcher("carl")
    user = study.hub.users.first(USERS.c.name == "carl")
    study.hub.roles.give(user.id, ["researcher", "reviewer"])
    verdict(study.world.signed_in("carl"), path, "approved")
    answer = carl.post("/api/v1/tasks", json=study.body("carl", study.plan()))  # of a plan that a colleague brought
    assert "0 approved this one" in problem_of(answer, 403)["detail"]
    verdict(reviewer(study, "rita", "south"), path, "approved")
    assert carl.post("/api/v1/tasks", json=study.body("carl", study.plan())).status_code == 201


def test_no_api_key_gives_a_verdict(study, plan, problem_of):
    _, path = plan
    reviewer(study, "rita", "south")
    key = by_key(study, "rita", *map(str, PRESETS["reviewer"].rules))
    answer = key.post(f"{path}/remarks", json={"text": "Fine.", "verdict": "approved"})
    assert "a reviewer signs in" in problem_of(answer, 403)["detail"]
    assert key.post(f"{path}/remarks", json={"text": "Fine."}).status_code == 201


def test_an_api_key_without_a_rule_about_plans_sees_none_not_even_its_user_s_own(study, plan, problem_of):
    anna, path = plan
    assert anna.post(f"{path}/remarks", json={"text": "Mine."}).status_code == 201
    without = by_key(study, "anna", "view:task:collaboration", "create:remark:collaboration")
    for answer in (
        without.get(path),
        without.get(f"{path}/remarks"),
        without.post(f"{path}/remarks", json={"text": "?"}),
    ):
        problem_of(answer, 404)
    for rule in ("view:plan:own", "create:plan:own"):
        assert said_of(by_key(study, "anna", rule), path) == ["Mine."]


def test_who_brings_the_same_bytes_reads_nothing_of_what_others_said_of_them(study, plan):
    anna, path = plan
    rita = reviewer(study, "rita", "south")
    for who, text in ((anna, "0"), (rita, "1")):
        assert who.post(f"{path}/remarks", json={"text": text}).status_code == 201
    study.organizations["east"] = study.world.organization("East Hospital")
    otto = study.researcher("otto", "east")
    study.bring(otto, study.plan())
    assert said_of(otto, path) == []
    assert otto.post(f"{path}/remarks", json={"text": "2"}).status_code == 201
    assert anna.post(f"{path}/remarks", json={"text": "3"}).status_code == 201
    assert said_of(otto, path) == ["2"]
    assert said_of(anna, path) == said_of(rita, path) == ["0", "1", "3"]
    page = rita.get(f"{path}/remarks", params={"limit": 2}).json()  # pages are whole, whatever is left out
    assert [one["number"] for one in page["items"]] == [0, 1]
    assert said_of(rita, path, limit=2, after=page["next"]) == ["3"]
    study.world.user("olga", study.organizations["east"], "auditor")
    assert said_of(study.world.signed_in("olga"), path) == ["0", "1", "2", "3"]


def test_of_two_collaborations_each_reads_its_own_organizations_words_alone(study, plan):
    anna, path = plan
    study.organizations["east"] = study.world.organization("East Hospital")
    other = study.agree("Hearts", "north", "east")
    rita, edda = reviewer(study, "rita", "south"), reviewer(study, "edda", "east")
    assert edda.get(f"{path}/remarks").status_code == 404
    assert anna.put(f"{path}/collaborations/{other.id}").status_code == 204
    for who, text in ((rita, "south"), (edda, "east"), (anna, "north")):
        assert who.post(f"{path}/remarks", json={"text": text}).status_code == 201
    assert said_of(rita, path) == ["south", "north"]
    assert said_of(edda, path) == ["east", "north"]
    assert said_of(anna, path) == ["south", "east", "north"]
    one = study.hub.collaborations.get(other.id)
    north = frozenset([study.organizations["north"].id])
    study.hub.collaborations.change(one.id, one.version, lambda _: None, organizations=north)
    assert said_of(anna, path) == ["south", "north"]  # as the collaborations are now


def test_who_sees_a_plan_in_one_collaboration_starts_no_task_of_it_in_another(study, plan, problem_of):
    anna, path = plan
    bob = study.researcher("bob", "south")
    other = study.agree("Hearts", "south", "north")
    assert bob.get(path).status_code == 200
    body = study.body("bob", study.plan(), collaboration_id=other.id)
    refused = problem_of(bob.post("/api/v1/tasks", json=body), 404)
    assert refused["detail"] == "there is no such plan: PUT its manifest first"
    assert anna.put(f"{path}/collaborations/{other.id}").status_code == 204
    assert bob.post("/api/v1/tasks", json=body).status_code == 201


def test_a_plan_that_is_shown_outlives_a_restart_of_the_director_and_one_that_is_not_does_not(study, plan, problem_of):
    anna, path = plan
    hidden = study.plan(elements=5)
    study.bring(anna, hidden)
    lasting = LastingFiles(study.hub.engine, study.artifacts)
    for _ in range(2):  # the second time from memory
        Retention(study.history, study.artifacts, 1, lasting.digests).sweep()
        assert anna.get(path).json()["missing"] == []
    problem_of(anna.get(f"/api/v1/plans/{hidden.manifest.digest}"), 404)
    study.artifacts.discard(path.rsplit("/", 1)[1])
    assert LastingFiles(study.hub.engine, study.artifacts).digests() == {path.rsplit("/", 1)[1]}


def test_the_audit_log_says_how_many_reviews_a_collaboration_asks_for(study):
    study.world.user("boss", study.organizations["north"], "admin")
    boss = study.world.signed_in("boss")
    path = f"/api/v1/collaborations/{study.collaboration.id}"
    kept = boss.get(path)
    permit = kept.json()["permit"]
    made = {"name": "Hearts", "organizations": kept.json()["organizations"], "permit": permit, "reviews_needed": 2}
    assert boss.post("/api/v1/collaborations", json=made).status_code == 201
    answer = boss.patch(path, json={"reviews_needed": 1}, headers={"If-Match": kept.headers["ETag"]})
    assert boss.patch(path, json={"permit": permit}, headers={"If-Match": answer.headers["ETag"]}).status_code == 200
    log = [one.event for one in read_entries(study.world.works.folder / "audit.jsonl")]
    said = [one.get("reviews_needed") for one in log if one.get("action", "").startswith("collaboration ")]
    assert said == [2, 1, None]


def test_a_collaboration_asks_for_no_more_reviews_than_it_has_organizations(study, problem_of):
    study.world.user("boss", study.organizations["north"], "admin")
    boss = study.world.signed_in("boss")
    path = f"/api/v1/collaborations/{study.collaboration.id}"
    tag = {"If-Match": boss.get(path).headers["ETag"]}
    problem_of(boss.patch(path, json={"reviews_needed": 3}, headers=tag), 422)
    assert boss.patch(path, json={"reviews_needed": 2}, headers=tag).json()["reviews_needed"] == 2


def test_all_who_speak_at_the_same_moment_are_heard(study):
    user = study.hub.users.first(USERS.c.name != "")
    together = threading.Barrier(6)

    def speak(name):
        def made(number):
            return Remark(Subject.TASK, "run-1", number, user.id, user.organization, name, 0.0)

        together.wait(60)
        study.hub.remarks.say(made, lambda _: None)

    threads = [threading.Thread(target=speak, args=(str(name),)) for name in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    thread = study.hub.remarks.thread(Subject.TASK, "run-1")
    assert [one.number for one in thread] == list(range(6))
    assert sorted(one.text for one in thread) == list("012345")


def test_what_the_audit_log_cannot_take_was_not_said(study):
    user = study.hub.users.first(USERS.c.name != "")

    def full(_):
        raise OSError("the disk is full")

    def made(number):
        return Remark(Subject.TASK, "run-1", number, user.id, user.organization, "a", 0.0, answers=number or None)

    with pytest.raises(OSError, match="full"):
        study.hub.remarks.say(made, full)
    study.hub.remarks.say(made, lambda _: None)
    with pytest.raises(UnknownEntityError, match="no remark 1"):
        study.hub.remarks.say(made, lambda _: None)
    assert len(study.hub.remarks.thread(Subject.TASK, "run-1")) == 1


def test_of_each_user_the_latest_verdict_is_read_and_a_full_thread_takes_verdicts_alone(study, monkeypatch):
    anna, bert = (study.world.user(name, study.organizations["north"]) for name in ("anna", "bert"))

    def say(user, verdict=None):
        def made(number):
            return Remark(Subject.PLAN, "ab" * 32, number, user.id, user.organization, "a", 0.0, verdict)

        return study.hub.remarks.say(made, lambda _: None)

    assert study.hub.remarks.verdicts("ab" * 32) == ()
    for user, verdict in ((anna, Verdict.APPROVED), (bert, Verdict.REJECTED), (anna, None), (bert, Verdict.APPROVED)):
        say(user, verdict)
    expected = [Opinion(one.id, one.organization, Verdict.APPROVED) for one in (anna, bert)]
    assert list(study.hub.remarks.verdicts("ab" * 32)) == expected
    assert study.hub.remarks.verdicts("cd" * 32) == ()
    monkeypatch.setattr(remarks, "MOST_REMARKS", 4)
    monkeypatch.setattr(remarks, "MOST_WITH_VERDICTS", 5)
    with pytest.raises(ProtocolError, match="has 4 remarks, and takes no more"):
        say(anna)
    say(anna, Verdict.REJECTED)
    with pytest.raises(ProtocolError, match="has 5 remarks, and takes no more"):
        say(anna, Verdict.APPROVED)
