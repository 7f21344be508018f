"""``fedveil bench secagg`` on a small vector: the keys of its page, and figures that must hold at any size."""

import json
from pathlib import Path

import pytest
from fedveil.utils.errors import ConfigError
from fedveil.utils.secure_sum.terms import Suite
from fedveil.workspace.__main__ import app
from fedveil.workspace.benchmarks.secagg import as_markdown, measure_secagg
from typer.testing import CliRunner

PAGE = Path(__file__).parents[2] / "workspace" / "benchmarks" / "README.md"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    file = tmp_path_factory.mktemp("secagg") / "secagg.json"
    words = ["bench", "secagg", "--params", "20000", "--envoys", "4", "--repeats", "2", "--json", str(file)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output, json.loads(file.read_text("utf-8"))


def test_the_sum_is_right_and_costs_four_bytes_a_number(told):
    _, cost = told
    assert (cost["params"], cost["envoys"], cost["threshold"]) == (20_000, 4, 3)
    assert cost["max_error_steps"] <= 4
    assert cost["wire_bytes_per_parameter"] == pytest.approx(4, abs=0.01)
    assert 0 < cost["control_bytes"] < 64 * 1024
    assert min(cost["client_cpu_s"], cost["director_cpu_s"]) > 0


def test_without_flower_its_column_is_empty(told):
    printed, cost = told
    assert cost["flower"] is None
    assert cost["times_flower"] == {}
    assert "| client: quantise, mask, hash; CPU-s | " in printed


def test_each_key_stands_in_the_page(told):
    page = PAGE.read_text("utf-8")
    assert [key for key in told[1] if f"`{key}`" not in page] == []


@pytest.mark.parametrize(("params", "envoys"), [(0, 4), (10, 2)])
def test_too_little_to_sum_is_said(params, envoys):
    with pytest.raises(ConfigError):
        measure_secagg(params, envoys, suite=Suite.X25519)


def test_another_python_without_flower_says_what_it_lacks(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named flwr' >&2\nexit 1\n", "utf-8")
    python.chmod(0o755)
    with pytest.raises(ConfigError, match="No module named flwr"):
        measure_secagg(10, 3, suite=Suite.X25519, flower=python, repeats=1)


def test_the_table_tells_how_many_times_ours_theirs_is(tmp_path):
    figures = '{"version": "1.42.0", "client_cpu_s": 1e9, "extra_memory_mb": 350.0}'
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{figures}'\n", "utf-8")
    python.chmod(0o755)
    cost = measure_secagg(10, 3, suite=Suite.X25519, flower=python, repeats=1)
    head, _, client, *_ = as_markdown(cost)
    assert "Flower 1.42.0" in head
    assert float(client.split("|")[-2].replace(",", "")) > 1000
