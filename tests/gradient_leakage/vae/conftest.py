"""A small and a large model's layout, proxy updates for each, and codecs of every sort."""

from collections.abc import Iterator

import numpy as np
import pytest
import threadpoolctl
from fedveil.gradient_leakage.vae.codec import Codec
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.utils.tensors import Layout, Role

CODECS = ("dense", "fresh", "seeded", "two-sided", "two-sided with small ones", "seeded large")


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """The suite runs in parallel by processes already, and waiting threads would count as CPU time."""
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def small() -> Layout:
    """669 numbers, of which 9 are buffers."""
    return Layout.of(
        [
            ("w", (10, 64), Role.PARAMETER),
            ("mean", (9,), Role.BUFFER),
            ("b", (10,), Role.PARAMETER),
            ("scale", (), Role.PARAMETER),
            ("norm", (9,), Role.PARAMETER),
        ]
    )


@pytest.fixture(scope="session")
def large() -> Layout:
    """75,000 numbers: a convolution, two matrices, small tensors, buffers."""
    return Layout.of(
        [
            ("conv", (64, 32, 3, 3), Role.PARAMETER),
            ("conv.b", (64,), Role.PARAMETER),
            ("w", (300, 180), Role.PARAMETER),
            ("w.b", (900,), Role.PARAMETER),
            ("head", (10, 60), Role.PARAMETER),
            ("running", (64,), Role.BUFFER),
        ]
    )


def updates_of(layout: Layout, count: int = 24) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, layout.size), np.float32) * np.float32(0.01)


@pytest.fixture(scope="session")
def codecs(small: Layout, large: Layout) -> dict[str, Codec]:
    """Of each sort, with this round's directions."""
    made = {
        "dense": fit(small, updates_of(small), 20, noise_variance=1e-5),
        "fresh": fit(small, updates_of(small), 15, seeded_share=0.5),
        "seeded": seeded(small, 20),
        "two-sided": fit(large, updates_of(large), 20),
        "two-sided with small ones": fit(large, updates_of(large), 100),
        "seeded large": seeded(large, 100),
    }
    assert tuple(made) == CODECS
    return {name: codec.for_round(b"round 1") for name, codec in made.items()}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest, codecs: dict[str, Codec]) -> Codec:
    return codecs[request.param]
