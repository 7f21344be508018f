"""A researcher's client against a director and envoys that run, each a process: submit, watch, steer, fetch."""

from __future__ import annotations

import stat
import time

import fedveil
import httpx
import numpy as np
import pytest
from fedveil.director.researcher.own_key import CHAIN_FILE, KEY_FILE
from fedveil.director.researcher.writers import MLflow, TensorBoard, follow
from fedveil.utils import errors
from fedveil.utils.certificates import certificate_pem, make_root
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory, three_hospitals):
    """One federation for all of these: to set one up takes longer than most of what is done with it."""
    with three_hospitals(tmp_path_factory.mktemp("federation")) as made:
        yield made


@pytest.fixture(scope="module")
def federation(hospitals):
    """The processes."""
    return hospitals[0]


@pytest.fixture(scope="module")
def consortium(hospitals):
    """The people."""
    return hospitals[1]


@pytest.fixture(scope="module")
def agreed(consortium):
    """The id of a collaboration of the three hospitals, of which the north may start tasks."""
    return consortium.agree("Lungs", ["north", "south", "west"], ["nothing"])


@pytest.fixture(scope="module")
def key(consortium, agreed):
    """An API key of a researcher of the north, for what a researcher does and no more."""
    client = consortium.user("anna", "north", "researcher")
    things = ("view:collaboration", "view:plan", "create:plan", "view:task", "create:task", "start:task", "view:model")
    rules = [f"{one}:collaboration" for one in (*things, "view:report", "create:remark")]
    return consortium.key(client, *rules, "steer:task:own")


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """Where the researcher's signing key lies."""
    return tmp_path_factory.mktemp("researcher") / "anna"


@pytest.fixture
def anna(consortium, key, own_folder):
    """The researcher, connected."""
    with fedveil.connect(consortium.url, key, root=consortium.root, folder=own_folder) as made:
        yield made


@pytest.fixture
def submit(federation, settings, anna, tmp_path):
    """Submits the toy plan, as the text of experiment.toml says."""

    def do(text="", **plan):
        bundle = federation.plan(**plan)
        file = tmp_path / "experiment.toml"
        file.write_text(f'plan = "{bundle.folder}"\n' + (text or settings(rounds=2)))
        return anna.submit(file, collaboration="Lungs")

    return do


def test_a_run_is_submitted_watched_to_its_end_and_its_model_fetched(submit, anna, agreed, tmp_path):
    run = submit()
    events = list(run.stream())
    task = run.show()
    assert (task["state"], task["user"], task["collaboration_id"]) == ("finished", "anna", agreed)
    assert task["processing"]["kind"] == "joint-controller"
    closed = [one["round"] for one in task["rounds"] if one["state"] == "closed" and one["kind"] == "train"]
    assert closed == [1, 2]
    assert [one.data["round"] for one in events if one.kind == "round" and one.data["state"] == "closed"][:2] == [1, 2]
    assert events[-1].kind == "state"
    assert events[-1].data["state"] == "finished"
    model = run.model(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in model.items()} == {"weights": (3000,), "bias": (7, 11)}
    assert all(np.array_equal(value, run.model()[name]) for name, value in model.items())
    assert run.metrics().keys()
    assert run.privacy_report()["participants"] == 3
    assert run.id in {one["task_id"] for one in anna.tasks()}


def is_there(client):
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False


def test_what_is_said_of_plan_and_task_is_read_by_all_who_see_them(submit, anna, consortium, federation, wait_until):
    plan = federation.plan()
    anna.show_plan(plan, collaboration="Lungs")
    assert anna.remark(plan, "What do you think of it?")["number"] == 0
    rita = consortium.user("rita", "south", "reviewer")
    path = f"/api/v1/plans/{plan.manifest.digest}/remarks"
    said = rita.post(path, json={"text": "It reads no data.", "verdict": "approved", "answers": 0})
    assert said.status_code == 201, said.text
    told = [(one["author"], one["verdict"], one["answers"]) for one in anna.remarks(plan)]
    assert told == [("anna", None, None), ("rita", "approved", 0)]
    federation.kill_director()
    federation.start_director()
    wait_until(lambda: is_there(rita), "the API")
    assert rita.get(path.removesuffix("/remarks")).json()["missing"] == []  # though no run needs it yet
    with pytest.raises(errors.NotAuthorizedError, match="you brought this plan"):
        anna.remark(plan, "So do I.", verdict="approved")
    run = submit()
    for number in range(3):
        assert run.remark(f"{number}", answers=number - 1 if number else None)["number"] == number
    assert [one["text"] for one in run.remarks()] == ["0", "1", "2"]
    run.wait()


