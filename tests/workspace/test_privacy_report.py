"""What sites hand over becomes one report."""

import json

import pytest
from fedveil.utils.errors import ConfigError
from fedveil.workspace.__main__ import app
from fedveil.workspace.privacy_report import as_lines, combined, read_report
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
