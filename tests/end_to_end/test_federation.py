"""Three envoys, one director, real processes: what comes out is what the arithmetic says."""

import hashlib
import json
from collections.abc import Callable

import numpy as np
from fedveil.director.rounds import RoundState
from fedveil.utils.messages import TaskKind
from safetensors.numpy import load

SITES = ("site-a", "site-b", "site-c")
ROUNDS = 3


def rng_of(site: str, number: int) -> np.random.Generator:
    """The lot of one site's training, as `WorkOrder.seed_for` states it."""
    words = ["fedveil/local", "training", hashlib.sha256(b"toy").hexdigest(), site, number]
    text = json.dumps(words, separators=(",", ":")).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)


def trained(model: dict[str, np.ndarray], site: str, number: int) -> tuple[dict[str, np.ndarray], int]:
    rng = rng_of(site, number)
    num_examples = int(rng.integers(10, 100))
    local = {k: np.tanh(model[k] + rng.standard_normal(model[k].shape, np.float32)) for k in ("bias", "weights")}
    return local, num_examples


def federated(rounds: int) -> list[dict[str, np.ndarray]]:
    """FedAvg, written down plainly: the model before each round, and the last."""
    models = [{"weights": np.linspace(-1, 1, 3000, dtype=np.float32), "bias": np.zeros((7, 11), np.float32)}]
    for number in range(1, rounds + 1):
        model = models[-1]
        answers = [trained(model, site, number) for site in SITES]
        everybody = sum(n for _, n in answers)
        models.append(
            {
                k: model[k] + sum((local[k] - model[k]) * np.float32(n / everybody) for local, n in answers)
                for k in model
            }
        )
    return models


def size_of(model: dict[str, np.ndarray]) -> float:
    return float(np.abs(model["weights"]).sum(dtype=np.float64) / model["weights"].size)


def test_a_federation_over_real_sockets_computes_what_numpy_does(federation, settings: Callable[..., str]):
    run = federation.submit(settings(rounds=ROUNDS), federation.plan())
    view = federation.finish(run)
    with federation.operator() as operator:
        content = operator.fetch(view.model)
        status = operator.status()
    model, models = load(content), federated(ROUNDS)
    assert {k: v.tobytes() for k, v in model.items()} == {k: v.tobytes() for k, v in models[-1].items()}
    # Each round reports the metrics of the model that it began with; the last evaluates the final one.
    assert [one.kind for one in view.rounds] == [TaskKind.TRAIN] * ROUNDS + [TaskKind.EVALUATE]
    np.testing.assert_allclose([one.metrics["size"] for one in view.rounds], list(map(size_of, models)), rtol=1e-12)
    assert [(one.state, one.invited, one.received, one.attempt) for one in view.rounds] == [("closed", 3, 3, 1)] * 4
    assert view.reason == f"max_rounds: {ROUNDS} rounds are closed"
    update_bytes = sum(v.nbytes for v in model.values())
    assert view.bytes_up == ROUNDS * 3 * update_bytes
    assert view.bytes_down > ROUNDS * 3 * update_bytes
    assert all(envoy.connected for envoy in status.envoys)
    assert federation.trainings() == dict.fromkeys(SITES, ROUNDS)


def test_history_holds_sums_and_no_single_site(federation, settings: Callable[..., str]):
    run = federation.submit(settings(rounds=1), federation.plan())
    federation.finish(run)
    training, evaluation = federation.rounds(run)
    assert training.round.state is evaluation.round.state is RoundState.CLOSED
    assert training.num_examples == sum(trained(federated(0)[0], site, 1)[1] for site in SITES)
    assert [metric.weight for metric in training.metrics] == [3 * 3000]
    assert training.model_out == evaluation.model_in
    answers = federation.history.submissions(training.round.ref)
    assert [(one.num_examples, one.metrics) for one in answers] == [(0, ())] * 3


def test_a_long_run_leaves_its_last_models_and_their_states_on_disk(federation, settings: Callable[..., str]):
    run = federation.submit(settings(rounds=8, optimizer="fedadam"), federation.plan())
    view = federation.finish(run)
    rounds = federation.rounds(run)[:-1]
    artifacts = federation.director_folder / "artifacts"
    kept = [(artifacts / one.model_out).exists() for one in rounds]
    states = [(artifacts / one.optimizer_state).exists() for one in rounds]
    assert kept == states == [False] * 3 + [True] * 5
    assert view.model == rounds[-1].model_out
