"""What happens to a task, heard over a real socket: in order, once, from where one was, until it ends."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
from fedveil.director.config import load_config
from fedveil.director.founding import ROOT_FILE, init_federation
from fedveil.director.issuer import IssuerFile
from fedveil.director.rest.serving import RestServer
from fedveil.director.server_certificate import ServerCertificate
from fedveil.utils.addresses import Address


class Stream:
    """One who listens; reads when it is asked to, so that a hundred need no thread."""

    def __init__(self, served: Served, last: str = "") -> None:
        self.line = http.client.HTTPSConnection("127.0.0.1", served.server.port, context=served.context, timeout=30)
        served.streams.append(self)
        headers = {"Authorization": served.anna.headers["Authorization"]}
        headers |= {"Last-Event-ID": last} if last else {}
        self.line.request("GET", "/api/v1/tasks/study-1/events", headers=headers)
        self.answer = self.line.getresponse()
        assert self.answer.status == 200
        assert self.answer.getheader("content-type").startswith("text/event-stream")

    def events(self) -> Iterator[dict[str, str]]:
        """Each as it comes, comments as events without anything but themselves."""
        event: dict[str, str] = {}
        while line := self.answer.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if line == b"\n":
                yield event
                event = {}
            else:
                event[name] = value

    def ids(self) -> list[str]:
        """Of all events until the stream ends."""
        return [one["id"] for one in self.events() if "id" in one]


class Served:
    """A study's API on a port."""

    def __init__(self, study, folder):
        init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time(), listen="127.0.0.1:0")
        self.study, self.streams = study, []
        self.context = ssl.create_default_context(cafile=str(folder / ROOT_FILE))
        certificate = ServerCertificate(folder, load_config(folder), IssuerFile(folder))
        self.server = RestServer(study.world.app, Address.parse("127.0.0.1:0"), certificate)
        self.anna = study.researcher("anna")
        self.task = study.submit(self.anna, "anna")

    def stop(self):
        """By a patch of its researcher."""
        patch = self.study.patch("anna", self.task, self.study.Step.STOP, reason="enough")
        assert self.anna.post("/api/v1/tasks/study-1/patches", json=patch).status_code == 201

    def close(self):
        for stream in self.streams:
            stream.answer.close()
            stream.line.close()
        self.server.close()


@pytest.fixture
def served(study, tmp_path):
    made = Served(study, tmp_path / "director")
    yield made
    made.close()


def test_a_listener_hears_all_in_order_and_goes_on_where_it_was(served):
    stream = Stream(served)
    hearing = stream.events()
    told = [next(hearing)]
    lines = served.study.there("north-1", "south-1")
    for name, line in lines.items():
        served.study.answer(name, served.study.order(line))
    while told[-1].get("id") != "1.1.closed":
        told.append(next(hearing))
    served.stop()
    told += list(hearing)
    ids = [one["id"] for one in told if "id" in one]
    assert ids[:4] == ["queued", "running", "1.1.open", "1.1.closed"]
    assert ids[-1] == "stopped"
    assert len(ids) == len(set(ids))
    last = json.loads(told[-1]["data"])
    assert (told[-1]["event"], last["state"], last["reason"]) == ("state", "stopped", "stopped: enough")
    assert Stream(served, "1.1.open").ids() == ids[3:]
    assert Stream(served, "stopped").ids() == []
    assert Stream(served, "of another director").ids() == ids


def test_a_hundred_listeners_hold_no_hundred_threads_and_all_hear_the_end(served):
    streams = [Stream(served) for _ in range(100)]
    hearing = [stream.events() for stream in streams]
    assert {next(one)["id"] for one in hearing} == {"queued"}
    assert threading.active_count() < 80  # the pool's 40, the director's own, and the test's
    served.stop()
    assert all([event.get("id") for event in one][-1] == "stopped" for one in hearing)


def test_streams_end_when_the_director_closes(served):
    stream = Stream(served)
    hearing = stream.events()
    assert next(hearing)["id"] == "queued"
    closing = threading.Thread(target=served.server.close)
    closing.start()
    assert list(hearing) == []
    closing.join()


def test_a_stream_without_news_says_that_it_is_there_and_ends_with_the_right_to_hear_it(served, monkeypatch):
    monkeypatch.setattr("fedveil.director.rest.events.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr("fedveil.director.rest.events._CHECK_SECONDS", 0.0)
    hearing = Stream(served).events()
    assert next(hearing)["id"] == "queued"
    assert next(hearing) == {"": "nothing new"}
    users = served.study.hub.users
    anna = users.first(users.table.c.name == "anna")
    users.change(anna.id, anna.version, lambda _: None, disabled_at=1.0)
    assert all(one == {"": "nothing new"} for one in hearing)


def test_a_stream_of_what_one_may_not_see_is_refused_like_one_that_is_not_there(served, problem_of):
    stranger = served.study.world
    stranger.user("eve", stranger.organization("Elsewhere"), "researcher")
    eve = stranger.signed_in("eve")
    for name in ("study-1", "nothing-1"):
        problem_of(eve.get(f"/api/v1/tasks/{name}/events"), 404)
    problem_of(stranger.anonymous().get("/api/v1/tasks/study-1/events"), 401)
    problem_of(served.anna.get("/api/v1/tasks/study-1/events", headers={"Last-Event-ID": "x" * 65}), 422)
