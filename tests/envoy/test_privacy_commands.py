"""What a data manager types, and what is answered."""

import json
from types import SimpleNamespace

import pytest
from fedveil.envoy.__main__ import app
from fedveil.envoy.datasets import DatasetRegistry
from fedveil.envoy.inspection import inspect
from fedveil.envoy.policy import Measures
from fedveil.envoy.privacy_guard import PrivacyGuard
from fedveil.envoy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedveil.envoy.records import DataOptions
from fedveil.utils import messages as m
from fedveil.utils.data_spec import DataKind
from fedveil.utils.errors import PrivacyError
from fedveil.utils.messages import RunId, TaskKind, TaskRef
from fedveil.utils.privacy.events import Release, SampledGaussian
from fedveil.utils.privacy.values import Unit
from fedveil.utils.tensors import Digest
from typer.testing import CliRunner


@pytest.fixture
def folder(tmp_path, image_folder):
    found = inspect("x-rays", image_folder, DataOptions(), 1.0)
    DatasetRegistry(tmp_path / "site" / "datasets").add(found.record, found.index)
    return tmp_path / "site"


@pytest.fixture
def site(folder):
    def call(*words):
        done = CliRunner().invoke(app, ["privacy", *words, "--folder", str(folder)])
        return done.exit_code, done.output

    return call


def manifest(name):
    return SimpleNamespace(privacy=None, data=SimpleNamespace(name=name, kind=DataKind.IMAGES))


def a_task():
    digest = Digest("ab" * 32)
    ref = TaskRef(RunId("lungs"), 1, 1, digest)
    return m.Task(ref, TaskKind.TRAIN, digest, 10, digest, bytes(32), 60.0, 1, (m.EnvoyName("north"),))


def spend(folder, *runs):
    ledger = PrivacyLedger(folder / LEDGER_FILE)
    for number, run in enumerate(runs, 1):
        ref = TaskRef(RunId(run), number, 1, Digest("ab" * 32))
        release = (Release(SampledGaussian(0.1, 2.0, 5), Unit.PATIENT),)
        reservation = ledger.reserve("x-rays", ref, TaskKind.TRAIN, release, is_bare=False, participants=4)
        if number > 1:
            ledger.settle(reservation)
    ledger.close()


def test_a_budget_is_given_and_shown_with_what_was_spent_and_is_left(site, folder):
    pytest.importorskip("dp_accounting")
    assert site("budget", "x-rays", "--epsilon", "3") == (
        0,
        "x-rays: epsilon 3 at delta 1e-05 per patient, over all studies; not signed: this site is no member now.\n",
    )
    spend(folder, "lungs", "lungs", "hearts")
    code, said = site("show", "--rows")
    assert code == 0
    for words in (
        "budget: epsilon 3 at delta 1e-05 per patient",
        "spent: epsilon",
        "left: ",
        "(rdp, order ",
        "of 3 tasks 1 never settled",
        "study lungs: 2 tasks, epsilon",
        "study hearts: 1 tasks, epsilon",
        "sampling rate 0.1, noise 2, 5 steps per patient",
        "(never settled)",
        "every row follows from the one before",
    ):
        assert words in said


def test_no_epsilon_is_printed_without_its_delta_unit_and_mechanism(site, folder):
    pytest.importorskip("dp_accounting")
    site("budget", "x-rays", "--epsilon", "3")
    spend(folder, "lungs")
    for line in site("show")[1].splitlines():
        if "spent" in line or "study" in line:
            assert "at delta 1e-05 per patient (one added or removed; Poisson-sampled Gaussian; pld)" in line or (
                "never settled" in line
            )


def test_a_budget_for_a_data_set_that_is_not_here_or_a_delta_that_lets_somebody_out_is_refused(site):
    code, said = site("budget", "scans", "--epsilon", "3")
    assert (code, "no dataset scans here" in said) == (1, True)
    code, said = site("budget", "x-rays", "--epsilon", "3", "--delta", "0.2")
    assert (code, "lets somebody's data out whole" in said) == (1, True)


def add(folder, name, path):
    found = inspect(name, path, DataOptions(), 1.0)
    DatasetRegistry(folder / "datasets").add(found.record, found.index)


def test_the_same_examples_under_another_name_get_no_second_budget(site, folder, image_folder, png):
    site("budget", "x-rays", "--epsilon", "3")
    (image_folder / "normal" / "person9_9.png").write_bytes(png(999))
    add(folder, "again", image_folder)
    code, said = site("budget", "again", "--epsilon", "3")
    assert (code, "20 examples of again are also in x-rays, which has a budget" in said) == (1, True)


def test_and_no_task_without_one(site, folder, image_folder, caplog):
    add(folder, "again", image_folder)
    guard, task = PrivacyGuard(folder), a_task()
    guard.reserve(task, manifest("again"), Measures((), None, 0.0))  # while no budget is given, everything goes
    site("budget", "x-rays", "--epsilon", "3")
    with pytest.raises(PrivacyError, match="also in a data set that has a privacy budget"):
        guard.reserve(task, manifest("again"), Measures((), None, 0.0))
    assert "data set again shares examples: 20 with x-rays" in caplog.text
    guard.close()


def test_the_plan_says_how_many_rounds_fit_and_what_they_spend(site):
    pytest.importorskip("dp_accounting")
    words = ("plan", "--sigma", "1", "--q", "0.032", "--steps", "32")
    code, said = site(*words, "--epsilon", "3", "--delta", "1e-5")
    assert code == 0
    assert "4 rounds fit into epsilon 3 at delta 1e-05 per patient" in said
    assert "4 rounds spend epsilon 2.486 at delta 1e-05 per patient (one added or removed; Poisson" in said
    assert "1 rounds spend epsilon 1.544" in site(*words, "--rounds", "1", "--delta", "1e-5")[1]


def test_the_plan_says_how_much_noise_so_many_rounds_need(site):
    pytest.importorskip("dp_accounting")
    code, said = site("plan", "--q", "0.032", "--steps", "32", "--epsilon", "3", "--rounds", "30")
    assert code == 0
    assert "noise multiplier 1.69: the least with which 30 rounds fit" in said
    assert "30 rounds fit" in said


def test_the_plan_of_a_data_set_begins_where_its_ledger_is(site, folder):
    pytest.importorskip("dp_accounting")
    site("budget", "x-rays", "--epsilon", "3")
    words = ("plan", "--sigma", "2", "--q", "0.1", "--steps", "5", "--dataset", "x-rays")
    before = int(site(*words)[1].split()[0])
    spend(folder, "lungs", "lungs")
    assert int(site(*words)[1].split()[0]) == before - 2


def test_a_plan_that_asks_nothing_is_answered_with_what_to_ask(site):
    code, said = site("plan", "--sigma", "1")
    assert (code, "give --epsilon" in said) == (1, True)
    code, said = site("plan")
    assert (code, "give --sigma" in said) == (1, True)


def test_the_report_is_one_json_object(site, folder):
    pytest.importorskip("dp_accounting")
    spend(folder, "lungs")
    site("budget", "x-rays", "--epsilon", "3")
    code, said = site("report", "--json")
    found = json.loads(said)
    assert code == 0
    assert found["total_epsilon"] > 0
    assert found["participants"] == 4
    assert found["secure_aggregation"]["state"] == "none left"


def test_a_site_that_released_nothing_says_so(site):
    assert "No data set has released anything yet" in site("show")[1]
    assert site("show", "x-rays")[0] == 1
