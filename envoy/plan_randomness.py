"""Where a plan's code draws from: the generators of Python, numpy and torch, which no plan has to itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed everything that a plan may draw from, and leave the process as it was."""
    before = (random.getstate(), np.random.get_state(), torch.are_deterministic_algorithms_enabled())  # noqa: NPY002
    warn_only, fill = torch.is_deterministic_algorithms_warn_only_enabled(), _fills_memory()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        seed_all(seed)
        torch.cuda.manual_seed_all(seed)  # also of a device that is first used in here
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            torch.use_deterministic_algorithms(before[2], warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def seed_all(seed: int) -> None:
    """Seed them; inside ``deterministic``, which puts back what was there."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 - plans may use numpy's old generator
    torch.default_generator.manual_seed(seed)  # torch.manual_seed keeps a traceback of each call where CUDA may start
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types for it
        torch.cuda.manual_seed_all(seed)


def _fills_memory() -> bool:
    return bool(torch.utils.deterministic.fill_uninitialized_memory)  # type: ignore[attr-defined]
