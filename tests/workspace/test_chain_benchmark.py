"""What a chain costs is measured on runs that really ask for it."""

from __future__ import annotations

import json

import pytest
from fedveil.director.experiments import ExperimentSettings
from fedveil.utils.config import parse_toml
from fedveil.workspace.__main__ import app
from fedveil.workspace.benchmarks.chain import CHAINS, check_seconds
from typer.testing import CliRunner

HEAD = 'name = "bench"\nsecure_aggregation = "off"\n[rounds]\nmax_rounds = 1\nmin_participants = 1\n'


@pytest.mark.parametrize("chain", CHAINS)
def test_each_chain_is_asked_for_by_its_table(chain: str):
    asked = parse_toml(HEAD + CHAINS[chain], ExperimentSettings, "experiment.toml").protection
    assert (asked.max_norm is not None, asked.noise_multiplier > 0) == ("clip" in chain, "noise" in chain)


def test_a_check_of_a_larger_update_takes_time():
    assert 0 < check_seconds(20.0) < 5.0


@pytest.mark.slow
def test_the_command_measures_every_chain_in_turn(tmp_path):
    file = tmp_path / "chain.json"
    command = ["bench", "chain", "--mb", "0.4", "--envoys", "1", "--rounds", "2", "--turns", "1", "--json", str(file)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())
    assert [row["chain"] for row in rows] == list(CHAINS)
    for row in rows:
        assert row["rounds"] == 1
        assert row["round_s_median"] > 0
        assert row["envoy_cpu_s_per_round"] >= 0