def test_who_comes_later_hears_it_all_and_who_was_cut_off_the_rest(submit):
    run = submit()
    run.wait()
    ids = [one.id for one in run.stream()]
    assert all(ids)
    assert [one.id for one in run.stream(ids[1])] == ids[2:]


def test_a_run_is_paused_changed_resumed_and_stopped_by_signed_patches(submit, settings, wait_until):
    run = submit(settings(rounds=400))
    wait_until(lambda: any(one["state"] == "closed" for one in run.show()["rounds"]), "a round")
    assert run.pause("lunch")["state"] == "paused"
    changed = run.steer(stop={"max_rounds": 300}, reason="enough")
    assert (changed["max_rounds"], changed["patches"]) == (300, 2)
    assert run.resume()["patches"] == 3
    with pytest.raises(errors.FederationError):
        run.roll_back(9999)
    assert run.stop("done")["state"] == "stopped"
    assert run.is_over


def test_a_director_that_dies_meanwhile_is_waited_for(submit, federation, wait_until):
    run = submit(seconds=0.5)
    seen = run.stream()
    first = next(seen)
    federation.kill_director()
    federation.start_director()
    later = list(seen)
    assert first.id not in {one.id for one in later}
    assert run.show()["state"] == "finished"


def test_the_signing_key_stays_in_its_folder_and_is_certified_once(submit, own_folder):
    run = submit()
    key, chain = own_folder / KEY_FILE, (own_folder / CHAIN_FILE).read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    run.stop()
    assert (own_folder / CHAIN_FILE).read_bytes() == chain
    key.chmod(0o644)
    try:
        with pytest.raises(errors.IdentityError, match="others"):
            submit()
    finally:
        key.chmod(0o600)


def test_what_is_not_right_is_told_before_anything_runs(consortium, federation, anna, tmp_path, settings):
    file = tmp_path / "experiment.toml"
    file.write_text(f'plan = "{federation.plan().folder}"\n{settings()}')
    with pytest.raises(errors.UnknownEntityError, match="Hearts"):
        anna.submit(file, collaboration="Hearts")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        anna.submit(tmp_path / "none.toml", collaboration="Lungs")
    with pytest.raises(errors.UnknownEntityError):
        anna.run("nothing-1")
    south = consortium.user("otto", "south", "researcher")
    how = {"name": "otto", "password": PASSWORD, "root": consortium.root, "folder": tmp_path / "otto"}
    with fedveil.connect(consortium.url, **how) as otto, pytest.raises(errors.AgreementError, match="may not start"):
        otto.submit(file, collaboration="Lungs")
    assert "otto" not in {one["user"] for one in south.get("/api/v1/tasks").json()["items"]}


@pytest.mark.parametrize("missing", ["FEDVEIL_URL", "FEDVEIL_API_KEY", "FEDVEIL_ROOT"])
def test_connect_says_what_is_said_nowhere(missing, monkeypatch, tmp_path):
    (tmp_path / "root.pem").write_bytes(certificate_pem(make_root("x", time.time()).certificate))
    said = {"FEDVEIL_URL": "https://127.0.0.1:1", "FEDVEIL_API_KEY": "fv_x", "FEDVEIL_ROOT": str(tmp_path / "root.pem")}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.UnreachableError):
        fedveil.connect()
    monkeypatch.delenv(missing)
    with pytest.raises(errors.ConfigError, match=missing):
        fedveil.connect()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
def test_metrics_go_to_tensorboard_and_mlflow_as_they_are(submit, tmp_path):
    run = submit()
    with TensorBoard(tmp_path / "board") as board, MLflow("lungs", run, f"sqlite:///{tmp_path}/flow.db") as flow:
        follow(run, board, flow)
    kept = EventAccumulator(str(tmp_path / "board"))
    kept.Reload()
    client = MlflowClient(f"sqlite:///{tmp_path}/flow.db")
    expected = run.metrics()
    assert expected
    for name, values in expected.items():
        shown = [(one.step, float(make_ndarray(one.tensor_proto))) for one in kept.Tensors(name)]
        assert shown == [(step, float(np.float32(value))) for step, value in values]
        history = client.get_metric_history(flow.run_id, name)
        assert sorted((one.step, one.value) for one in history) == sorted(values)
    told = client.get_run(flow.run_id)
    assert told.info.status == "FINISHED"
    assert told.data.tags["fedveil.task"] == run.id
