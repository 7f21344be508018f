"""What sites hand over becomes one report."""

import json

import pytest
from fedveil.utils.errors import ConfigError
from fedveil.utils.messages import EnvoyName, ExperimentView, RoundView, RunId, SumView, TaskKind
from fedveil.utils.privacy.values import PublishedEpsilon, Unit
from fedveil.utils.tensors import Digest
from fedveil.workspace.__main__ import app
from fedveil.workspace.privacy_report import as_lines, combined, of_run, read_report
from typer.testing import CliRunner


def site(epsilon=1.2, delta=1e-5, unit="patient", state="all", score=0.03):
    return {
        "schema": "fedveil.privacy-report/1",
        "total_epsilon": epsilon,
        "delta": delta,
        "unit": unit,
        "adjacency": "one added or removed",
        "mechanism": "Poisson-sampled Gaussian",
        "accountant": "pld",
        "participants": 4,
        "secure_aggregation": {"state": state, "masked": 3, "in_clear": 0, "metrics_in_clear": 0},
        "leakage_score": score,
        "attack_used": "the worst attack",
        "datasets": [],
    }


def test_a_federations_epsilon_is_the_worst_of_its_sites_and_not_their_sum():
    found = combined({"north": site(1.2), "south": site(2.5), "west": site(0.3)})
    assert found["total_epsilon"] == 2.5
    assert (found["participants"], found["leakage_score"]) == (4, 0.03)
    assert found["secure_aggregation"] == {"state": "all", "masked": 9, "in_clear": 0, "metrics_in_clear": 0}
    assert as_lines(found)[0] == (
        "total_epsilon: epsilon 2.5 at delta 1e-05 per patient (one added or removed; Poisson-sampled Gaussian; pld)"
    )


def test_one_site_without_a_guarantee_leaves_the_federation_without_one():
    found = combined({"north": site(1.2), "south": site(None, state="off")})
    assert found["total_epsilon"] is None
    assert found["secure_aggregation"]["state"] == "some"
    assert "none: something left without a guarantee" in as_lines(found)[0]


@pytest.mark.parametrize("other", [{"unit": "record"}, {"delta": 1e-6}])
def test_epsilons_that_cannot_be_compared_are_not(other):
    with pytest.raises(ConfigError, match="show each by itself"):
        combined({"north": site(), "south": site(**other)})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "fedveil.privacy-report/1"}', "[" * 100_000])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "north.json").write_text(text)
    with pytest.raises(ConfigError, match=r"north\.json"):
        read_report(tmp_path / "north.json")


def test_the_command_reads_the_sites_files(tmp_path):
    for name in ("north", "south"):
        (tmp_path / f"{name}.json").write_text(json.dumps(site()))
    files = [str(tmp_path / f"{name}.json") for name in ("north", "south")]
    done = CliRunner().invoke(app, ["report", "privacy", *files])
    assert done.exit_code == 0, done.output
    assert "participants: 4" in done.output
    found = json.loads(CliRunner().invoke(app, ["report", "privacy", "--json", *files]).output)
    assert set(found["sites"]) == {"north", "south"}


def view(*rounds):
    return ExperimentView(RunId("lungs"), "lungs", "finished", "", Digest("ab" * 32), None, 0, 9, 0.0, rounds)


def training(number, epsilons, received=2, **more):
    told = {EnvoyName(name): PublishedEpsilon(one, 1e-5, Unit.PATIENT) for name, one in epsilons.items()}
    return RoundView(number, 1, TaskKind.TRAIN, "closed", 2, received, 1.0, privacy=told, **more)


def test_a_director_knows_the_last_epsilon_of_each_site_and_whether_it_saw_sums_alone():
    summed = SumView(("north", "south"), 2, 2, 2, Digest("cd" * 32))
    rounds = [
        training(1, {"north": 0.5, "south": 0.7}, sum=summed),
        training(2, {"north": 0.9, "south": 0.8}, sum=summed),
    ]
    found = of_run(view(*rounds))
    assert (found["total_epsilon"], found["unit"], found["participants"]) == (0.9, "patient", 2)
    assert found["secure_aggregation"] == {"state": "all", "masked": 4, "in_clear": 0, "metrics_in_clear": 0}
    assert as_lines(found)[0].startswith("total_epsilon: epsilon 0.9 at delta 1e-05 per patient (one added or removed;")


@pytest.mark.parametrize(
    "second",
    [
        training(2, {"north": 0.9}),
        training(2, {"north": 0.9, "south": 0.9}, metrics={"loss": 0.3}),
        RoundView(2, 1, TaskKind.EVALUATE, "closed", 2, 2, 1.0, metrics={"auc": 0.9}),
    ],
    ids=["an update without an epsilon", "metrics beside it", "an evaluation"],
)
def test_a_director_names_no_total_where_something_came_that_no_epsilon_covers(second):
    assert of_run(view(training(1, {"north": 0.5, "south": 0.7}), second))["total_epsilon"] is None


def test_the_worst_score_that_a_site_publishes_is_the_runs():
    scored = training(1, {}, leakage={EnvoyName("north"): 0.05, EnvoyName("south"): 0.25})
    found = of_run(view(scored, training(2, {})))
    assert found["leakage_score"] == 0.25
    assert "leakage_score: 0.250, the worst attack of the leak tests" in "\n".join(as_lines(found))
    assert of_run(view(training(1, {})))["leakage_score"] is None


def test_a_run_in_which_nobody_answered_has_no_total():
    assert of_run(view())["total_epsilon"] is None
    assert of_run(view())["secure_aggregation"]["state"] == "none left"
