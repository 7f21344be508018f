"""What Flower's own SecAgg+ functions cost, as ``secagg.py`` asks: run by the Python of an environment that has flwr.

    PYTHON secagg_flower.py PARAMS ENVOYS REPEATS

Nothing of fedveil is imported and nothing of Flower changed. The client's work is ``_collect_masked_vectors`` of
``secaggplus_mod``, whole; set-up and sharing of keys come before and count as control. The server's is what
``collect_masked_vectors_stage`` and ``unmask_stage`` of ``SecAggPlusWorkflow`` do with the vectors: the same functions
in the same order, since the stages themselves cannot be had without a server. Flower's settings are its defaults.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TENSOR = 1_000_000  # numbers in each tensor, but for the last
CLIP, TARGET, MODULUS, MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0  # the defaults of SecAggPlusWorkflow
NUM_EXAMPLES = 700

mod: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
utils: Any = importlib.import_module("flwr.common.secure_aggregation.secaggplus_utils")
arithmetic: Any = importlib.import_module("flwr.common.secure_aggregation.ndarrays_arithmetic")
quantization: Any = importlib.import_module("flwr.common.secure_aggregation.quantization")
crypto: Any = importlib.import_module("flwr.common.secure_aggregation.crypto.symmetric_encryption")
parameter: Any = importlib.import_module("flwr.common")
keys: Any = importlib.import_module("flwr.supercore.primitives.asymmetric")
constants: Any = importlib.import_module("flwr.common.secure_aggregation.secaggplus_constants")


def main() -> None:
    """Measure, and print one JSON object."""
    params, envoys, repeats = map(int, sys.argv[1:4])
    threshold = 2 * envoys // 3 + 1
    cpu, clients = _timed(lambda: _with_keys(envoys, threshold), 1)
    values = np.random.default_rng(0).standard_normal(params, np.float32) * np.float32(0.01)
    extra, seconds, sent = _masked(clients, values, repeats)
    summing, total = _timed(lambda: _sum(sent), repeats)
    opening, mean = _timed(lambda: _open(total, [state.rd_seed for state, _ in clients]), repeats)
    dropping, _ = _timed(lambda: _drop(total, clients[0][0]), repeats)
    print(  # noqa: T201
        json.dumps(
            {
                "version": version("flwr"),
                "numpy": np.__version__,
                "client_cpu_s": statistics.median(seconds),
                "client_control_cpu_s": cpu[0] / envoys,
                "extra_memory_mb": extra,
                "wire_bytes_per_parameter": sum(map(len, sent[0])) / params,
                "director_cpu_s": statistics.median(summing) + statistics.median(opening),
                "director_cpu_s_per_dropout": statistics.median(dropping),
                "max_error": float(np.abs(np.concatenate([part.ravel() for part in mean]) - values).max()),
            }
        )
    )


def _masked(clients: list[tuple[Any, Any]], values: Any, repeats: int) -> tuple[float, list[float], list[list[bytes]]]:
    """Extra megabytes of the first client's work, CPU seconds of some, and what each client sends."""
    payload = parameter.ndarrays_to_parameters(
        [values[start : start + TENSOR] for start in range(0, values.size, TENSOR)]
    )
    sent: list[list[bytes]] = []
    seconds: list[float] = []
    extra = 0.0
    for nth in range(max(repeats, len(clients))):
        state, configs = clients[nth % len(clients)]
        before = _forget_peak()
        took, answer = _timed(partial(mod._collect_masked_vectors, state, configs, NUM_EXAMPLES, payload), 1)  # noqa: SLF001
        if not nth:
            extra = _peak() - before
        if nth < repeats:
            seconds += took
        if nth < len(clients):
            sent.append(answer[constants.Key.MASKED_PARAMETERS])
    return extra, seconds, sent


def _with_keys(envoys: int, threshold: int) -> list[tuple[Any, Any]]:
    """Each client's state after sharing keys, and what it is told with the ciphertexts of the others."""
    key, states, told = constants.Key, [], {}
    for nid in range(1, envoys + 1):
        state = mod.SecAggPlusState()
        configs = {
            key.SAMPLE_NUMBER: envoys,
            key.SHARE_NUMBER: envoys,
            key.THRESHOLD: threshold,
            key.CLIPPING_RANGE: CLIP,
            key.TARGET_RANGE: TARGET,
            key.MOD_RANGE: MODULUS,
            key.MAX_WEIGHT: MAX_WEIGHT,
        }
        state.nid = nid
        keys = mod._setup(state, configs)  # noqa: SLF001
        told[str(nid)] = (keys[key.PUBLIC_KEY_1], keys[key.PUBLIC_KEY_2])
        states.append(state)
    delivered: dict[int, tuple[list[int], list[bytes]]] = {state.nid: ([], []) for state in states}
    for state in states:
        state.rd_seed_share_dict, state.sk1_share_dict = {}, {}
        shares = mod._share_keys(state, dict(told))  # noqa: SLF001
        for to, box in zip(shares[key.DESTINATION_LIST], shares[key.CIPHERTEXT_LIST], strict=True):
            delivered[to][0].append(state.nid)
            delivered[to][1].append(box)
    return [
        (state, {key.SOURCE_LIST: delivered[state.nid][0], key.CIPHERTEXT_LIST: delivered[state.nid][1]})
        for state in states
    ]


def _sum(sent: list[list[bytes]]) -> Any:
    """As ``collect_masked_vectors_stage``."""
    total: Any = None
    for client in sent:
        vector = [parameter.bytes_to_ndarray(part) for part in client]
        total = vector if total is None else arithmetic.parameters_addition(total, vector)
    return arithmetic.parameters_mod(total, MODULUS)


def _open(total: Any, seeds: list[bytes]) -> Any:
    """As ``unmask_stage`` where nobody dropped out; its shares are not combined here."""
    shapes = arithmetic.get_parameters_shape(total)
    for seed in seeds:
        total = arithmetic.parameters_subtraction(total, utils.pseudo_rand_gen(seed, MODULUS, shapes))
    ratio, vector = arithmetic.factor_extract(arithmetic.parameters_mod(total, MODULUS))
    mean = quantization.dequantize(vector, CLIP, TARGET)
    for part in mean:
        part += -(len(seeds) - 1) * CLIP  # noqa: PLW2901
        part *= TARGET / ratio  # noqa: PLW2901
    return mean


def _drop(total: Any, state: Any) -> Any:
    """What ``unmask_stage`` does for one client that dropped out: its masks with all the others."""
    shapes = arithmetic.get_parameters_shape(total)
    for nid, (public, _) in state.public_keys_dict.items():
        if nid != state.nid:
            shared = crypto.generate_shared_key(keys.bytes_to_private_key(state.sk1), keys.bytes_to_public_key(public))
            total = arithmetic.parameters_addition(total, utils.pseudo_rand_gen(shared, MODULUS, shapes))
    return total


def _timed(work: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    seconds, result = [], None
    for _ in range(repeats):
        result = None  # so that two are never held at once
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return seconds, result


def _forget_peak() -> float:
    """Resident megabytes now, from which on the peak counts."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    main()
