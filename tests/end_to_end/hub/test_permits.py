"""A permit that ends while real sites train under it: the task ends by itself, and what was closed stays."""

from __future__ import annotations

import json
import time
import zipfile

import fedveil
import pytest
from fedveil.director.__main__ import app as director
from fedveil.director.audit import LOG_FILE
from fedveil.utils import errors
from fedveil.utils.audit_chain import read_entries
from typer.testing import CliRunner


def typed(*words: object) -> str:
    done = CliRunner().invoke(director, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_permit_that_ends_in_mid_run_ends_the_task_and_keeps_what_was_closed(
    federation, consortium, settings, said, tmp_path
):
    lungs = consortium.agree("Lungs", ["north", "south", "west"], ["nothing"])
    path, file = f"/api/v1/collaborations/{lungs}", tmp_path / "experiment.toml"
    consortium.user("anna", "north", "researcher")
    how = {"name": "anna", "password": "correct horse battery staple"}

    def until(ends_at: float) -> None:
        now = said(consortium.admin.get(path), 200)
        change = {"permit": now["permit"] | {"ends_at": ends_at}}
        said(consortium.admin.patch(path, json=change, headers={"If-Match": f'"{now["version"]}"'}), 200)

    with fedveil.connect(consortium.url, root=consortium.root, folder=tmp_path / "anna", **how) as anna:
        file.write_text(f'plan = "{federation.plan(seconds=0.2).folder}"\n{settings("long", rounds=1000)}')
        run = anna.submit(file, collaboration="Lungs")
        events = run.stream()
        assert any(one.id == "1.1.closed" for one in events)  # read as far as that
        until(time.time() + 2.0)
        last = list(events)[-1].data
        assert last["state"] == "stopped"
        assert "permit P-2026-17 of The Health Data Authority ended on" in last["reason"]
        with pytest.raises(errors.AgreementError, match="P-2026-17"):
            anna.submit(file, collaboration="Lungs")
        federation.kill_director()
        federation.start_director()
        federation.wait_for_all(90.0)
        task = run.show()
        assert (task["state"], task["reason"]) == (last["state"], last["reason"])
        closed = [one for one in task["rounds"] if one["state"] == "closed"]
        assert closed
        assert task["model_digest"] == closed[-1]["model_digest"]
        assert run.model().keys() == {"weights", "bias"}
        until(time.time() + 86_400.0)
        file.write_text(f'plan = "{federation.plan().folder}"\n{settings("short", rounds=1)}')
        assert anna.submit(file, collaboration="Lungs").wait()["state"] == "finished"
    log = federation.director_folder / LOG_FILE
    (entry,) = [one.event for one in read_entries(log) if one.event["what"] == "run withheld"]
    assert entry["run"] == run.id
    out = tmp_path / "evidence.zip"
    typed("audit", "export", out, "--folder", federation.director_folder)
    with zipfile.ZipFile(out) as bundle:
        tasks = json.loads(bundle.read("tasks.json"))
    assert [(one["run"], one["collaboration_id"]) for one in tasks] == [(run.id, lungs), ("short-1", lungs)]
