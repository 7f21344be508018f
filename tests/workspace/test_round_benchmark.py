"""The benchmark of a round measures what it says, on a small model."""

from __future__ import annotations

from dataclasses import asdict

from fedveil.workspace.benchmarks.round import as_json, measure_secure_round


def test_protected_rounds_are_measured_beside_plain_ones_of_the_same_federation():
    cost = measure_secure_round(0.04, 3, 3, turns=1)
    for one in (cost.plain, cost.secure):
        assert (one.mb, one.envoys, one.rounds) == (0.04, 3, 3)
        assert min(one.round_s_median, one.server_peak_mb, one.envoy_peak_mb) > 0
    assert cost.round_ratio == round(cost.secure.round_s_median / cost.plain.round_s_median, 2)
    assert min(cost.server_cpu_ratio, cost.envoy_cpu_ratio) >= 0
    told = as_json(cost)
    assert told["plain"] == asdict(cost.plain)
    assert set(told) == {"plain", "secure", "round_ratio", "server_cpu_ratio", "envoy_cpu_ratio"}
