"""The fairness report over HTTP: for those of the collaboration, in three forms, and for nobody else."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director import rounds
from fedveil.director.history import Ending, History, RunRecord, RunState, SubmissionRecord
from fedveil.director.hub.tables import AGREEMENTS, TASKS
from fedveil.director.rounds import Round, RoundPolicy
from fedveil.utils import fairness
from fedveil.utils.fairness import Cell, FairnessTable, Measured, Statement
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.tensors import digest_of
from sqlalchemy import insert

PLAN, MODEL = digest_of(b"plan"), digest_of(b"model")
REF = TaskRef(RunId("lungs-1"), 1, 1, PLAN)
SITES = tuple(map(EnvoyName, ("north-1", "south-1", "south-2")))
POLICY = RoundPolicy(min_participants=3, timeout_seconds=60)
KEY = Ed25519PrivateKey.generate()
PATH = "/api/v1/reports/fairness/lungs-1"


def table(figure: float) -> FairnessTable:
    cells = (
        Cell("", "", 100, 199, (Measured("accuracy", "mean", figure, 0.02),)),
        Cell("sex", "F", 50, 99, (Measured("accuracy", "mean", figure, 0.05),)),
    )
    return FairnessTable("test", "patients", 10, cells, {"sex": 2})


def run(history: History) -> None:
    """One evaluation that closed; two of three sites publish."""
    record = RunRecord(
        run=REF.run, name="lungs", state=RunState.QUEUED, settings="", plan=PLAN, layout=PLAN, seed=bytes(32),
        submitted_at=1.0, started_at=None, ended_at=None, reason="", model=MODEL,
    )  # fmt: skip
    history.enqueue(record)
    first = Round(REF, TaskKind.EVALUATE, since=10.0)
    history.start_run(REF.run, 10.0, first)
    this = rounds.open_round(first, frozenset(SITES), POLICY, now=11.0)
    history.save_round(this, 11.0)
    for site, figure in zip(SITES, (0.9, 0.7, None), strict=True):
        this = rounds.receive(this, REF, site)
        answer = SubmissionRecord(REF, site, digest_of(site.encode()), 0, 0, (), spool="")
        if figure is not None:
            told = fairness.sign(Statement("lungs", site, REF, table(figure)), KEY.sign)
            answer = replace(answer, fairness=told)
        history.add_submission(answer, this)
    this = rounds.close(rounds.due(this, POLICY, 12.0))
    history.close_round(
        this, model_out=None, metrics=(), optimizer_state=None, num_examples=0, now=13.0, next_round=None,
        ending=Ending(RunState.FINISHED, "done"),
    )  # fmt: skip


@pytest.fixture
def task(world):
    """The run, as a task of a collaboration of north and south; east is not part of it."""
    run(History(world.hub.engine))
    root = world.signed_in("root")
    north = world.signed_in("north-admin").get("/api/v1/me").json()
    south = world.signed_in("south-admin").get("/api/v1/me").json()
    permit = {
        "number": "1", "authority": "a board", "purpose": "x-rays", "starts_at": 0, "ends_at": 1e10, "datasets": ["x"],
    }  # fmt: skip
    body = {"name": "lungs", "organizations": [north["organization_id"], south["organization_id"]], "permit": permit}
    made = root.post("/api/v1/collaborations", json=body).json()["collaboration_id"]
    user = world.hub.users.first(world.hub.users.table.c.name == "north-admin")
    signed = {
        "id": "agreement", "kind": "joint-controller", "number": 1, "document": "ab" * 32, "collaboration": made,
        "parties": [], "valid_from": 0.0, "valid_until": None, "may_start_tasks": [], "may_publish": [],
        "intellectual_property": "", "created_at": 0.0, "parties_key": "x", "version": 1,
    }  # fmt: skip
    with world.hub.engine.begin() as connection:
        connection.execute(insert(AGREEMENTS), {k: v for k, v in signed.items() if k in AGREEMENTS.c})
        values = {"run": REF.run, "collaboration": made, "organization": north["organization_id"], "user": user.id}
        connection.execute(insert(TASKS), values | {"processing": "agreement", "created_at": 0.0})
    world.user("eve", world.organization("East Hospital"), "organization-admin", "researcher")
    return root


def test_both_sites_and_who_is_silent_are_in_it(world, task):
    found = world.signed_in("south-admin").get(PATH).json()
    (one,) = found["rounds"]
    assert (one["answered"], one["publishing"], one["silent"], one["kind"]) == (3, 2, ["south-2"], "evaluate")
    assert [site["site"] for site in one["sites"]] == ["north-1", "south-1"]
    spread = next(s for s in one["spreads"] if s["of"] == "sites")
    assert (spread["worst"], spread["difference"], spread["is_clear"]) == ("south-1", 0.2, True)
    assert {(p["value"], p["mean"], p["sites"]) for p in one["pooled"]} == {("", 0.8, 2), ("F", 0.8, 2)}


def test_it_comes_as_a_page_and_as_rows_too(world, task):
    client = world.signed_in("north-admin")
    page = client.get(PATH, params={"form": "markdown"})
    assert page.headers["content-type"].startswith("text/markdown")
    assert "nothing is known of south\\-2" in page.text
    rows = client.get(PATH, params={"form": "csv"})
    assert rows.headers["content-type"].startswith("text/csv")
    assert len(list(csv.DictReader(io.StringIO(rows.text)))) == 6
    assert client.get(PATH, params={"form": "json"}).json() == client.get(PATH).json()


def test_for_who_is_no_part_of_it_there_is_none(world, task, problem_of):
    problem_of(world.signed_in("eve").get(PATH), 404)
    problem_of(world.anonymous().get(PATH), 401)
    for client in (world.signed_in("eve"), task):
        problem_of(client.get("/api/v1/reports/fairness/lungs-2"), 404)
    problem_of(task.get(PATH, params={"form": "pickle"}), 422)
    problem_of(task.get("/api/v1/reports/fairness/" + "x" * 64), 422)


def test_a_run_without_a_task_is_seen_by_who_sees_the_whole_federation(world, problem_of):
    run(History(world.hub.engine))
    assert world.signed_in("root").get(PATH).json()["rounds"]
    problem_of(world.signed_in("north-admin").get(PATH), 404)
