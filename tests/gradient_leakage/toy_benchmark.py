"""A benchmark of toys, also run as a process of its own: ``toy_benchmark.py FOLDER WORKERS SECONDS TARGETS``.

Random images of 9 x 9, one linear layer, and an attack that divides a gradient by another; it takes as long as it is
told.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from fedveil.gradient_leakage.attacks import catalogue
from fedveil.gradient_leakage.benchmark import run_cells
from fedveil.gradient_leakage.cells import Cell
from fedveil.gradient_leakage.metrics import Truth
from fedveil.gradient_leakage.rows import RunStore
from fedveil.gradient_leakage.runners import InProcesses, in_this_process
from fedveil.gradient_leakage.threat_model import (
    Adversary,
    ImageDomain,
    Knowledge,
    PublicImages,
    Reconstruction,
    TracePoint,
)
from fedveil.utils.errors import AttackError
from torch import nn

DOMAIN = ImageDomain((1, 9, 9), 2)


@dataclass(frozen=True, slots=True)
class ToyAttack:
    """The first linear layer's weight gradient divided by its bias gradient, exact for one image."""

    seconds: float = 0.0
    noise: float = 0.0
    iterations: int = 4
    trace_every: int = 0
    fails: bool = False

    @property
    def needs(self):
        return Knowledge()

    def __call__(self, observation, knowledge, rng):
        if self.fails:
            raise AttackError("layer 0 cannot be attacked so: <give it another>")
        time.sleep(self.seconds)
        gradient = observation.gradient()
        weight, bias = gradient["1.weight"], gradient["1.bias"]
        strongest = bias.abs().argmax()
        image = (weight[strongest] / bias[strongest]).reshape(1, *observation.domain.shape)
        image += self.noise * torch.randn(image.shape, generator=rng)
        trace = tuple(
            TracePoint(i, 2.0**-i, image * i / self.iterations)
            for i in range(0, self.iterations + 1, self.trace_every or 99)
        )
        return Reconstruction(image, torch.tensor([0]), 0.5, trace)


@dataclass(frozen=True, slots=True)
class ToyLaboratory:
    """Images of two classes drawn from a seed."""

    seed: int = 0

    def images(self, count, seed):
        return torch.rand((count, 1, 9, 9), generator=torch.Generator().manual_seed(self.seed + seed))

    def domain(self, case):
        return DOMAIN

    def batch(self, run):
        count, start = run.cell.batch, run.index * run.cell.batch
        pool = self.images(200, 1)[start : start + count]
        return Truth(pool, torch.arange(count) % 2, tuple(f"p{start + place}" for place in range(count)))

    def public(self, case):
        return PublicImages(self.images(50, 2), torch.arange(50) % 2)

    def gallery(self, case):
        return Truth(self.images(300, 3), torch.arange(300) % 2, tuple(f"g{place}" for place in range(300)))

    def model(self, cell):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(81, 5), nn.ReLU(), nn.Linear(5, 2))

    def embedding(self, case):
        return None


TOY = catalogue.Listed("toy", "Toy", "Nobody 2026", Adversary.CURIOUS_DIRECTOR, "toy", "ToyAttack", "images")


def install():
    """Put the toy attack in the place of the catalogue; a spawned worker does it too, as it runs this file."""
    sys.modules["fedveil.gradient_leakage.attacks.toy"] = sys.modules[__name__]
    catalogue.ATTACKS = (TOY,)


def cells(targets, seconds=0.0):
    return (
        Cell("toy", "mlp", "toy", targets=targets, options=(("seconds", seconds),)),
        Cell("toy", "mlp", "toy", targets=targets, options=(("seconds", seconds), ("noise", 0.3))),
    )


if __name__ in {"__main__", "__mp_main__"}:
    install()

if __name__ == "__main__":
    folder, workers, seconds, targets = sys.argv[1:]
    runner = InProcesses(int(workers)) if int(workers) else in_this_process
    with RunStore(Path(folder), writing=True) as store:
        rows = run_cells(
            cells(int(targets), float(seconds)),
            ToyLaboratory(),
            store,
            runner,
            lambda outcome: print(outcome.key, flush=True),  # noqa: T201 - the test listens
        )
    print(len(rows), "rows", flush=True)  # noqa: T201
