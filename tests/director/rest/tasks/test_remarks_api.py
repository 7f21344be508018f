"""Threads on plans and tasks, and the reviews that a collaboration asks for before a task of a plan starts."""

from __future__ import annotations

import threading

import pytest
from fedveil.director.hub.remarks import Remark, Subject
from fedveil.director.hub.tables import USERS
from fedveil.director.records import RunState
from fedveil.utils.errors import UnknownEntityError
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

    def verdict(who, said):
        answer = who.post(f"{path}/remarks", json={"text": "Read it.", "verdict": said})
        assert answer.status_code == 201, answer.text

    assert "0 approved this one" in problem_of(submitted(), 403)["detail"]
    rita, rolf, nora = (reviewer(study, *one) for one in (("rita", "south"), ("rolf", "south"), ("nora", "north")))
    verdict(rita, "approved")
    verdict(rolf, "approved")
    assert "1 approved this one" in problem_of(submitted(), 403)["detail"]
    verdict(nora, "rejected")
    north = study.organizations["north"].id
    assert f"a reviewer of {north} rejects the plan" in problem_of(submitted(), 403)["detail"]
    verdict(nora, "approved")
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
