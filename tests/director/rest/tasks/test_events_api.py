"""What happens to a task, heard over a real socket: in order, once, from where one was, until it ends."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time

import httpx
import pytest
from fedveil.director.config import load_config
from fedveil.director.founding import ROOT_FILE, init_federation
from fedveil.director.issuer import IssuerFile
from fedveil.director.rest.serving import RestServer
from fedveil.director.server_certificate import ServerCertificate
from fedveil.utils.addresses import Address


class Served:
    """A study's API on a port."""

    def __init__(self, study, folder):
        init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time(), listen="127.0.0.1:0")
        self.study = study
        self.context = ssl.create_default_context(cafile=str(folder / ROOT_FILE))
        certificate = ServerCertificate(folder, load_config(folder), IssuerFile(folder))
        self.server = RestServer(study.world.app, Address.parse("127.0.0.1:0"), certificate)
        self.url = f"https://127.0.0.1:{self.server.port}"
        self.anna = study.researcher("anna")
        self.task = study.submit(self.anna, "anna")

    def caller(self, **more):
        headers = {"Authorization": self.anna.headers["Authorization"]}
        return httpx.AsyncClient(base_url=self.url, verify=self.context, headers=headers, timeout=30, **more)

    async def hear(self, caller, last="", heard=None, path="/api/v1/tasks/study-1/events"):
        """All lines until the stream ends, as events; ``heard`` is called at each."""
        found, event = [], {}
        async with caller.stream("GET", path, headers={"Last-Event-ID": last} if last else {}) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if not line:
                    if event:
                        found.append(event)
                        if heard:
                            heard(event)
                    event = {}
                else:
                    event[name] = value
        return found

    def stop(self):
        """By a patch of its researcher."""
        patch = self.study.patch("anna", self.task, self.study.Step.STOP, reason="enough")
        assert self.anna.post("/api/v1/tasks/study-1/patches", json=patch).status_code == 201

    def run_one_round(self):
        """Both sites answer the first of two rounds."""
        lines = self.study.there("north-1", "south-1")
        for name, line in lines.items():
            self.study.answer(name, self.study.order(line))


@pytest.fixture
def served(study, tmp_path):
    made = Served(study, tmp_path / "director")
    yield made
    made.server.close()


def ids(events):
    return [one["id"] for one in events if "id" in one]


def test_a_listener_hears_all_in_order_and_goes_on_where_it_was(served):
    async def listen():
        async with served.caller() as caller:
            heard = asyncio.Event()
            listening = asyncio.create_task(served.hear(caller, heard=lambda one: heard.set()))
            await heard.wait()
            await asyncio.to_thread(served.run_one_round)
            await asyncio.to_thread(served.stop)
            whole = await listening
            return whole, await served.hear(caller, "1.1.open"), await served.hear(caller, ids(whole)[-1])

    whole, rest, nothing = asyncio.run(listen())
    told = ids(whole)
    assert told[:3] == ["queued", "running", "1.1.open"]
    assert "1.1.closed" in told
    assert told[-1] == "stopped"
    assert len(told) == len(set(told))
    assert ids(rest) == told[3:]
    assert nothing == []
    last = json.loads(whole[-1]["data"])
    assert (whole[-1]["event"], last["state"], last["reason"]) == ("state", "stopped", "stopped: enough")


def test_a_hundred_listeners_hold_no_hundred_threads_and_all_hear_the_end(served):
    async def listen():
        limits = httpx.Limits(max_connections=None)
        async with served.caller(limits=limits) as caller:
            count, all_there = 0, asyncio.Event()

            def heard(event):
                nonlocal count
                if event.get("id") == "queued":
                    count += 1
                    if count == 100:
                        all_there.set()

            listening = [asyncio.create_task(served.hear(caller, heard=heard)) for _ in range(100)]
            await all_there.wait()
            threads = threading.active_count()
            await asyncio.to_thread(served.stop)
            return threads, await asyncio.gather(*listening)

    threads, all_heard = asyncio.run(listen())
    assert threads < 80  # the pool's 40, the test's own, and the director's
    assert {ids(one)[-1] for one in all_heard} == {"stopped"}


def test_streams_end_when_the_director_closes(served):
    async def listen():
        async with served.caller() as caller:
            heard = asyncio.Event()
            listening = asyncio.create_task(served.hear(caller, heard=lambda one: heard.set()))
            await heard.wait()
            await asyncio.to_thread(served.server.close)
            return await listening

    assert ids(asyncio.run(listen())) == ["queued"]


def test_a_stream_without_news_says_that_it_is_there_and_ends_with_the_right_to_hear_it(served, monkeypatch):
    monkeypatch.setattr("fedveil.director.rest.events.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr("fedveil.director.rest.events._CHECK_SECONDS", 0.0)

    async def listen():
        async with served.caller() as caller:
            quiet = asyncio.Event()
            listening = asyncio.create_task(served.hear(caller, heard=lambda one: "" in one and quiet.set()))
            await quiet.wait()
            await asyncio.to_thread(served.anna.delete, "/api/v1/sessions/current")
            return await listening

    heard = asyncio.run(listen())
    assert ids(heard) == ["queued"]


def test_a_stream_of_what_one_may_not_see_is_refused_like_one_that_is_not_there(served, problem_of):
    stranger = served.study.world
    stranger.user("eve", stranger.organization("Elsewhere"), "researcher")
    eve = stranger.signed_in("eve")
    for name in ("study-1", "nothing-1"):
        problem_of(eve.get(f"/api/v1/tasks/{name}/events"), 404)
    problem_of(stranger.anonymous().get("/api/v1/tasks/study-1/events"), 401)
    problem_of(served.anna.get("/api/v1/tasks/study-1/events", headers={"Last-Event-ID": "x" * 65}), 422)
