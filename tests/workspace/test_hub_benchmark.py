"""The benchmark of the REST API, small: it really calls a director, and its figures are of whole answers."""

import json

import pytest
from fedveil.workspace.benchmarks.hub import STATUS_PATHS, as_json, as_markdown, measure_hub
from fedveil.workspace.benchmarks.hub_load import Answered, Load, put_load


def test_its_figures_are_of_calls_and_downloads_that_were_answered():
    cost = measure_hub(0.3, 3, 0.2, 1)
    assert [one.path for one in cost.status] == list(STATUS_PATHS)
    assert all(one.calls >= 3 and one.p50_ms <= one.p99_ms for one in cost.status)
    assert [(one.callers, one.mb) for one in cost.downloads] == [(1, 0.3), (3, 0.3)]
    assert all(one.ratio > 0 and one.p50_s <= one.p99_s for one in cost.downloads)
    assert cost.director_peak_mb > 10
    assert json.loads(json.dumps(as_json(cost)))["status"][0]["callers"] == 3
    page = as_markdown(cost)
    assert all(f"`GET {path}`" in page for path in STATUS_PATHS)


def test_an_answer_that_is_none_is_no_figure(tmp_path):
    load = Load(str(tmp_path / "none.pem"), 1, "/", "", 1)
    with pytest.raises(OSError):
        put_load(load)


def test_percentiles_are_of_all_calls():
    answered = Answered(tuple(n / 100 for n in range(100)), 0, 2.0)
    assert (answered.percentile(0.5), answered.percentile(0.99), answered.rate) == (0.5, 0.99, 50)
