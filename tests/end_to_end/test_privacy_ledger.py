"""An envoy that is killed while it trains has spent what it reserved: real processes, a real secure sum."""

import numpy as np
import pytest
from fedveil.envoy.__main__ import app
from fedveil.envoy.datasets import DatasetRegistry
from fedveil.envoy.inspection import inspect
from fedveil.envoy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedveil.envoy.records import DataOptions
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.privacy.events import Gaussian
from fedveil.utils.privacy.values import Unit
from fedveil.workspace.plan_builder import build_plan
from typer.testing import CliRunner

ENVOY = """
[training]
preload_torch = false
[protection]
chain = ["check", "clip", "noise"]
max_norm = 1.0
noise_multiplier = 12.0
metrics = ["*"]
"""
PLAN = """
import time
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Slow(ArrayPlan):
    data = DataSpec("scans", DataKind.IMAGES, (1, 4, 4), ("ill", "well"))

    def initial(self):
        return {"image": np.zeros((1, 4, 4), np.float32)}

    def train(self, weights, data, rng):
        time.sleep(1.5)
        return {"image": weights["image"] + data.features.mean(0)}, len(data)

    def evaluate(self, weights, data):
        yield mean_of("distance", 0.0, 1)
"""
EQUAL = "[secure_sum]\nequal_weights = true\n"


def give_data(folder, seed):
    rng, arrays = np.random.default_rng(seed), {}
    for word, count in (("train", 12), ("val", 4), ("test", 4)):
        arrays[f"{word}_images"] = rng.integers(0, 256, (count, 4, 4), np.uint8)
        arrays[f"{word}_labels"] = np.arange(count) % 2
    np.savez(folder / "scans.npz", **arrays)
    found = inspect("scans", folder / "scans.npz", DataOptions(classes=("ill", "well")), 1.0)
    DatasetRegistry(folder / "datasets").add(found.record, found.index)
    words = ["privacy", "budget", "scans", "--epsilon", "4", "--folder", str(folder)]
    said = CliRunner().invoke(app, words).output
    assert "signed by this site's identity key" in said
    assert "epsilon 4 at delta 1e-05 per patient, signed by this site" in (
        CliRunner().invoke(app, ["privacy", "show", "--folder", str(folder)]).output
    )


def spendings(folder):
    ledger = PrivacyLedger(folder / LEDGER_FILE)
    try:
        return ledger.books().of("scans").spendings
    finally:
        ledger.close()


@pytest.mark.slow
def test_an_envoy_killed_while_it_trains_has_spent_what_it_reserved(tmp_path, toy_federation, settings, wait_until):
    (tmp_path / "plan.py").write_text(PLAN)
    build_plan(tmp_path / "plan.py", tmp_path / "bundle")
    with toy_federation(tmp_path, "") as federation:
        federation.envoy_settings = ENVOY
        federation.set_up()
        for seed, name in enumerate(federation.sites):
            give_data(tmp_path / name, seed)
        federation.wait_for_all()
        text = settings("toy", rounds=2, quorum=4, secure="required") + EQUAL
        run = federation.submit(text, open_bundle(tmp_path / "bundle"))
        victim = tmp_path / "site-b"
        wait_until(lambda: spendings(victim), "a reservation")
        federation.kill_envoy("site-b")
        (held,) = spendings(victim)
        assert not held.is_settled
        federation.start_envoy("site-b")
        view = federation.finish(run)
        federation.history._engine.dispose()
    assert [(one.state, len(one.sum.survivors)) for one in view.rounds] == [("closed", 4)] * 2
    assert [one.is_settled for one in spendings(victim)] == [False, True, True]  # the killed one stays spent
    assert [one.is_settled for one in spendings(tmp_path / "site-a")] == [True, True]
    told = view.rounds[-1].privacy
    assert told["site-b"].epsilon > told["site-a"].epsilon > 0
    assert {one.unit for one in told.values()} == {Unit.PATIENT}
    ledger = PrivacyLedger(victim / LEDGER_FILE)
    assert ledger.books().of("scans").history(Unit.PATIENT) == (Gaussian(6.0),) * 3
    ledger.close()
