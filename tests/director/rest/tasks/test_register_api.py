"""The record of processing activities: what was declared and what ran, each in its place, and no formula in it."""

from __future__ import annotations

import csv
import io

from fedveil.director.fairness_pages import no_formula


def test_each_task_stands_in_the_register_with_parties_purpose_agreement_and_permit(study, world, problem_of):
    manager = world.signed_in("north-admin")
    north = manager.get(f"/api/v1/organizations/{study.organizations['north'].id}").json()
    said = {"contact": "it@north", "data_protection_officer": "=1+1"}
    tag = {"If-Match": f'"{north["version"]}"'}
    assert manager.patch(f"/api/v1/organizations/{north['organization_id']}", json=said, headers=tag).is_success
    anna = study.researcher("anna")
    task = study.submit(anna, "anna")
    path = f"/api/v1/reports/processing-register/{study.collaboration.id}"
    (one,) = anna.get(path).json()["activities"]
    assert (one["task_id"], one["started_by"], one["purpose"]) == (task["task_id"], "North Hospital", "a test")
    assert one["processing"].startswith("data-processing, version 1, SHA-256 ")
    assert one["permit"] == f"{study.collaboration.permit.number} of The Ministry"
    assert one["permit_ends_at"] == study.collaboration.permit.ends_at
    assert (one["dataset"], one["is_secure"], one["ended_at"]) == ("xrays", False, None)
    assert "North Hospital (contact: it@north; DPO: =1+1)" in one["parties"]
    (row,) = csv.DictReader(io.StringIO(anna.get(path, params={"form": "csv"}).text))
    assert row["task_id"] == task["task_id"]
    assert row["parties"].split("; ")[0] in "; ".join(one["parties"])
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())
    world.user("otto", world.organization("East Hospital"), "researcher")
    problem_of(world.signed_in("otto").get(path), 404)
    problem_of(anna.get("/api/v1/reports/processing-register/none"), 404)


def test_no_cell_of_the_register_is_a_formula():
    assert no_formula("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert no_formula("\t=1") == "'\t=1"
    assert no_formula("a=1") == "a=1"
